//! LoRA adapters on the host: what a config means, the factors of each module, files in and out, and a report of what
//! became of everything in them. Nothing here knows a GPU or a model.

pub mod config;
pub mod lora;
pub mod module;
pub(crate) mod parts;
pub mod report;
pub mod targets;

pub use config::{LoraConfig, Modules};
pub use lora::Adapter;
pub use module::{BaseShape, LoraModule, ModulePath, Target};
pub use report::{AdapterFormat, Item, LoadReport, Verdict};
pub use targets::TargetModule;
