//! A base and its adapters as one GGUF, for tools that know no adapters.
//!
//! Tensors without LoRA and the metadata are copied as they are. Those with LoRA are dequantised,
//! merged and rounded to F16 or `Q8_0`, which is why running adapters beside the base is the better
//! way where it can be had; the report says how much the rounding took. Tensors go through one
//! after another in small pieces, so memory stays small.

mod linear;

use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use crate::adapter::Adapter;
use crate::base::{BaseShape, ModulePath, Target};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::gguf::{Gguf, gguf_name};
use crate::format::gguf_writer::{ALIGNMENT, GgufWriter};
use crate::format::staged::Staged;
use crate::quant;
use linear::{Loras, Loss, merge};

/// The key that tells a merged model from others; its value is the number of adapters.
pub(crate) const MERGED_KEY: &str = "epiphyte.merged_adapters";
/// Weights of a piece, about.
const PIECE: usize = 1 << 20;

/// What was written, and what rounding took.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportReport {
    /// Type of the merged tensors.
    pub dtype: &'static str,
    /// Bytes of the file.
    pub n_bytes: u64,
    /// The base has one matrix for embedding and head, the file has two.
    pub untied: bool,
    /// Largest rounding error of a weight, in the root mean square of what the adapters add to
    /// weights.
    pub max_error_over_delta: f64,
    /// Root mean square of the rounding errors, in the same.
    pub rms_error_over_delta: f64,
    /// The merged tensors, in the file's order.
    pub merged: Vec<MergedTensor>,
}

/// One merged tensor.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedTensor {
    /// As the file spells it.
    pub name: String,
    /// Root mean square of what the adapters add to its weights.
    pub delta_rms: f64,
    /// Largest rounding error.
    pub max_error: f64,
    /// Root mean square of the rounding errors.
    pub rms_error: f64,
}

/// A tensor of the new file.
struct Planned<'a> {
    name: String,
    view: TensorView<'a>,
    /// Copied when empty.
    loras: Loras<'a>,
    padding: Vec<u8>,
}

/// Writes the base of `gguf` with `adapters`, each with its weight, to `path`: tensors with LoRA in
/// `dtype`, F16 or `Q8_0`. Complete or not there at all; a file that is there is replaced.
/// `progress` gets weights done and in all. Does not ask which base the adapters were made for.
///
/// The head of a base with tied embeddings becomes a tensor of its own when an adapter changes one
/// of the two.
///
/// Errors: [`Error::InvalidArgument`] for another type, no adapters, or a weight that is not
/// finite; [`Error::InvalidAdapter`] for an adapter that does not fit; [`Error::InvalidTensor`]
/// when merged weights are too large for the type; [`Error::Io`].
pub fn export_gguf(
    gguf: &Gguf,
    shape: &BaseShape,
    adapters: &[(&Adapter, f32)],
    (path, dtype): (&Path, DType),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportReport> {
    check(shape, adapters, dtype)?;
    let (head, planned) = plan(gguf, shape, adapters, dtype)?;
    let all = planned.iter().map(|tensor| tensor.view.n_weights() as u64).sum();
    let (mut done, mut n_bytes) = (0, head.len() as u64);
    let mut staged = Staged::write(path, &head)?;
    let (mut merged, mut total) = (Vec::new(), Loss::default());
    for tensor in &planned {
        let loss = pieces(tensor, dtype, &mut |bytes, weights| {
            (done, n_bytes) = (done + weights as u64, n_bytes + bytes.len() as u64);
            progress(done, all);
            staged.append(bytes)
        })?;
        staged.append(&tensor.padding)?;
        n_bytes += tensor.padding.len() as u64;
        if !tensor.loras.is_empty() {
            total = total.and(loss);
            let (delta_rms, rms_error) = (loss.delta_rms(), loss.rms_error());
            merged.push(MergedTensor {
                name: tensor.name.clone(),
                delta_rms,
                max_error: loss.max_error,
                rms_error,
            });
        }
    }
    staged.commit()?;
    Ok(ExportReport {
        dtype: dtype.name(),
        n_bytes,
        untied: planned.len() > gguf.tensors().len(),
        max_error_over_delta: total.max_error / total.delta_rms(),
        rms_error_over_delta: total.rms_error() / total.delta_rms(),
        merged,
    })
}

fn check(shape: &BaseShape, adapters: &[(&Adapter, f32)], dtype: DType) -> Result<()> {
    let bad = |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
    if !matches!(dtype, DType::F16 | DType::Q8_0) {
        return bad("type", "merged weights are written as F16 or Q8_0");
    }
    if adapters.is_empty() {
        return bad("adapters", "none; give at least one");
    }
    if adapters.iter().any(|(_, weight)| !weight.is_finite()) {
        return bad("adapters", "a weight is not a finite number");
    }
    adapters
        .iter()
        .flat_map(|(adapter, _)| &adapter.modules)
        .try_for_each(|module| module.check(shape))
}

/// The head of the new file, and its tensors in order.
fn plan<'a>(
    gguf: &'a Gguf,
    shape: &BaseShape,
    adapters: &[(&'a Adapter, f32)],
    dtype: DType,
) -> Result<(Vec<u8>, Vec<Planned<'a>>)> {
    let alignment = gguf.find::<u32>("general.alignment")?.map_or(ALIGNMENT, u64::from);
    let mut writer = GgufWriter::new(alignment);
    // The new file is one, whatever the base was.
    for (key, kind, value) in
        gguf.raw_metadata().filter(|(key, ..)| !key.starts_with("split.") && *key != MERGED_KEY)
    {
        writer.key(key, kind, value);
    }
    writer.u32(MERGED_KEY, adapters.len() as u32);
    let loras = |parts: Vec<(ModulePath, Range<usize>)>| -> Loras<'a> {
        let all = adapters.iter().flat_map(|of| parts.iter().map(move |part| (of, part)));
        let module = |(&(adapter, weight), (path, rows)): (&(&'a Adapter, f32), &(_, Range<_>))| {
            Some((adapter.module(*path)?, weight, rows.clone()))
        };
        all.filter_map(module).collect()
    };
    let mut planned: Vec<Planned<'_>> = Vec::new();
    let architecture = gguf.architecture()?;
    for view in gguf.tensors() {
        let parts = view.name.strip_suffix(".weight").map(|path| shape.parts(path));
        let name = gguf_name(architecture, view.name).unwrap_or_else(|| view.name.into());
        planned.push(Planned {
            name,
            view,
            loras: loras(parts.unwrap_or_default()),
            padding: Vec::new(),
        });
    }
    let outside = |target| loras(vec![(ModulePath { layer: None, target }, 0..shape.vocab_size)]);
    let head = outside(Target::LmHead);
    if shape.tie_word_embeddings && !(head.is_empty() && outside(Target::EmbedTokens).is_empty()) {
        let view = gguf.require("model.embed_tokens.weight")?;
        planned.push(Planned {
            name: "output.weight".into(),
            view,
            loras: head,
            padding: Vec::new(),
        });
    }
    for tensor in &mut planned {
        let view = &tensor.view;
        let dtype = if tensor.loras.is_empty() { view.dtype } else { dtype };
        let rows = || Error::InvalidArgument {
            name: "type",
            reason: format!("`{}` has no whole blocks", view.name),
        };
        let n_bytes = dtype.bytes(view.row_len()).ok_or_else(rows)? * view.n_rows();
        tensor.padding = writer.tensor(&tensor.name, view.shape, dtype, n_bytes as u64);
    }
    Ok((writer.head(), planned))
}

/// Hands out a tensor's bytes in pieces, each with its number of weights.
fn pieces(
    tensor: &Planned<'_>,
    dtype: DType,
    write: &mut dyn FnMut(&[u8], usize) -> Result<()>,
) -> Result<Loss> {
    let (view, k) = (tensor.view.in_file_order(), tensor.view.row_len());
    let (rows, at_once) = (view.n_rows(), (PIECE / k).max(1));
    let mut loss = Loss::default();
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let bytes = view.rows(first, count);
        if tensor.loras.is_empty() {
            write(&bytes, count * k)?;
            continue;
        }
        let mut weights = vec![0.0; count * k];
        quant::format(view.dtype).dequantize(&bytes, &mut weights);
        let row = |i: usize| tensor.view.hf_row(first + i);
        let merged =
            merge(&mut weights, k, &tensor.loras, row, dtype, &mut loss).ok_or_else(|| {
                let reason = format!(
                    "with the adapters its weights are too large for {}; lower their weights",
                    dtype.name()
                );
                Error::InvalidTensor { name: tensor.name.clone(), reason }
            })?;
        write(&merged, count * k)?;
    }
    Ok(loss)
}
