//! LoRA adapters as files have them: what a config means, the factors of each module, how PEFT and
//! llama.cpp spell them, and a report of what became of a file. Nothing here knows a GPU.

pub mod config;
pub mod copies;
pub(crate) mod gguf_lora;
mod joined;
pub mod load;
pub mod module;
pub(crate) mod parts;
mod pattern;
pub(crate) mod peft;
pub mod report;
pub mod targets;

pub(crate) use load::digest;
pub(crate) use peft::{CONFIG_KEY, FINGERPRINT_KEY, FORMAT, FORMAT_KEY, factor_of, tensor_name};

pub use config::{LoraConfig, Modules};
pub use copies::{AdaptedBase, BaseWeights};
pub use load::Adapter;
pub use module::LoraModule;
pub use parts::Factor;
pub use peft::files_of as peft_files;
pub use report::{AdapterFormat, Item, LoadReport, Verdict};
pub use targets::TargetModule;

pub use crate::base::{BaseShape, ModulePath, Target};

/// Ranks that the adapters of a row may have together.
pub const MAX_RANK: u32 = 256;
