//! llama.cpp's LoRA files: GGUF with `general.type = adapter` and a pair `<tensor>.lora_a`,
//! `<tensor>.lora_b` a module.
//!
//! Three things differ from PEFT. The rows of q's and k's B are interleaved, like those of the
//! base's q and k. The A of `token_embd` is transposed, `[V, r]`. There is one alpha a file,
//! divided by each pair's rank; none or 0 means a scaling of 1. So a module whose scaling the
//! file's alpha can't express has its factor multiplied into B on the way out (exact when the
//! factor is a power of two, else B is rounded once).
//!
//! Factors are read in every type that weights may have; `--outtype q8_0` makes `Q8_0`.
//!
//! Sources: `llama-adapter.cpp` and `convert_lora_to_gguf.py` of llama.cpp.

use std::collections::BTreeSet;
use std::path::Path;

use super::config::{LoraConfig, Modules};
use super::joined::{Linear, join};
use super::module::LoraModule;
use super::parts::{Factor, Found, MANIFEST_KEY, Origin, Parts};
use super::peft::{FINGERPRINT_KEY, FORMAT, FORMAT_KEY, too_large};
use super::report::{AdapterFormat, Item};
use crate::base::{BaseShape, ModulePath, Target};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::gguf::{Gguf, Value, gguf_name, hf_name_in, interleaves};
use crate::format::gguf_writer::{ALIGNMENT, GgufWriter};
use crate::format::safetensors::from_f32;
use crate::format::staged::Staged;
use crate::identity::check_format;

const ALPHA: &str = "adapter.lora.alpha";

/// Whether the file says that it is an adapter.
pub(crate) fn is_adapter(gguf: &Gguf) -> bool {
    gguf.find::<&str>("general.type").is_ok_and(|kind| kind == Some("adapter"))
}

/// What is in the file, numbers apart.
pub(crate) fn parts(gguf: &Gguf, shape: &BaseShape) -> Result<Parts> {
    gguf.find(FORMAT_KEY)?.map_or(Ok(()), |found| check_format(gguf.path(), found, FORMAT))?;
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for view in gguf.tensors() {
        match tensor(&view, shape) {
            Ok(of) => found.extend(of),
            Err(reason) => others.push(Item::refused(view.name, reason)),
        }
    }
    let keys = gguf.metadata().map(|(key, value)| judge(key, value)).collect();
    let expect = |key: &str, expected: &str| match gguf.find::<&str>(key)? {
        Some(found) if found == expected => Ok(()),
        found => {
            let found = found.map_or("nothing".into(), |found| {
                format!("`{}`", found.chars().take(64).collect::<String>())
            });
            let reason = format!(
                "`{expected}` is needed, found {found}; give a LoRA adapter made for a llama"
            );
            Err(Error::InvalidMetadata { key: key.into(), reason })
        }
    };
    expect("general.type", "adapter")?;
    expect("adapter.type", "lora")?;
    expect("general.architecture", shape.architecture.family().gguf)?;
    let alpha = gguf.find::<f32>(ALPHA)?.unwrap_or(0.0);
    if !alpha.is_finite() {
        return Err(Error::InvalidMetadata {
            key: ALPHA.into(),
            reason: format!("{alpha} is no number"),
        });
    }
    let base_fingerprint = gguf.find::<&str>(FINGERPRINT_KEY)?.map(String::from);
    let (config, n_bytes) = (config(&found, alpha, shape), gguf.n_bytes());
    let manifest = gguf.find::<&str>(MANIFEST_KEY)?.map(String::from);
    let (format, copies) = (AdapterFormat::Gguf, Vec::new());
    Ok(Parts { format, config, keys, found, others, copies, base_fingerprint, manifest, n_bytes })
}

fn judge(key: &str, value: Value<'_>) -> Item {
    let name: String = key.chars().take(64).collect();
    match key {
        "general.type"
        | "general.architecture"
        | "adapter.type"
        | ALPHA
        | FINGERPRINT_KEY
        | FORMAT_KEY
        | MANIFEST_KEY => Item::matched(name),
        "adapter.alora.invocation_tokens" if matches!(value, Value::Array(tokens) if tokens.is_empty()) => {
            Item::ignored(name, "off")
        }
        "adapter.alora.invocation_tokens" => Item::refused(
            name,
            "activated LoRA switches on in the middle of a prompt; train a plain LoRA",
        ),
        _ if key.starts_with("adapter.") => {
            Item::refused(name, "unknown, and it may change what the adapter computes")
        }
        _ => Item::ignored(name, "describes the file or the base"),
    }
}

/// Which factor a tensor is, of which modules, and its shape as PEFT has it; or why it is none.
fn tensor(view: &TensorView<'_>, shape: &BaseShape) -> Result<Vec<Found>, String> {
    let name = view.name;
    let (base, factor) = match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
        (Some(base), _) => (base, Factor::A),
        (_, Some(base)) => (base, Factor::B),
        _ => return Err(
            "neither a lora_a nor a lora_b; it would replace a part of the base, which is frozen"
                .into(),
        ),
    };
    let of = shape.architecture.family().gguf;
    let path = hf_name_in(of, base).and_then(|hf| hf.strip_suffix(".weight").map(String::from));
    let path = path.filter(|path| !shape.parts(path).is_empty());
    let path =
        path.ok_or("the base has no such module that takes LoRA; it was made for another")?;
    let transposed = shape.parts(&path).iter().any(|&(path, _)| is_transposed(path, factor));
    let sizes = match *view.shape {
        [tokens, rank] if transposed => [rank, tokens],
        [rows, columns] => [rows, columns],
        _ => return Err(format!("its shape is {:?}; a matrix is needed", view.shape)),
    };
    match Found::of(name, &path, factor, sizes, shape) {
        of if of.is_empty() => {
            Err(format!("{} rows are not those of the base's linears", sizes[0]))
        }
        of => Ok(of),
    }
}

fn is_transposed(path: ModulePath, factor: Factor) -> bool {
    path.target == Target::EmbedTokens && factor == Factor::A
}

/// The config that says of PEFT's modules what the file says of llama.cpp's.
fn config(found: &[Found], alpha: f32, shape: &BaseShape) -> LoraConfig {
    let rank = |tensor: &Found| tensor.shape[tensor.factor as usize].max(1);
    let mut ranks: Vec<_> = found.iter().map(|tensor| (tensor.path, rank(tensor))).collect();
    ranks.sort_unstable();
    ranks.dedup_by_key(|(path, _)| *path);
    let r = ranks.first().map_or(1, |&(_, r)| r);
    let others = || {
        ranks.iter().filter(|&&(_, rank)| rank != r).map(|&(path, rank)| (path.to_string(), rank))
    };
    let unscaled = alpha == 0.0;
    LoraConfig {
        r,
        lora_alpha: if unscaled { r as f64 } else { alpha.into() },
        rank_pattern: others().collect(),
        alpha_pattern: others()
            .filter(|_| unscaled)
            .map(|(path, rank)| (path, rank as f64))
            .collect(),
        target_modules: Modules::Names(names(ranks.iter().map(|&(path, _)| path), shape)),
        ..LoraConfig::default()
    }
}

/// `q_proj` and the like where every layer has it, else full paths.
fn names(paths: impl Iterator<Item = ModulePath>, shape: &BaseShape) -> Vec<String> {
    let paths: BTreeSet<_> = paths.collect();
    let targets: BTreeSet<_> = paths.iter().map(|path| path.target).collect();
    let all = shape.modules().filter(|path| targets.contains(&path.target));
    if all.eq(paths.iter().copied()) {
        targets.iter().map(|target| target.name().into()).collect()
    } else {
        paths.iter().map(ModulePath::to_string).collect()
    }
}

/// Reads a factor that [`parts`] found and whose shape was checked.
pub(crate) fn read(gguf: &Gguf, found: &Found, shape: &BaseShape) -> Result<Vec<f32>> {
    let view = gguf.require(&found.name)?;
    let interleaved = interleaved(found.path, found.factor, shape)?;
    let values = view.interleaved(interleaved).to_f32();
    let transposed = is_transposed(found.path, found.factor);
    Ok(if transposed { transpose(&values, found.shape[1]) } else { values })
}

/// Rows of a head, for a factor whose rows llama files interleave.
fn interleaved(path: ModulePath, factor: Factor, shape: &BaseShape) -> Result<Option<usize>> {
    if !interleaves(shape.architecture.family().gguf) {
        return Ok(None);
    }
    let heads = match path.target {
        Target::QProj if factor == Factor::B => shape.num_attention_heads,
        Target::KProj if factor == Factor::B => shape.num_key_value_heads,
        _ => return Ok(None),
    };
    let [rows, _] = shape.shape(path.target);
    let head =
        rows.checked_div(heads).filter(|head| head % 2 == 0 && head * heads == rows && *head > 0);
    let reason =
        || format!("{rows} rows of {path} can't be split into {heads} heads of an even size");
    head.map(Some).ok_or_else(|| Error::InvalidArgument { name: "shape", reason: reason() })
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len().checked_div(rows).unwrap_or(0);
    (0..columns).flat_map(|j| (0..rows).map(move |i| values[i * columns + j])).collect()
}

/// Writes a file that llama.cpp loads beside a GGUF of the same base.
///
/// Errors: [`Error::Io`]; [`Error::Unsupported`] for LoRA on the embedding or the head of a base
/// where they are one, which llama.cpp can't load; [`Error::InvalidAdapter`] for a module whose
/// numbers `dtype` can't hold.
pub(crate) fn save(
    path: &Path,
    modules: &[LoraModule],
    origin: Origin<'_>,
    (alpha, shape, dtype): (f64, &BaseShape, DType),
) -> Result<()> {
    if let Some(module) =
        modules.iter().find(|m| m.path.layer.is_none() && shape.tie_word_embeddings)
    {
        let what =
            format!("LoRA on {} of a base with tied embeddings, in a GGUF file,", module.path);
        return Err(Error::Unsupported {
            what,
            hint: "llama.cpp can't load it; save a PEFT folder".into(),
        });
    }
    // The config is not this format's.
    let (_, linears) = join(&LoraConfig::default(), modules, shape);
    let alpha = file_alpha(&linears, alpha);
    let (mut writer, mut data) = (GgufWriter::new(ALIGNMENT), Vec::new());
    let architecture = shape.architecture.family().gguf;
    writer
        .text("general.architecture", architecture)
        .text("general.type", "adapter")
        .text("adapter.type", "lora")
        .text(FORMAT_KEY, FORMAT);
    writer.f32(ALPHA, alpha).u32("general.file_type", u32::from(dtype == DType::F16));
    for (key, text) in [(FINGERPRINT_KEY, origin.fingerprint), (MANIFEST_KEY, origin.manifest)] {
        if let Some(text) = text {
            writer.text(key, text);
        }
    }
    for (path, module) in &linears {
        for factor in [Factor::A, Factor::B] {
            let (values, shape) = encode(module, factor, alpha, shape)?;
            let bytes = from_f32(dtype, &values).ok_or_else(|| too_large(module, dtype))?;
            let unnamed = || Error::MissingTensor { name: path.clone() };
            let base = gguf_name(architecture, &format!("{path}.weight")).ok_or_else(unnamed)?;
            let suffix = if factor == Factor::A { "lora_a" } else { "lora_b" };
            let padding =
                writer.tensor(&format!("{base}.{suffix}"), &shape, dtype, bytes.len() as u64);
            data.extend([bytes, padding]);
        }
    }
    let mut staged = Staged::write(path, &writer.head())?;
    data.iter().try_for_each(|bytes| staged.append(bytes))?;
    staged.commit()
}

/// llama.cpp's scaling of a rank.
fn scaling(alpha: f32, rank: usize) -> f32 {
    alpha / rank as f32
}

/// The alpha that gives most modules their scaling: the config's if it does as well as any.
fn file_alpha(linears: &[Linear<'_>], alpha: f64) -> f32 {
    let own = linears.iter().map(|(_, module)| module.scaling * module.rank as f32);
    let mut candidates: Vec<_> = std::iter::once(alpha as f32).chain(own).collect();
    candidates.retain(|alpha| alpha.is_normal());
    candidates.dedup();
    let fits = |alpha: f32| {
        linears.iter().filter(|(_, module)| scaling(alpha, module.rank) == module.scaling).count()
    };
    // The last of the best, so the config's is asked last.
    candidates.into_iter().rev().max_by_key(|&alpha| fits(alpha)).unwrap_or(1.0)
}

/// A factor's numbers in the file's order, and its shape there.
fn encode(
    module: &LoraModule,
    factor: Factor,
    alpha: f32,
    shape: &BaseShape,
) -> Result<(Vec<f32>, [usize; 2])> {
    let rank = module.rank;
    if factor == Factor::A {
        let width = module.a.len() / rank.max(1);
        return Ok(match is_transposed(module.path, factor) {
            true => (transpose(&module.a, rank), [width, rank]),
            false => (module.a.clone(), [rank, width]),
        });
    }
    let mut b = module.b.clone();
    if scaling(alpha, rank) != module.scaling {
        let multiple = f64::from(module.scaling) * rank as f64 / f64::from(alpha);
        b.iter_mut().for_each(|v| *v = (f64::from(*v) * multiple) as f32);
    }
    let rows = b.len() / rank.max(1);
    if let Some(head) = interleaved(module.path, factor, shape)? {
        let plain = b.clone();
        // Row `half * head/2 + i` of a head goes to `2 i + half`.
        for (row, values) in plain.chunks_exact(rank).enumerate() {
            let (first, at) = (row - row % head, row % head);
            let to = first + 2 * (at % (head / 2)) + at / (head / 2);
            b[to * rank..][..rank].copy_from_slice(values);
        }
    }
    Ok((b, [rows, rank]))
}
