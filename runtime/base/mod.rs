//! What a base is, from its file: sizes, modules, rotary frequencies, and its name. No GPU.

mod config;
pub mod fingerprint;
mod module;
mod rope;

pub use config::{Architecture, ModelConfig};
pub use module::{BaseShape, ModulePath, Target};
pub use rope::RopeScaling;
