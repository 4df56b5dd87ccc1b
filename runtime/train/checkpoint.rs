//! A training run in a file: safetensors with the factors, the optimiser's states, the cursor and
//! the settings.

mod settings;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::format::safetensors::to_bytes;
use crate::format::staged::Staged;

use super::buffers::Optimizer;
use super::data::{Cursor, TrainLength};
use super::options::TrainOptions;

const FORMAT: &str = "epiphyte.checkpoint.2";
/// Is read, too: it has no hash, and its moments are as old as the run.
const FORMAT_1: &str = "epiphyte.checkpoint.1";
/// The metadata key of the hash of everything else.
const HASH: &str = "blake3";

/// What a run is of: only the same goes on with it.
#[derive(Clone, Copy)]
pub(crate) struct RunId<'a> {
    /// A fingerprint.
    pub(crate) base: &'a str,
    /// A fingerprint.
    pub(crate) data: &'a str,
    pub(crate) options: &'a TrainOptions,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) cursor: Cursor,
    /// The step that the optimiser's moments began after.
    pub(crate) moments_from: u64,
}

/// A checkpoint that has been read, its numbers not yet trusted.
pub(crate) struct Checkpoint {
    pub(crate) position: Position,
    metadata: HashMap<String, String>,
    states: HashMap<String, Vec<f32>>,
}

/// Writes `states`, whole or not at all; without any, all the same where the run stands.
///
/// Errors: [`Error::Io`].
pub(crate) fn write(
    path: &Path,
    states: &[(&str, Vec<f32>)],
    id: RunId<'_>,
    position: Position,
) -> Result<()> {
    let invalid =
        |e: &dyn std::fmt::Display| Error::InvalidFile { path: path.into(), reason: e.to_string() };
    let options = serde_json::to_string(id.options).map_err(|e| invalid(&e))?;
    let cursor = serde_json::to_string(&position.cursor).map_err(|e| invalid(&e))?;
    let values = [
        ("format", FORMAT.to_string()),
        ("base_fingerprint", id.base.to_string()),
        ("data_fingerprint", id.data.to_string()),
        ("options", options),
        ("cursor", cursor),
        ("moments_from", position.moments_from.to_string()),
    ];
    let mut metadata: HashMap<_, _> =
        values.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let bytes =
        |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let data: Vec<_> = states.iter().map(|(name, values)| (*name, bytes(values))).collect();
    metadata.insert(
        HASH.into(),
        hash(&metadata, data.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect()),
    );
    let views = data
        .iter()
        .map(|(name, bytes)| {
            Ok((*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| invalid(&e))?;
    let bytes = to_bytes(views, metadata).map_err(|e| invalid(&e))?;
    Staged::write(path, &bytes)?.commit()
}

/// Of metadata and tensors, in the order of their names.
fn hash(metadata: &HashMap<String, String>, mut tensors: Vec<(&str, &[u8])>) -> String {
    let mut values: Vec<_> = metadata.iter().filter(|(key, _)| *key != HASH).collect();
    values.sort_unstable();
    tensors.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    let values = values.into_iter().map(|(key, value)| (key.as_str(), value.as_bytes()));
    for (name, bytes) in values.chain(tensors) {
        for part in [name.as_bytes(), bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    hasher.finalize().to_hex().to_string()
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
        let format = metadata.get("format").map(String::as_str);
        if ![Some(FORMAT), Some(FORMAT_1)].contains(&format) {
            return Err(invalid(&format!("not a checkpoint of this version ({FORMAT})")));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(&e))?;
        let tensors = file.tensors();
        let found = hash(
            &metadata,
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.data())).collect(),
        );
        let cursor = metadata.get("cursor").and_then(|cursor| serde_json::from_str(cursor).ok());
        let cursor = cursor.ok_or_else(|| invalid(&"its cursor can't be read"))?;
        let moments_from =
            metadata.get("moments_from").and_then(|step| step.parse().ok()).unwrap_or(0);
        let mut states = HashMap::new();
        for (name, tensor) in tensors {
            if tensor.dtype() != Dtype::F32 {
                return Err(invalid(&format!("tensor `{name}` is {:?}, not F32", tensor.dtype())));
            }
            let values: Vec<f32> =
                tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if values.iter().any(|value| !value.is_finite()) {
                return Err(invalid(&format!("tensor `{name}` holds NaN or infinity")));
            }
            states.insert(name, values);
        }
        if format == Some(FORMAT) && metadata.get(HASH) != Some(&found) {
            return Err(invalid(&"damaged: it is not what its hash says"));
        }
        Ok(Self { position: Position { cursor, moments_from }, metadata, states })
    }

    fn field(&self, key: &str) -> &str {
        self.metadata.get(key).map(String::as_str).unwrap_or_default()
    }

    /// When the run that wrote it was to end; `None` if that can't be read.
    pub(crate) fn duration(&self) -> Option<TrainLength> {
        let options: serde_json::Value = serde_json::from_str(self.field("options")).ok()?;
        serde_json::from_value(options.get("duration")?.clone()).ok()
    }

    /// Refuses a checkpoint of something else. The duration may be another.
    ///
    /// Errors: [`Error::BaseMismatch`]; [`Error::InvalidFile`] naming each setting that differs,
    /// and both values.
    pub(crate) fn check(&self, path: &Path, id: RunId<'_>) -> Result<()> {
        if self.field("base_fingerprint") != id.base {
            return Err(Error::BaseMismatch {
                expected: self.field("base_fingerprint").into(),
                got: id.base.into(),
            });
        }
        let differs = |what: &str| {
            let reason = format!("it was made with {what}; resume with the same, or start anew");
            Err(Error::InvalidFile { path: path.into(), reason })
        };
        let settings = settings::differences(self.field("options"), id.options);
        if !settings.is_empty() {
            return differs(&format!("other settings: {}", settings.join("; ")));
        }
        if self.is_of_data(id.data) { Ok(()) } else { differs("other examples") }
    }

    /// Whether it was made with data of this fingerprint.
    pub(crate) fn is_of_data(&self, fingerprint: &str) -> bool {
        self.field("data_fingerprint") == fingerprint
    }

    /// The states in the order of their names, each of `len` numbers.
    ///
    /// Errors: [`Error::InvalidFile`] for one that is missing or of another length.
    pub(crate) fn states(
        &self,
        path: &Path,
        len: usize,
        optimizer: Optimizer,
    ) -> Result<Vec<&[f32]>> {
        let find = |name: &&str| match self.states.get(*name) {
            Some(values) if values.len() == len => Ok(values.as_slice()),
            found => {
                let found = found
                    .map_or("is missing".into(), |values| format!("has {} numbers", values.len()));
                let reason =
                    format!("tensor `{name}` {found}, {len} are needed; the file is damaged");
                Err(Error::InvalidFile { path: path.into(), reason })
            }
        };
        optimizer.state_names().iter().map(find).collect()
    }
}
