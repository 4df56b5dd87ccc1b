//! What a base is, from its file's header: sizes, modules, rotary frequencies. No weights, no GPU.

mod config;
mod module;
mod rope;

pub use config::{Architecture, ModelConfig};
pub use module::{BaseShape, ModulePath, Target};
pub use rope::RopeScaling;
