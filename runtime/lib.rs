//! On-device adapter runtime: one frozen 4-bit language model, computed by WGSL kernels through
//! wgpu.

pub mod adapter;
pub mod base;
mod cache;
mod cancel;
pub mod chat;
#[cfg(feature = "gpu")]
pub mod diagnosis;
pub mod dtype;
#[cfg(feature = "gpu")]
pub mod engine;
pub mod error;
#[cfg(feature = "gpu")]
pub mod evaluate;
pub mod export;
pub mod federated;
pub mod format;
#[cfg(feature = "gpu")]
pub mod gpu;
mod identity;
#[cfg(feature = "gpu")]
pub mod kernels;
mod kind;
pub mod merge;
#[cfg(feature = "gpu")]
pub mod model;
pub mod numbers;
mod parallel;
pub mod progress;
pub mod quant;
#[cfg(feature = "gpu")]
pub mod selftest;
pub mod stack;
pub mod tokenizer;
#[cfg(feature = "gpu")]
pub mod train;

pub use cache::{DEFAULT_MODEL, cache_dir, default_model};
pub use cancel::CancelToken;
pub use chat::Message;
pub use dtype::DType;
#[cfg(feature = "gpu")]
pub use engine::{
    AnswerStats, Batch, Engine, EngineOptions, FinishReason, GenerateOptions, Generation, Sampling,
    Sequence, Session, Token, generate_batch,
};
pub use error::{Error, Result};
#[cfg(feature = "gpu")]
pub use gpu::GpuOptions;
pub use kind::FileKind;
pub use progress::{LoadPhase, LoadProgress};
