//! On-device adapter runtime: one frozen 4-bit language model, computed by WGSL kernels through
//! wgpu.
//!
//! Kernels and the device itself are internal: shaders are compiled unchecked, so a safe call could
//! misuse them. The feature `internals` shows them to the tests and benches of this crate, and
//! promises nothing.
#![cfg_attr(
    not(feature = "internals"),
    allow(dead_code, unreachable_pub, unused_imports, reason = "tests and benches use the rest"),
    deny(unnameable_types)
)]

/// An associated function that only our own tests and benches see from outside.
#[cfg(feature = "gpu")]
macro_rules! internal {
    ($(#[$meta:meta])* pub fn $($rest:tt)*) => {
        #[cfg(feature = "internals")]
        #[doc(hidden)]
        $(#[$meta])*
        pub fn $($rest)*
        #[cfg(not(feature = "internals"))]
        $(#[$meta])*
        pub(crate) fn $($rest)*
    };
}

pub mod adapter;
pub mod base;
mod cache;
mod calendar;
mod cancel;
pub mod chat;
pub mod checkpoint;
pub mod classify;
#[cfg(feature = "gpu")]
pub mod diagnosis;
pub mod dtype;
#[cfg(feature = "gpu")]
pub mod engine;
pub mod error;
#[cfg(feature = "gpu")]
pub mod evaluate;
pub mod export;
mod face;
pub mod federated;
pub mod format;
#[cfg(all(feature = "gpu", not(feature = "internals")))]
mod gpu;
#[cfg(all(feature = "gpu", feature = "internals"))]
#[doc(hidden)]
pub mod gpu;
pub mod grammar;
mod identity;
#[cfg(feature = "gpu")]
pub mod importance;
#[cfg(all(feature = "gpu", not(feature = "internals")))]
mod kernels;
#[cfg(all(feature = "gpu", feature = "internals"))]
#[doc(hidden)]
pub mod kernels;
mod kind;
pub mod library;
pub mod merge;
#[cfg(all(feature = "gpu", not(feature = "internals")))]
mod model;
#[cfg(all(feature = "gpu", feature = "internals"))]
#[doc(hidden)]
pub mod model;
pub mod numbers;
mod parallel;
pub mod progress;
#[cfg(not(feature = "internals"))]
mod quant;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod quant;
pub mod quantize;
#[cfg(all(feature = "gpu", not(feature = "internals")))]
mod selftest;
#[cfg(all(feature = "gpu", feature = "internals"))]
#[doc(hidden)]
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
pub use grammar::ResponseFormat;
pub use kind::FileKind;
pub use progress::{LoadPhase, LoadProgress};
