//! On-device adapter runtime: one frozen 4-bit language model, computed by WGSL kernels through wgpu.

pub mod dtype;
pub mod error;
pub mod format;
pub mod model;
pub mod quant;

pub use dtype::DType;
pub use error::{Error, Result};
