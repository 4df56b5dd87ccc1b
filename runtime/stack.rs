//! Layers of one or several models of one shape as a deeper model, GGUF to GGUF. Tensors are copied
//! as they are, one after another in small pieces, so memory stays small.
//!
//! The result needs training: layers meet inputs that they were not made for.

use std::ops::Range;
use std::path::Path;

use crate::adapter::{Adapter, LoraConfig, LoraModule, Modules};
use crate::base::{BaseShape, ModelConfig, ModulePath};
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::gguf::{Gguf, gguf_name};
use crate::format::gguf_writer::{ALIGNMENT, GgufWriter};
use crate::format::staged::Staged;

/// The key that tells a stacked model from others; its value says of what.
pub(crate) const STACKED_KEY: &str = "epiphyte.stacked_layers";
/// Layers of a model that is read again, at most.
const MAX_LAYERS: usize = 1024;
/// Bytes of a piece, about.
const PIECE: usize = 4 << 20;
/// What names of layers' tensors begin with.
const LAYERS: &str = "model.layers.";

/// Layers in a row of one of several models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The model's number.
    pub model: usize,
    /// Its layers, from 0.
    pub layers: Range<usize>,
}

/// Depth up-scaling (Kim et al. 2024, arXiv:2312.15166, SOLAR): a model of n layers twice, without
/// the last `overlap` layers and then without the first, 2 (n - overlap) in all. SOLAR took 8 of
/// 32.
///
/// Errors: [`Error::InvalidArgument`] when nothing would be left, or nothing left out.
pub fn depth_up_scaling(num_hidden_layers: usize, overlap: usize) -> Result<Vec<Slice>> {
    if overlap == 0 || overlap >= num_hidden_layers {
        let most = num_hidden_layers.saturating_sub(1);
        let reason = format!("1 to {most} layers can be left out at the seam");
        return Err(Error::InvalidArgument { name: "overlap", reason });
    }
    let ends = [0..num_hidden_layers - overlap, overlap..num_hidden_layers];
    Ok(ends.map(|layers| Slice { model: 0, layers }).into())
}

/// Writes the layers of `slices`, in order, to `path`; embedding, head, tokenizer and all metadata
/// are the first model's. Complete or not there at all; a file that is there is replaced.
/// `progress` gets bytes done and in all.
///
/// Errors: [`Error::InvalidArgument`] for slices that are empty, name a model or layer that is not
/// there, or are too many; [`Error::Unsupported`] for models of several shapes;
/// [`Error::InvalidMetadata`] for one that can't be read; [`Error::Io`].
pub fn stack_gguf(
    models: &[&Gguf],
    slices: &[Slice],
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let first = check(models, slices)?;
    let alignment = first.find::<u32>("general.alignment")?.map_or(ALIGNMENT, u64::from);
    let mut writer = GgufWriter::new(alignment);
    let architecture = first.architecture()?;
    let block_count = format!("{architecture}.block_count");
    let ours = |key: &str| key == block_count || key == STACKED_KEY || key.starts_with("split.");
    first.raw_metadata().filter(|(key, ..)| !ours(key)).for_each(|(key, kind, value)| {
        writer.key(key, kind, value);
    });
    let count: usize = slices.iter().map(|slice| slice.layers.len()).sum();
    writer.u32(&block_count, count as u32).text(STACKED_KEY, &told(slices));
    let mut planned = Vec::new();
    for (name, view) in tensors(models, first, slices) {
        let n_bytes = view.n_bytes() as u64;
        let name = gguf_name(architecture, &name).unwrap_or(name);
        planned.push((view, writer.tensor(&name, view.shape, view.dtype, n_bytes)));
    }
    let all = planned.iter().map(|(view, _)| view.n_bytes() as u64).sum();
    let (mut staged, mut done) = (Staged::write(path, &writer.head())?, 0);
    progress(0, all);
    for (view, padding) in planned {
        let view = view.in_file_order();
        let at_once = (PIECE / view.row_bytes()).max(1);
        for row in (0..view.n_rows()).step_by(at_once) {
            let bytes = view.rows(row, at_once.min(view.n_rows() - row));
            staged.append(&bytes)?;
            done += bytes.len() as u64;
            progress(done, all);
        }
        staged.append(&padding)?;
    }
    staged.commit()
}

/// The adapter of a model's layers on the stacked model: each copy of a layer gets the LoRA of its
/// origin, where that is `model`; embedding and head keep theirs if the stacked model's are its
/// own.
///
/// Errors: as [`Adapter::new`].
pub fn stack_adapter(
    adapter: &Adapter,
    model: usize,
    slices: &[Slice],
    stacked: &BaseShape,
) -> Result<Adapter> {
    let origins = slices.iter().flat_map(|slice| slice.layers.clone().map(|i| (slice.model, i)));
    let mut modules: Vec<LoraModule> = Vec::new();
    if model == 0 {
        modules.extend(adapter.modules.iter().filter(|m| m.path.layer.is_none()).cloned());
    }
    for (layer, origin) in origins.enumerate().filter(|(_, (of, _))| *of == model) {
        let own = adapter.modules.iter().filter(|module| module.path.layer == Some(origin.1));
        modules.extend(own.map(|module| {
            let path = ModulePath { layer: Some(layer), target: module.path.target };
            LoraModule { path, ..module.clone() }
        }));
    }
    let names = modules.iter().map(|module| module.path.to_string());
    let alpha = |m: &LoraModule| f64::from(m.scaling) * m.rank as f64;
    let config = LoraConfig {
        target_modules: Modules::Names(names.collect()),
        exclude_modules: None,
        use_rslora: false,
        rank_pattern: modules.iter().map(|m| (m.path.to_string(), m.rank)).collect(),
        alpha_pattern: modules.iter().map(|m| (m.path.to_string(), alpha(m))).collect(),
        layers_to_transform: Vec::new(),
        layers_pattern: Vec::new(),
        ..adapter.config.clone()
    };
    Adapter::new(config, modules, None, stacked)
}

/// The first model, when all of it can be done.
fn check<'a>(models: &[&'a Gguf], slices: &[Slice]) -> Result<&'a Gguf> {
    let invalid = |reason: String| Err(Error::InvalidArgument { name: "slices", reason });
    let Some(first) = models.first() else { return invalid("no model; give at least one".into()) };
    let configs: Vec<ModelConfig> =
        models.iter().map(|model| ModelConfig::from_gguf(model)).collect::<Result<_>>()?;
    let sizes = |config: &ModelConfig| BaseShape { num_hidden_layers: 0, ..config.base_shape() };
    let rotary = |config: &ModelConfig| {
        (config.head_dim, config.rope_theta, config.rms_norm_eps, config.traits.clone())
    };
    for (model, config) in models.iter().zip(&configs) {
        config.check_tensors(model)?;
        if sizes(config) != sizes(&configs[0]) || rotary(config) != rotary(&configs[0]) {
            let what = format!("a stack of models of several shapes ({})", model.path().display());
            let hint = "their sizes, but for the number of layers, must be the same".into();
            return Err(Error::Unsupported { what, hint });
        }
    }
    for Slice { model, layers } in slices {
        let Some(config) = configs.get(*model) else {
            return invalid(format!("there is no model {model}"));
        };
        let (start, end, n) = (layers.start, layers.end, config.num_hidden_layers);
        if start >= end || end > n {
            return invalid(format!("layers {start} to {end} (exclusive) of a model that has {n}"));
        }
    }
    let count: usize = slices.iter().map(|slice| slice.layers.len()).sum();
    match count {
        0 => invalid("none; give at least one range of layers".into()),
        n if n > MAX_LAYERS => invalid(format!("{n} layers in all; at most {MAX_LAYERS}")),
        _ => Ok(first),
    }
}

/// Every tensor of the new file under its Hugging Face name there: what is outside of layers, then
/// layer by layer.
fn tensors<'a>(
    models: &[&'a Gguf],
    first: &'a Gguf,
    slices: &[Slice],
) -> Vec<(String, TensorView<'a>)> {
    let outside = first.tensors().filter(|view| !view.name.starts_with(LAYERS));
    let mut all: Vec<_> = outside.map(|view| (view.name.to_string(), view)).collect();
    let origins = slices.iter().flat_map(|slice| slice.layers.clone().map(|i| (slice.model, i)));
    for (layer, (model, origin)) in origins.enumerate() {
        let prefix = format!("{LAYERS}{origin}.");
        let own = models[model].tensors();
        all.extend(own.filter_map(|view| {
            Some((format!("{LAYERS}{layer}.{}", view.name.strip_prefix(&prefix)?), view))
        }));
    }
    all
}

/// `0:0-23,0:8-31`: model and layers, both ends included.
fn told(slices: &[Slice]) -> String {
    let one = |Slice { model, layers }: &Slice| {
        format!("{model}:{}-{}", layers.start, layers.end.saturating_sub(1))
    };
    slices.iter().map(one).collect::<Vec<_>>().join(",")
}
