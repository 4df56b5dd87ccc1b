//! An adapter: LoRA on some modules of one base.

use std::path::Path;

use crate::dtype::DType;
use crate::error::{Error, Result};

pub use super::config::{LoraConfig, Modules};
pub use super::module::{BaseShape, LoraModule, ModulePath, Target};
pub use super::report::LoadReport;

/// LoRA on some modules of one base, in host memory as f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What the files say beside the tensors.
    pub config: LoraConfig,
    /// Sorted by path, each path once.
    pub modules: Vec<LoraModule>,
    /// The base it was made for; `None` for a foreign adapter, which does not say.
    pub base_fingerprint: Option<String>,
    /// What became of each key and tensor of the file; empty for an adapter made here.
    pub report: LoadReport,
}

impl Adapter {
    /// An adapter made here, of modules in any order.
    ///
    /// Errors: [`Error::InvalidAdapter`] naming a module that does not fit the base or is given twice.
    pub fn new(
        config: LoraConfig,
        mut modules: Vec<LoraModule>,
        base_fingerprint: Option<String>,
        shape: &BaseShape,
    ) -> Result<Self> {
        modules.sort_by_key(|module| module.path);
        for pair in modules.windows(2) {
            if pair[0].path == pair[1].path {
                let (what, reason) = (pair[0].path.to_string(), "given twice".into());
                return Err(Error::InvalidAdapter { what, reason });
            }
        }
        modules.iter().try_for_each(|module| module.check(shape))?;
        Ok(Self { config, modules, base_fingerprint, report: LoadReport::default() })
    }

    /// The module's factors, if it has any.
    pub fn module(&self, path: ModulePath) -> Option<&LoraModule> {
        let found = self.modules.binary_search_by_key(&path, |module| module.path);
        found.ok().and_then(|i| self.modules.get(i))
    }

    /// Reads a PEFT folder, a PEFT safetensors file with the config in its metadata, or a GGUF LoRA: by content.
    /// Either all of it is loaded or nothing.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for a file that is no adapter; [`Error::InvalidAdapter`] naming
    /// the key or tensor that can't be honoured.
    pub fn load(path: &Path, _shape: &BaseShape) -> Result<Self> {
        Err(Error::InvalidFile { path: path.into(), reason: "reading adapters is not built yet".into() })
    }

    /// Writes a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`), with tensors in `dtype`: F32 or F16.
    pub fn save_peft(&self, dir: &Path, _dtype: DType) -> Result<()> {
        Err(Error::InvalidFile { path: dir.into(), reason: "writing adapters is not built yet".into() })
    }

    /// Writes a GGUF LoRA for llama.cpp, with tensors in `dtype`: F32 or F16.
    pub fn save_gguf(&self, path: &Path, _shape: &BaseShape, _dtype: DType) -> Result<()> {
        Err(Error::InvalidFile { path: path.into(), reason: "writing adapters is not built yet".into() })
    }
}
