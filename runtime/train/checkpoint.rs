//! A training run in a file: safetensors with the factors, the optimiser's states, the cursor and
//! the settings.

mod settings;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::base::fingerprint;
use crate::error::{Error, Result};
use crate::format::safetensors::to_bytes;
use crate::format::staged::Staged;
use crate::identity::{self, Identity, check_format, sha256};
use crate::parallel;

use super::buffers::StateVector;
use super::data::{Cursor, TrainLength};
use super::options::TrainOptions;

const FORMAT: &str = "epiphyte.checkpoint.3";
/// The metadata key of the name of everything else.
const DIGEST: &str = "digest";

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
    let cursor = serde_json::to_string(&position.cursor).map_err(|e| invalid(&e))?;
    let values = [
        ("format", FORMAT.to_string()),
        ("base_fingerprint", id.base.to_string()),
        ("data_fingerprint", id.data.to_string()),
        ("options", settings::text(id.options)),
        ("cursor", cursor),
        ("moments_from", position.moments_from.to_string()),
    ];
    let mut metadata: HashMap<_, _> =
        values.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let bytes =
        |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let data: Vec<_> = states.iter().map(|(name, values)| (*name, bytes(values))).collect();
    let named = digest(&metadata, data.iter().map(|(name, bytes)| (*name, bytes.as_slice())));
    metadata.insert(DIGEST.into(), named);
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

/// Names metadata and tensors, each of which is a row of f32.
fn digest<'a>(
    metadata: &HashMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> String {
    let mut identity = Identity::new(FORMAT);
    for (key, value) in metadata.iter().filter(|(key, _)| *key != DIGEST) {
        identity.add(format!("metadata.{key}"), value);
    }
    let hashed =
        parallel::map(tensors.collect(), |(name, bytes)| (name, bytes.len(), sha256([bytes])));
    for (name, len, hash) in hashed {
        identity.add(format!("tensor.{name}"), identity::tensor("F32", &[len / 4], hash));
    }
    identity.name()
}

impl Checkpoint {
    /// Reads and checks a file.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`]; [`Error::FormatVersion`].
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let invalid = |reason: &dyn std::fmt::Display| Error::InvalidFile {
            path: path.into(),
            reason: format!("{reason}; give a checkpoint that training wrote"),
        };
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| invalid(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        check_format(path, metadata.get("format").map_or("", String::as_str), FORMAT)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(&e))?;
        let tensors = file.tensors();
        let named =
            digest(&metadata, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.data())));
        let cursor = metadata.get("cursor").and_then(|cursor| serde_json::from_str(cursor).ok());
        let cursor = cursor.ok_or_else(|| invalid(&"its cursor can't be read"))?;
        let moments_from = metadata.get("moments_from").and_then(|step| step.parse().ok());
        let moments_from = moments_from.ok_or_else(|| invalid(&"its moments have no beginning"))?;
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
        if metadata.get(DIGEST) != Some(&named) {
            return Err(invalid(&"damaged: it is not what its digest says"));
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
    /// Errors: as [`fingerprint::check`]; [`Error::InvalidFile`] naming each setting that differs,
    /// and both values.
    pub(crate) fn check(&self, path: &Path, id: RunId<'_>) -> Result<()> {
        fingerprint::check(self.field("base_fingerprint"), id.base)?;
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

    /// The numbers of `vectors`, with their names.
    ///
    /// Errors: [`Error::InvalidFile`] for one that is missing or of another length.
    pub(crate) fn states<'v>(
        &self,
        path: &Path,
        vectors: impl IntoIterator<Item = &'v StateVector>,
    ) -> Result<Vec<(&'static str, &[f32])>> {
        let find = |&StateVector { name, len, .. }: &StateVector| match self.states.get(name) {
            Some(values) if values.len() == len => Ok((name, values.as_slice())),
            found => {
                let found = found
                    .map_or("is missing".into(), |values| format!("has {} numbers", values.len()));
                let reason =
                    format!("tensor `{name}` {found}, {len} are needed; the file is damaged");
                Err(Error::InvalidFile { path: path.into(), reason })
            }
        };
        vectors.into_iter().map(find).collect()
    }
}
