//! What quantising lost, kept on the device and added to the next delta (error feedback).

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::invalid;
use super::published::Published;
use super::wire::{Key, read};
use crate::adapter::{FORMAT_KEY, factor_of, tensor_name};
use crate::error::{Error, Result};
use crate::format::safetensors::{SafetensorsFile, floats, to_bytes};
use crate::format::staged::Staged;
use crate::identity::check_format;

const FORMAT: &str = "epiphyte.residual.1";
const ADAPTER: &str = "epiphyte.adapter";
const BASE: &str = "epiphyte.base_fingerprint";

/// What is left over, of one adapter on one base. It is as private as what it was trained on: it
/// stays on the device.
#[derive(Clone, Default, PartialEq)]
pub struct Residual {
    adapter: String,
    base_fingerprint: String,
    pub(super) values: BTreeMap<Key, Vec<f32>>,
}

impl Residual {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a file; nothing when there is none.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] or [`Error::InvalidDelta`] for another file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Ok(Self::new());
        }
        let mut file = SafetensorsFile::new(path, std::io::Cursor::new(read(path)?))?;
        check_format(path, file.metadata(FORMAT_KEY).unwrap_or_default(), FORMAT)?;
        let text = |key| file.metadata(key).unwrap_or_default().to_string();
        let (adapter, base_fingerprint) = (text(ADAPTER), text(BASE));
        let names: Vec<_> = file.tensors().into_iter().map(|(name, _)| name).collect();
        let mut values = BTreeMap::new();
        for name in names {
            let key = factor_of(&name).ok_or_else(|| invalid(name.clone(), "no factor"))?;
            let (dtype, bytes) = file.read(&name)?;
            let numbers = floats(&name, dtype, &bytes)?;
            if !numbers.iter().all(|v| v.is_finite()) {
                return Err(invalid(name, "it holds NaN or infinity; delete the file"));
            }
            values.insert(key, numbers);
        }
        Ok(Self { adapter, base_fingerprint, values })
    }

    /// Writes a file, whole or not at all.
    ///
    /// Errors: [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let tensors: Vec<(_, Vec<u8>)> = self
            .values
            .iter()
            .map(|((module, factor), values)| {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (tensor_name(*module, *factor), bytes)
            })
            .collect();
        let refused =
            |e| Error::InvalidFile { path: path.into(), reason: format!("safetensors: {e}") };
        let views = tensors.iter().map(|(name, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let metadata = [
            (FORMAT_KEY, FORMAT.to_string()),
            (ADAPTER, self.adapter.clone()),
            (BASE, self.base_fingerprint.clone()),
        ];
        let metadata = metadata.into_iter().map(|(key, text)| (key.to_string(), text)).collect();
        Staged::write(path, &to_bytes(views, metadata).map_err(refused)?)?.commit()
    }

    /// Keeps what belongs to an adapter and its base, and drops what does not: on another base, or
    /// at another rank, it means nothing.
    pub(super) fn fit(&mut self, parent: &Published) {
        let manifest = &parent.manifest;
        if self.adapter != manifest.adapter || self.base_fingerprint != manifest.base_fingerprint {
            self.values.clear();
            self.adapter.clone_from(&manifest.adapter);
            self.base_fingerprint.clone_from(&manifest.base_fingerprint);
        }
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl std::fmt::Debug for Residual {
    /// Without the values: they are the user's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Residual({} factors)", self.values.len())
    }
}
