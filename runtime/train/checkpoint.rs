//! A training run in a file: safetensors with the factors, the optimiser's states, the cursor and the settings.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::format::safetensors::to_bytes;
use crate::format::staged::Staged;

use super::buffers::Optimizer;
use super::data::Cursor;
use super::options::TrainOptions;

const FORMAT: &str = "epiphyte.checkpoint.1";

/// A checkpoint that has been read, its numbers not yet trusted.
pub(crate) struct Checkpoint {
    pub(crate) cursor: Cursor,
    metadata: HashMap<String, String>,
    states: HashMap<String, Vec<f32>>,
}

/// The buffers that a run's state is in.
pub(crate) fn state_names(optimizer: Optimizer) -> Vec<&'static str> {
    match optimizer {
        Optimizer::Sgd => vec!["adapter.params"],
        Optimizer::Momentum => vec!["adapter.params", "adapter.m"],
        Optimizer::AdamW => vec!["adapter.params", "adapter.m", "adapter.v"],
    }
}

/// Writes `states`, whole or not at all.
///
/// Errors: [`Error::Io`].
pub(crate) fn write(
    path: &Path,
    states: &[(&str, Vec<f32>)],
    (base, options, data): (&str, &TrainOptions, &str),
    cursor: Cursor,
) -> Result<()> {
    let invalid = |e: &dyn std::fmt::Display| Error::InvalidFile { path: path.into(), reason: e.to_string() };
    let metadata = HashMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("base_fingerprint".to_string(), base.to_string()),
        ("data_fingerprint".to_string(), data.to_string()),
        ("options".to_string(), serde_json::to_string(options).map_err(|e| invalid(&e))?),
        ("cursor".to_string(), serde_json::to_string(&cursor).map_err(|e| invalid(&e))?),
    ]);
    let view = |(name, values): &(&str, Vec<f32>)| -> Result<(String, Vec<u8>, usize)> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(((*name).to_string(), bytes, values.len()))
    };
    let data = states.iter().map(view).collect::<Result<Vec<_>>>()?;
    let views = data
        .iter()
        .map(|(name, bytes, len)| Ok((name.as_str(), TensorView::new(Dtype::F32, vec![*len], bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| invalid(&e))?;
    let bytes = to_bytes(views, metadata).map_err(|e| invalid(&e))?;
    Staged::write(path, &bytes)?.commit()
}

impl Checkpoint {
    /// Reads and checks a file.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let invalid = |reason: &dyn std::fmt::Display| Error::InvalidFile {
            path: path.into(),
            reason: format!("{reason}; give a checkpoint that training wrote"),
        };
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| invalid(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(invalid(&format!("not a checkpoint of this version ({FORMAT})")));
        }
        let cursor = metadata.get("cursor").and_then(|cursor| serde_json::from_str(cursor).ok());
        let cursor = cursor.ok_or_else(|| invalid(&"its cursor can't be read"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(&e))?;
        let mut states = HashMap::new();
        for (name, tensor) in file.tensors() {
            if tensor.dtype() != Dtype::F32 {
                return Err(invalid(&format!("tensor `{name}` is {:?}, not F32", tensor.dtype())));
            }
            let values: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if values.iter().any(|value| !value.is_finite()) {
                return Err(invalid(&format!("tensor `{name}` holds NaN or infinity")));
            }
            states.insert(name, values);
        }
        Ok(Self { cursor, metadata, states })
    }

    /// Refuses a checkpoint of something else.
    ///
    /// Errors: [`Error::BaseMismatch`]; [`Error::InvalidFile`] naming what differs.
    pub(crate) fn check(&self, path: &Path, base: &str, options: &TrainOptions, data: &str) -> Result<()> {
        let field = |key: &str| self.metadata.get(key).map(String::as_str).unwrap_or_default();
        if field("base_fingerprint") != base {
            return Err(Error::BaseMismatch { expected: field("base_fingerprint").into(), got: base.into() });
        }
        let differs = |what: &str| {
            let reason = format!("it was made with {what}; resume with the same, or start anew");
            Err(Error::InvalidFile { path: path.into(), reason })
        };
        if field("data_fingerprint") != data {
            return differs("other examples");
        }
        match serde_json::from_str::<TrainOptions>(field("options")) {
            Ok(made_with) if made_with == *options => Ok(()),
            _ => differs("other settings"),
        }
    }

    /// The states by the name of their buffer, each of `len` numbers.
    ///
    /// Errors: [`Error::InvalidFile`] for one that is missing or of another length.
    pub(crate) fn states(&self, path: &Path, len: usize, optimizer: Optimizer) -> Result<Vec<(String, &[f32])>> {
        let find = |name: &str| match self.states.get(name) {
            Some(values) if values.len() == len => Ok((name.to_string(), values.as_slice())),
            found => {
                let found = found.map_or("is missing".into(), |values| format!("has {} numbers", values.len()));
                let reason = format!("tensor `{name}` {found}, {len} are needed; the file is damaged");
                Err(Error::InvalidFile { path: path.into(), reason })
            }
        };
        state_names(optimizer).into_iter().map(find).collect()
    }
}
