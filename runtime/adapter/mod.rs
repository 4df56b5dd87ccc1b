//! LoRA adapters: what a config means, the factors of each module, a report of what became of a
//! file, and the registry of those that are on the device. Only `registry` and `arena` know a GPU;
//! nothing here knows a model.

pub(crate) mod arena;
pub mod config;
pub mod copies;
mod entry;
pub mod lora;
pub mod module;
pub(crate) mod packed;
pub(crate) mod parts;
mod pattern;
pub mod registry;
pub mod report;
pub mod site;
pub mod targets;

pub use config::{LoraConfig, Modules};
pub use copies::{AdaptedBase, BaseWeights};
pub use lora::Adapter;
pub use module::{BaseShape, LoraModule, ModulePath, Target};
pub use report::{AdapterFormat, Item, LoadReport, Verdict};
pub use targets::TargetModule;
