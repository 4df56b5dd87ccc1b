//! A GGUF's model as a checkpoint's folder, which transformers loads.

use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use serde::Serialize;
use serde_json::Value;

use super::{CONFIG, INDEX, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS, config};
use crate::base::ModelConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::gguf::Gguf;
use crate::format::safetensors;
use crate::format::staged::Staged;
use crate::quant;
use crate::tokenizer::TokenizerSpec;

/// Weights of a piece, about.
const PIECE: usize = 1 << 20;

/// What was written.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointReport {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Bytes of the weights' file.
    pub n_bytes: u64,
    /// Whether a `tokenizer.json` is among the files: there is none for SentencePiece vocabularies.
    pub tokenizer: bool,
}

/// Writes the model of `gguf` as a checkpoint to `folder`, which is made if it is not there:
/// config, tokenizer and one file of weights in `dtype`, which is F32, F16 or BF16. Files of these
/// names are replaced; each is whole or not there, the config last. `progress` gets weights done
/// and in all.
///
/// Errors: [`Error::InvalidArgument`] for another type, or a folder with another checkpoint's files
/// that would be read in place of these; [`Error::InvalidTensor`] naming a tensor
/// with weights that are not finite or too large for it; [`Error::Unsupported`] for what a
/// `config.json` of a llama can't say; those of [`ModelConfig::from_gguf`]; [`Error::Io`].
pub fn export_checkpoint(
    gguf: &Gguf,
    folder: &Path,
    dtype: DType,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckpointReport> {
    let stored = match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        _ => {
            let reason = "a checkpoint's weights are F32, F16 or BF16".into();
            return Err(Error::InvalidArgument { name: "type", reason });
        }
    };
    let config = ModelConfig::from_gguf(gguf)?;
    config.check_tensors(gguf)?;
    let spec = TokenizerSpec::from_gguf(gguf)?;
    let mut keys = config::write(&config, dtype)?;
    for (key, id) in [("bos_token_id", spec.bos), ("eos_token_id", spec.eos)] {
        keys.insert(key.into(), id.map_or(Value::Null, Value::from));
    }
    let tokenizer = spec.to_tokenizer_json()?;
    refuse_others(folder, tokenizer.is_some())?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut staged = vec![stage(folder, CONFIG, &keys.into())?];
    if let Some(tokenizer) = &tokenizer {
        staged.push(stage(folder, TOKENIZER, tokenizer)?);
        staged.push(stage(folder, TOKENIZER_CONFIG, &spec.to_tokenizer_config())?);
    }
    let names = config.tensors();
    let views = names.iter().map(|(name, _)| gguf.require(name)).collect::<Result<Vec<_>>>()?;
    let path = folder.join(WEIGHTS);
    let (weights, n_bytes) = write_weights(&path, &views, (dtype, stored), progress)?;
    staged.push((path, weights));
    let mut files = Vec::with_capacity(staged.len());
    for (path, staged) in staged.into_iter().rev() {
        staged.commit()?;
        files.push(path);
    }
    Ok(CheckpointReport { files, n_bytes, tokenizer: tokenizer.is_some() })
}

/// That nothing is in the folder that a reader would take in place of what is written.
fn refuse_others(folder: &Path, has_tokenizer: bool) -> Result<()> {
    let own: &[&str] = if has_tokenizer { &[] } else { &[TOKENIZER, TOKENIZER_CONFIG] };
    let others = [INDEX, TEMPLATE].iter().chain(own);
    let Some(other) = others.map(|name| folder.join(name)).find(|path| path.exists()) else {
        return Ok(());
    };
    let reason = format!("{} is of another checkpoint; give another folder", other.display());
    Err(Error::InvalidArgument { name: "folder", reason })
}

/// A JSON file that does not have its name yet.
fn stage(folder: &Path, name: &str, value: &Value) -> Result<(PathBuf, Staged)> {
    let path = folder.join(name);
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::io(&path, e.into()))?;
    let staged = Staged::write(&path, text.as_bytes())?;
    Ok((path, staged))
}

fn write_weights(
    path: &Path,
    views: &[TensorView<'_>],
    (dtype, stored): (DType, Dtype),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Staged, u64)> {
    let infos = views.iter().map(|view| (view.name.to_string(), stored, view.shape.to_vec()));
    let format = [("format".to_string(), "pt".to_string())].into();
    let head = safetensors::head(infos.collect(), format).map_err(|e| Error::InvalidFile {
        path: path.into(),
        reason: format!("its tensors can't be listed ({e})"),
    })?;
    let all = views.iter().map(|view| view.n_weights() as u64).sum();
    let (mut staged, mut n_bytes) = (Staged::write(path, &head)?, head.len() as u64);
    let mut done = 0;
    progress(0, all);
    for view in views {
        let (rows, k) = (view.n_rows(), view.row_len());
        let at_once = (PIECE / k).max(1);
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let mut weights = vec![0.0; count * k];
            quant::format(view.dtype).dequantize(&view.rows(first, count), &mut weights);
            let bytes = quant::quantize(dtype, &weights, None).ok_or_else(|| {
                let reason = format!(
                    "a weight is not a finite number, or too large for {}; take BF16 or F32",
                    dtype.name()
                );
                Error::InvalidTensor { name: view.name.into(), reason }
            })?;
            staged.append(&bytes)?;
            n_bytes += bytes.len() as u64;
            done += weights.len() as u64;
            progress(done, all);
        }
    }
    Ok((staged, n_bytes))
}
