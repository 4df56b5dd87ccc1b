//! On-device adapter runtime: one frozen 4-bit language model, computed by WGSL kernels through
//! wgpu.

pub mod adapter;
mod cancel;
pub mod chat;
#[cfg(feature = "cli")]
pub mod cli;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod format;
pub mod gpu;
pub mod kernels;
pub mod merge;
pub mod model;
mod parallel;
pub mod progress;
pub mod quant;
pub mod selftest;
pub mod tokenizer;
pub mod train;

pub use cancel::CancelToken;
pub use chat::Message;
pub use dtype::DType;
pub use engine::{
    AnswerStats, Batch, Engine, EngineOptions, FinishReason, GenerateOptions, Generation, Sampling,
    Sequence, Session, Token, generate_batch,
};
pub use error::{Error, Result};
pub use gpu::GpuOptions;
pub use progress::{LoadPhase, LoadProgress};

/// The name of the model file that `make model` fetches into the cache folder.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where `make model` puts the default model: in [`cache_dir`]. It may not be there yet.
pub fn default_model() -> Option<std::path::PathBuf> {
    cache_dir().map(|dir| dir.join(DEFAULT_MODEL))
}

/// Where the default model, the pipeline cache and the self-test's verdicts are kept:
/// `EPIPHYTE_CACHE`, else `$XDG_CACHE_HOME/epiphyte`, else `~/.cache/epiphyte`.
pub fn cache_dir() -> Option<std::path::PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(std::path::PathBuf::from);
    var("EPIPHYTE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("epiphyte")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache").join("epiphyte")))
}
