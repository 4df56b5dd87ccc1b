//! The only floor that talks to wgpu: device, buffers, shaders, pipelines, commands.

pub mod commands;
pub mod device;
pub mod instance;
pub mod pipeline;
pub mod shader;
pub mod tensor;

pub use commands::Commands;
pub use device::{Caps, Gpu, GpuOptions};
pub use pipeline::{Access, Kernel, KernelSpec, Op};
pub use tensor::Tensor;
