//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors` in a folder, or the tensors
//! alone with the config in their metadata. PEFT's tensor names are mapped here and nowhere else.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo, TensorView};

use super::config::{LoraConfig, MAX_CONFIG_BYTES};
use super::copies::{self, BaseWeights, Copied};
use super::joined::{Linear, join};
use super::module::LoraModule;
use super::parts::{Factor, Found, MANIFEST_KEY, Origin, Parts};
use super::report::{AdapterFormat, Item};
use crate::base::{BaseShape, ModulePath, Target};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format;
use crate::format::gguf::Gguf;
use crate::format::safetensors::{SafetensorsFile, from_f32, is_float, to_bytes};
use crate::format::staged::Staged;
use crate::identity::check_format;

/// File names within a folder.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// Folder of the checkpoints of the training that makes the adapter.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// File that says who trains to the folder, while someone does.
pub(crate) const LOCK: &str = ".lock";
const TENSORS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
/// Keys of the tensor file's metadata.
pub(crate) const CONFIG_KEY: &str = "epiphyte.adapter_config";
pub(crate) const FINGERPRINT_KEY: &str = "epiphyte.base_fingerprint";
/// Where a file of either kind says what we call its format; files of others do not.
pub(crate) const FORMAT_KEY: &str = "epiphyte.format";
pub(crate) const FORMAT: &str = "epiphyte.adapter.1";
/// What PEFT's wrappers put before a module's path.
const PREFIX: &str = "base_model.model.";

/// A PEFT folder and the files that are written in it.
pub fn files_of(dir: &Path) -> [PathBuf; 3] {
    [dir.into(), dir.join(CONFIG), dir.join(TENSORS)]
}

/// Opens a folder's config and tensors.
pub(crate) fn open_folder(
    dir: &Path,
) -> Result<(Vec<u8>, SafetensorsFile<impl Read + Seek + use<>>)> {
    let invalid = |reason: &str| Error::InvalidFile { path: dir.into(), reason: reason.into() };
    let has = |name: &str| dir.join(name).is_file();
    if !has(CONFIG) {
        return Err(invalid("no adapter_config.json in it; give the folder that PEFT saved"));
    }
    if !has(TENSORS) && has(PICKLE) {
        return Err(invalid(
            "adapter_model.bin is a Python pickle, which can run code; save it as safetensors",
        ));
    }
    if !has(TENSORS) {
        return Err(invalid("no adapter_model.safetensors in it; give the folder that PEFT saved"));
    }
    let path = dir.join(CONFIG);
    let mut config = Vec::new();
    // One byte too many, for the parser to notice.
    let mut limited = format::open(&path)?.take(MAX_CONFIG_BYTES as u64 + 1);
    limited.read_to_end(&mut config).map_err(|e| Error::io(&path, e))?;
    Ok((config, SafetensorsFile::open(&dir.join(TENSORS))?))
}

/// The config that a tensor file carries in its metadata.
///
/// Errors: [`Error::InvalidFile`] when it carries none.
pub(crate) fn config_inside<R: Read + Seek>(
    path: &Path,
    file: &SafetensorsFile<R>,
) -> Result<Vec<u8>> {
    let config = file.metadata(CONFIG_KEY).map(|text| text.as_bytes().to_vec());
    let reason = || {
        format!(
            "it carries no config in its metadata (`{CONFIG_KEY}`); give the folder with {CONFIG}"
        )
    };
    config.ok_or_else(|| Error::InvalidFile { path: path.into(), reason: reason() })
}

/// What is in the files, numbers apart.
pub(crate) fn parts<R: Read + Seek>(
    config: &[u8],
    file: &SafetensorsFile<R>,
    shape: &BaseShape,
) -> Result<Parts> {
    file.metadata(FORMAT_KEY).map_or(Ok(()), |found| check_format(file.path(), found, FORMAT))?;
    let (config, keys) = LoraConfig::parse(config)?;
    let (mut found, mut others, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for (name, info) in file.tensors() {
        match tensor(&name, info, shape) {
            Kind::Factor(of) => found.extend(of),
            Kind::Copy(copy) => copies.push(copy),
            Kind::Other(item) => others.push(item),
        }
    }
    let [base_fingerprint, manifest] =
        [FINGERPRINT_KEY, MANIFEST_KEY].map(|key| file.metadata(key).map(String::from));
    let (format, n_bytes) = (AdapterFormat::Peft, file.n_bytes());
    Ok(Parts { format, config, keys, found, others, copies, base_fingerprint, manifest, n_bytes })
}

/// What a tensor is.
enum Kind {
    /// Of one module, or of each that the linear of the file holds.
    Factor(Vec<Found>),
    Copy(Copied),
    /// Judged at once.
    Other(Item),
}

fn tensor(name: &str, info: &TensorInfo, shape: &BaseShape) -> Kind {
    let refused = |reason: String| Kind::Other(Item::refused(name, reason));
    let inner = name.strip_prefix(PREFIX).unwrap_or(name);
    if let Some(copy) = copied(name, inner) {
        return match info.shape == [shape.vocab_size, shape.hidden_size] {
            true if is_float(info.dtype) => Kind::Copy(copy),
            true => refused(not_float(info.dtype)),
            false => refused(
                "the vocabulary was resized in training; train with the base's own tokens".into(),
            ),
        };
    }
    let linear = spelled(inner).filter(|(path, _)| !shape.parts(path).is_empty());
    let Some((path, factor)) = linear else {
        let reason = match inner {
            _ if inner.contains("lora_magnitude_vector") => {
                "DoRA is not supported; merge it into a plain LoRA first"
            }
            _ if inner.ends_with(".bias") => {
                "biases are not supported; train with bias none and without lora_bias"
            }
            _ if inner.contains(".lora_") => {
                "the base has no such module that takes LoRA; it was made for another"
            }
            _ => "it would replace a part of the base, which is frozen; train LoRA only",
        };
        return refused(reason.into());
    };
    match *info.shape {
        _ if !is_float(info.dtype) => refused(not_float(info.dtype)),
        [rows, columns] => match Found::of(name, path, factor, [rows, columns], shape) {
            of if of.is_empty() => {
                refused(format!("{rows} rows are not those of the base's linears"))
            }
            of => Kind::Factor(of),
        },
        _ => refused(format!("its shape is {:?}; a matrix is needed", info.shape)),
    }
}

fn not_float(dtype: Dtype) -> String {
    format!("its type is {dtype:?}; F32, F16, BF16 and F64 are supported")
}

/// Whether it is the embedding's or the head's own weights, which PEFT saves along when they are
/// targeted, when the vocabulary was resized, or when it is asked to (`save_embedding_layers`).
fn copied(name: &str, inner: &str) -> Option<Copied> {
    let (module, is_base_layer) = match inner.strip_suffix(".base_layer.weight") {
        Some(module) => (module, true),
        None => (inner.strip_suffix(".weight")?, false),
    };
    let path = ModulePath::parse(module).filter(|path| path.layer.is_none())?;
    Some(Copied { name: name.into(), path, is_base_layer })
}

/// Judges a copy: without effect where it equals the base's, refused where it does not.
///
/// Errors: as [`SafetensorsFile::read_rows`] and [`Gguf::open`].
pub(crate) fn judge_copy<R: Read + Seek>(
    file: &mut SafetensorsFile<R>,
    copy: &Copied,
    weights: BaseWeights<'_>,
) -> Result<Item> {
    let name = copy.name.as_str();
    let opened;
    let gguf = match weights {
        BaseWeights::Open(gguf) => gguf,
        BaseWeights::File(path) => {
            opened = Gguf::open(path)?;
            &opened
        }
        BaseWeights::Compared => {
            return Ok(Item::ignored(name, "a copy of the base's weights, compared before"));
        }
        BaseWeights::Unknown if copy.is_base_layer => {
            let reason = "a copy of the base's frozen weights; those of the loaded base are used";
            return Ok(Item::ignored(name, reason));
        }
        BaseWeights::Unknown => {
            let reason = "it may replace a part of the base, which is frozen, and there is no \
                model file to compare it \
                          with; save without save_embedding_layers";
            return Ok(Item::refused(name, reason));
        }
    };
    let base = copy.original(gguf)?;
    Ok(match copies::equals(&base, &mut |rows| file.read_rows(name, rows))? {
        true => Item::ignored(
            name,
            format!(
                "a copy of the base's weights: equal within the rounding of {}",
                base.dtype.name()
            ),
        ),
        false => Item::refused(
            name,
            "it differs from the base's and would replace it, but the base is frozen; train LoRA \
            only (no new tokens), or \
             merge it into the base and convert that",
        ),
    })
}

/// The factor that a tensor is, by its name.
pub(crate) fn factor_of(name: &str) -> Option<(ModulePath, Factor)> {
    factor(name.strip_prefix(PREFIX).unwrap_or(name))
}

fn factor(name: &str) -> Option<(ModulePath, Factor)> {
    let (module, factor) = spelled(name)?;
    Some((ModulePath::parse(module)?, factor))
}

/// `<module>.lora_A.weight` or `<module>.lora_embedding_A`, perhaps with the adapter's name after
/// the A.
fn spelled(name: &str) -> Option<(&str, Factor)> {
    let (module, rest) = name.split_once(".lora_")?;
    let rest: Vec<_> = rest.split('.').collect();
    let path = ModulePath::parse(module);
    let embedding = path.is_some_and(|path| path.target == Target::EmbedTokens);
    let factor = match (embedding, rest.as_slice()) {
        (false, ["A", "weight"] | ["A", _, "weight"])
        | (true, ["embedding_A"] | ["embedding_A", _]) => Factor::A,
        (false, ["B", "weight"] | ["B", _, "weight"])
        | (true, ["embedding_B"] | ["embedding_B", _]) => Factor::B,
        _ => return None,
    };
    Some((module, factor))
}

/// What a factor is called in a file.
pub(crate) fn tensor_name(path: ModulePath, factor: Factor) -> String {
    name_in(&path.to_string(), path.target, factor)
}

/// The same by the path in the file.
fn name_in(path: &str, target: Target, factor: Factor) -> String {
    match target {
        Target::EmbedTokens => format!("{PREFIX}{path}.lora_embedding_{factor:?}"),
        _ => format!("{PREFIX}{path}.lora_{factor:?}.weight"),
    }
}

/// Writes a folder. The config goes first out and last in, so that no crash leaves one beside
/// tensors it is not for.
///
/// Errors: [`Error::Io`]; [`Error::InvalidAdapter`] for a module whose numbers `dtype` can't hold.
pub(crate) fn save(
    dir: &Path,
    config: &LoraConfig,
    modules: &[LoraModule],
    origin: Origin<'_>,
    dtype: DType,
    shape: &BaseShape,
) -> Result<()> {
    let (config, linears) = join(config, modules, shape);
    let json = config.to_json();
    let bytes = encode(dir, &json, &linears, origin, dtype)?;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let (old, tensors) = (dir.join(CONFIG), dir.join(TENSORS));
    let (staged_tensors, staged_config) =
        (Staged::write(&tensors, &bytes)?, Staged::write(&old, json.as_bytes())?);
    if old.exists() && std::fs::read(&old).map_err(|e| Error::io(&old, e))? != json.as_bytes() {
        std::fs::remove_file(&old).map_err(|e| Error::io(&old, e))?;
    }
    staged_tensors.commit()?;
    staged_config.commit()
}

/// That an adapter may be written to `dir`.
///
/// Errors: [`Error::InvalidFile`] when it exists and is neither empty nor an adapter's;
/// [`Error::Io`].
pub(crate) fn check_folder(dir: &Path) -> Result<()> {
    let invalid =
        |reason: &str| Err(Error::InvalidFile { path: dir.into(), reason: reason.into() });
    if !dir.exists() {
        return Ok(());
    }
    if !dir.is_dir() {
        return invalid("a file has that name; give a folder");
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    if !is_adapter(dir) && entries.flatten().any(|entry| !is_ours(&entry.file_name())) {
        return invalid(
            "the folder holds something that is no adapter; give an empty or a new one",
        );
    }
    Ok(())
}

/// Whether saving or training leaves it in a folder before there is a config: a crash may have kept
/// it from that.
fn is_ours(name: &std::ffi::OsStr) -> bool {
    is_staged(name) || name == TENSORS || name == CHECKPOINTS || name == LOCK
}

/// Whether it is what a crash left of a file on its way into a folder.
pub(crate) fn is_staged(name: &std::ffi::OsStr) -> bool {
    [CONFIG, TENSORS].iter().any(|file| Staged::is_of(file, name))
}

/// Whether the folder's config says it is a PEFT adapter.
fn is_adapter(dir: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(dir.join(CONFIG))
        .and_then(|file| file.take(MAX_CONFIG_BYTES as u64).read_to_end(&mut text));
    let config = read.ok().and_then(|_| serde_json::from_slice::<serde_json::Value>(&text).ok());
    config.is_some_and(|config| config.get("peft_type").is_some())
}

fn encode(
    dir: &Path,
    json: &str,
    linears: &[Linear<'_>],
    origin: Origin<'_>,
    dtype: DType,
) -> Result<Vec<u8>> {
    let element = if dtype == DType::F16 { Dtype::F16 } else { Dtype::F32 };
    let mut data = Vec::new();
    for (path, module) in linears {
        let (r, too_large) = (module.rank, || too_large(module, dtype));
        for (factor, values) in [(Factor::A, &module.a), (Factor::B, &module.b)] {
            let width = values.len() / r.max(1);
            let shape = if factor == Factor::A { vec![r, width] } else { vec![width, r] };
            let bytes = from_f32(dtype, values).ok_or_else(too_large)?;
            data.push((name_in(path, module.path.target, factor), shape, bytes));
        }
    }
    let mut metadata = HashMap::from([
        ("format".into(), "pt".into()),
        (FORMAT_KEY.into(), FORMAT.into()),
        (CONFIG_KEY.into(), json.into()),
    ]);
    let origin = [(FINGERPRINT_KEY, origin.fingerprint), (MANIFEST_KEY, origin.manifest)];
    metadata
        .extend(origin.iter().filter_map(|(key, text)| Some((key.to_string(), (*text)?.into()))));
    let invalid = |e| Error::InvalidFile { path: dir.into(), reason: format!("safetensors: {e}") };
    let views = data.iter().map(|(name, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(element, shape.clone(), bytes)?))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    to_bytes(views, metadata).map_err(invalid)
}

/// Why a module can't be written in a type.
pub(crate) fn too_large(module: &LoraModule, dtype: DType) -> Error {
    let reason = match dtype {
        DType::F32 | DType::F16 => {
            format!("its numbers are too large for {}; save it as F32", dtype.name())
        }
        other => format!("adapters are saved as F32 or F16, not {}", other.name()),
    };
    Error::InvalidAdapter { what: module.path.to_string(), reason }
}
