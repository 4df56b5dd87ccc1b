//! What became of each key and tensor of an adapter.

use serde::Serialize;

use crate::base::ModulePath;

/// What became of a key or tensor.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Honoured; it has its effect.
    Matched,
    /// Can't be honoured: the adapter is not loaded.
    Refused,
    /// Has no effect on what the adapter computes.
    Ignored,
}

/// A key or tensor, under the file's name.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// As the file spells it.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why; empty when matched.
    pub reason: String,
}

/// LoRA on one module, as it takes effect.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleItem {
    /// The module.
    pub path: ModulePath,
    /// Rank.
    pub rank: usize,
    /// What `B A` is multiplied by.
    pub scaling: f32,
    /// Bytes of A and B in memory, as f32.
    pub n_bytes: u64,
}

/// How a file was spelled.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterFormat {
    /// PEFT's folder, or its safetensors file with the config inside.
    #[default]
    Peft,
    /// llama.cpp's GGUF.
    Gguf,
}

/// Everything that was in an adapter, and what became of it.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// The file's format.
    pub format: AdapterFormat,
    /// The base it was made for; `None` for a foreign adapter, which does not say.
    pub base_fingerprint: Option<String>,
    /// How a merged adapter was made, as `epiphyte.merge` in the file's metadata has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Bytes of the tensor file.
    pub n_bytes: u64,
    /// The config's keys.
    pub keys: Vec<Item>,
    /// The file's tensors.
    pub tensors: Vec<Item>,
    /// What takes effect, sorted by path; empty when something is refused.
    pub modules: Vec<ModuleItem>,
    /// Modules that the config targets and the file has no tensors for: they stay as the base has
    /// them.
    pub missing: Vec<ModulePath>,
    /// What a user would want to know although it stops nothing.
    pub warnings: Vec<String>,
}

impl LoadReport {
    /// What can't be honoured: keys, then tensors. Empty for an adapter that loads.
    pub fn refused(&self) -> impl Iterator<Item = &Item> {
        self.keys.iter().chain(&self.tensors).filter(|item| item.verdict == Verdict::Refused)
    }
}

impl Item {
    /// An item that takes effect.
    pub(crate) fn matched(name: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Matched, reason: String::new() }
    }

    /// An item that stops the load.
    pub(crate) fn refused(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Refused, reason: reason.into() }
    }

    /// An item without effect.
    pub(crate) fn ignored(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ignored, reason: reason.into() }
    }
}
