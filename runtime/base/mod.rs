//! What a base is, from its file: sizes, modules, rotary frequencies, and its name. No GPU.

mod config;
pub mod fingerprint;
pub mod layout;
mod module;
mod read_gguf;
mod read_json;
mod read_scaling;
mod rope;

pub use config::{ModelConfig, SlidingWindow, Traits};
pub use layout::Architecture;
pub use module::{BaseShape, ModulePath, Target};
pub use rope::{LongRope, RopeScaling, Rotary, Yarn};
