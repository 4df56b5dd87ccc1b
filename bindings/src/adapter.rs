//! Adapters: where they come from, what was in them, which of them a session uses.

use std::sync::Arc;

use epiphyte::adapter::{Adapter, AdapterFormat as Format, Item, Verdict as V};
use epiphyte::engine::{Change, KvPolicy as Policy};

use crate::EpiphyteError;
use crate::error::{bytes, number, path as given};

/// Where an adapter is read from.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum AdapterSource {
    /// A PEFT folder, a safetensors file with the config inside, or a GGUF LoRA.
    Path {
        /// The folder or file.
        path: String,
    },
    /// PEFT's two files, in memory.
    Bytes {
        /// `adapter_config.json`
        config_json: String,
        /// `adapter_model.safetensors`
        safetensors: Vec<u8>,
    },
    /// A GGUF LoRA in memory, or safetensors with the config inside.
    Gguf {
        /// The file.
        bytes: Vec<u8>,
    },
}

impl AdapterSource {
    /// Puts it on the device.
    ///
    /// Errors: as [`epiphyte::Engine::load_adapter`].
    pub(crate) fn load_to(
        self,
        engine: &epiphyte::Engine,
        id: &str,
    ) -> Result<Arc<epiphyte::adapter::LoadReport>, EpiphyteError> {
        let shape = engine.base().adapter_shape();
        let adapter = match self {
            Self::Path { path } => return Ok(engine.load_adapter(id, given("path", path)?)?),
            Self::Bytes { config_json, safetensors } => {
                Adapter::from_peft(config_json.as_bytes(), &safetensors, &shape)?
            }
            Self::Gguf { bytes } => Adapter::from_bytes(bytes, &shape)?,
        };
        Ok(engine.add_adapter(id, &adapter)?)
    }
}

/// An adapter of a session.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct AdapterWeight {
    /// Under which it was loaded.
    pub id: String,
    /// What its effect is multiplied by.
    #[uniffi(default = 1.0)]
    pub weight: f32,
}

/// What becomes of what was said when a session's adapters change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum KvPolicy {
    /// It is computed again under the new adapters when it is next needed.
    #[default]
    Recompute,
    /// Keys and values stay as the old adapters made them: the swap costs nothing, and what follows
    /// is neither set's alone.
    Keep,
}

/// Adapters to change to.
pub(crate) struct AdapterChange {
    pub(crate) adapters: Vec<AdapterWeight>,
    pub(crate) history: KvPolicy,
}

impl AdapterChange {
    /// Gives it to `change` as the runtime has it.
    pub(crate) fn to(
        &self,
        change: impl FnOnce(&Change<'_>) -> epiphyte::Result<()>,
    ) -> Result<(), EpiphyteError> {
        let adapters: Vec<(&str, f32)> =
            self.adapters.iter().map(|adapter| (adapter.id.as_str(), adapter.weight)).collect();
        let history = match self.history {
            KvPolicy::Recompute => Policy::Recompute,
            KvPolicy::Keep => Policy::Keep,
        };
        Ok(change(&Change { adapters: &adapters, history })?)
    }
}

/// How a loaded adapter fares.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct AdapterState {
    /// Its id.
    pub id: String,
    /// Bytes on the device when it is there.
    pub n_bytes: i64,
    /// It is there.
    pub resident: bool,
    /// A session uses it, so it stays.
    pub pinned: bool,
    /// Another one has its id now; it stays as long as sessions use it.
    pub replaced: bool,
}

impl From<epiphyte::engine::AdapterState> for AdapterState {
    fn from(state: epiphyte::engine::AdapterState) -> Self {
        let epiphyte::engine::AdapterState { id, n_bytes, resident, pinned, replaced, .. } = state;
        Self { id, n_bytes: bytes(n_bytes), resident, pinned, replaced }
    }
}

/// What an adapter does to the model's words after a prompt.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct AdapterProbe {
    /// Tokens of the prompt.
    pub tokens: i32,
    /// Largest change of a logit after the last token.
    pub max_abs_difference: f32,
    /// Root of the mean square of the changes.
    pub rms_difference: f32,
    /// The most likely next token is another one.
    pub changes_next_token: bool,
}

impl From<epiphyte::engine::Probe> for AdapterProbe {
    fn from(probe: epiphyte::engine::Probe) -> Self {
        Self {
            tokens: number(probe.tokens),
            max_abs_difference: probe.max_abs_difference,
            rms_difference: probe.rms_difference,
            changes_next_token: probe.changes_next_token,
        }
    }
}

/// How a file was spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum AdapterFormat {
    /// PEFT's folder, or its safetensors file with the config inside.
    Peft,
    /// llama.cpp's GGUF.
    Gguf,
}

/// What became of a key or tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Verdict {
    /// Honoured; it has its effect.
    Matched,
    /// Can't be honoured.
    Refused,
    /// Has no effect on what the adapter computes.
    Ignored,
}

/// A key or tensor, under the file's name.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ReportItem {
    /// As the file spells it.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why; empty when matched.
    pub reason: String,
}

impl From<&Item> for ReportItem {
    fn from(item: &Item) -> Self {
        let verdict = match item.verdict {
            V::Matched => Verdict::Matched,
            V::Refused => Verdict::Refused,
            _ => Verdict::Ignored,
        };
        Self { name: item.name.clone(), verdict, reason: item.reason.clone() }
    }
}

/// LoRA on one module, as it takes effect.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ReportModule {
    /// The module, as Hugging Face calls it.
    pub path: String,
    /// Rank.
    pub rank: i32,
    /// What `B A` is multiplied by.
    pub scaling: f32,
    /// Bytes of A and B in memory, as f32.
    pub n_bytes: i64,
}

/// Everything that was in an adapter, and what became of it.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct LoadReport {
    /// The file's format.
    pub format: AdapterFormat,
    /// The base it was made for; none for a foreign adapter, which does not say.
    pub base_fingerprint: Option<String>,
    /// How a merged adapter was made, as JSON.
    pub manifest: Option<String>,
    /// Bytes of the tensor file.
    pub n_bytes: i64,
    /// The config's keys.
    pub keys: Vec<ReportItem>,
    /// The file's tensors.
    pub tensors: Vec<ReportItem>,
    /// What takes effect, sorted by path.
    pub modules: Vec<ReportModule>,
    /// Modules that the config targets and the file has no tensors for.
    pub missing: Vec<String>,
    /// What a user would want to know although it stops nothing.
    pub warnings: Vec<String>,
}

impl From<&epiphyte::adapter::LoadReport> for LoadReport {
    fn from(report: &epiphyte::adapter::LoadReport) -> Self {
        let modules = report.modules.iter().map(|module| ReportModule {
            path: module.path.to_string(),
            rank: number(module.rank),
            scaling: module.scaling,
            n_bytes: bytes(module.n_bytes),
        });
        Self {
            format: match report.format {
                Format::Gguf => AdapterFormat::Gguf,
                _ => AdapterFormat::Peft,
            },
            base_fingerprint: report.base_fingerprint.clone(),
            manifest: report.manifest.clone(),
            n_bytes: bytes(report.n_bytes),
            keys: report.keys.iter().map(ReportItem::from).collect(),
            tensors: report.tensors.iter().map(ReportItem::from).collect(),
            modules: modules.collect(),
            missing: report.missing.iter().map(ToString::to_string).collect(),
            warnings: report.warnings.clone(),
        }
    }
}
