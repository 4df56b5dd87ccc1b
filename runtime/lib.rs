//! On-device adapter runtime: one frozen 4-bit language model, computed by WGSL kernels through wgpu.

pub mod chat;
pub mod dtype;
pub mod error;
pub mod quant;
pub mod tokenizer;

pub use dtype::DType;
pub use error::{Error, Result};
