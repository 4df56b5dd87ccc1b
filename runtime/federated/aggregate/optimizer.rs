//! What the server remembers from round to round.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::super::invalid;
use super::super::wire::{Key, read};
use super::options::ServerOptimizer;
use crate::adapter::{FORMAT_KEY, factor_of, tensor_name};
use crate::error::{Error, Result};
use crate::format::safetensors::{SafetensorsFile, to_bytes};
use crate::format::staged::Staged;
use crate::identity::check_format;

const FORMAT: &str = "epiphyte.server_state.1";
const VERSION: &str = "epiphyte.version_digest";
const SQUARES: &str = ".squares";

/// Mean and squares of past changes, by factor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// The digest of the version it belongs to; empty before the first.
    version: String,
    moments: BTreeMap<Key, [Vec<f64>; 2]>,
}

impl OptimizerState {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a file; nothing when there is none.
    ///
    /// Errors: [`Error::Io`], [`Error::InvalidFile`], [`Error::InvalidDelta`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Ok(Self::new());
        }
        let mut file = SafetensorsFile::new(path, std::io::Cursor::new(read(path)?))?;
        check_format(path, file.metadata(FORMAT_KEY).unwrap_or_default(), FORMAT)?;
        let version = file.metadata(VERSION).unwrap_or_default().to_string();
        let names: Vec<_> = file.tensors().into_iter().map(|(name, _)| name).collect();
        let mut moments = BTreeMap::<Key, [Vec<f64>; 2]>::new();
        for name in names {
            let (factor, slot) = name.strip_suffix(SQUARES).map_or((name.as_str(), 0), |n| (n, 1));
            let key = factor_of(factor).ok_or_else(|| invalid(name.clone(), "no factor"))?;
            let (dtype, bytes) = file.read(&name)?;
            let numbers: Vec<_> =
                bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
            if dtype != Dtype::F64 || !numbers.iter().all(|v| v.is_finite()) {
                return Err(invalid(name, "finite F64 numbers are needed"));
            }
            moments.entry(key).or_default()[slot] = numbers;
        }
        Ok(Self { version, moments })
    }

    /// Writes a file, whole or not at all.
    ///
    /// Errors: [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let tensors = self.moments.iter().flat_map(|((module, factor), moments)| {
            let name = tensor_name(*module, *factor);
            [(name.clone(), &moments[0]), (format!("{name}{SQUARES}"), &moments[1])]
        });
        let bytes = |v: &Vec<f64>| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let tensors: Vec<_> = tensors.map(|(name, values)| (name, bytes(values))).collect();
        let refused =
            |e| Error::InvalidFile { path: path.into(), reason: format!("safetensors: {e}") };
        let views = tensors.iter().map(|(name, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F64, vec![bytes.len() / 8], bytes)?))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let metadata = [(FORMAT_KEY, FORMAT.to_string()), (VERSION, self.version.clone())];
        let metadata = metadata.into_iter().map(|(key, text)| (key.to_string(), text)).collect();
        Staged::write(path, &to_bytes(views, metadata).map_err(refused)?)?.commit()
    }

    /// That it is of the version that is averaged onto.
    ///
    /// Errors: `InvalidDelta`.
    pub(super) fn check(&self, digest: &str) -> Result<()> {
        match self.version.is_empty() || self.version == digest {
            true => Ok(()),
            false => {
                Err(invalid("state", "of another version; give the one saved with the parent"))
            }
        }
    }

    pub(super) fn belongs_to(&mut self, digest: &str) {
        self.version = digest.into();
    }

    /// What a factor changes by, given the mean of its changes.
    pub(super) fn step(
        &mut self,
        optimizer: ServerOptimizer,
        key: Key,
        mut mean: Vec<f64>,
    ) -> Vec<f64> {
        let n = mean.len();
        let moments = self.moments.entry(key).or_default();
        moments.iter_mut().for_each(|moment| moment.resize(n, 0.0));
        match optimizer {
            ServerOptimizer::Sgd { lr } => {
                self.moments.remove(&key);
                mean.iter_mut().for_each(|g| *g *= lr);
            }
            ServerOptimizer::Momentum { lr, momentum } => {
                let [m, _] = moments;
                for (m, g) in m.iter_mut().zip(&mut mean) {
                    *m = momentum * *m + *g;
                    *g = lr * *m;
                }
            }
            ServerOptimizer::Adam { lr, b1, b2, tau } => {
                let [m, v] = moments;
                for ((m, v), g) in m.iter_mut().zip(v).zip(&mut mean) {
                    *m = b1 * *m + (1.0 - b1) * *g;
                    *v = b2 * *v + (1.0 - b2) * *g * *g;
                    *g = lr * *m / (v.sqrt() + tau);
                }
            }
        }
        mean
    }
}
