//! The only floor that talks to wgpu: device, buffers, shaders, pipelines, commands.

pub mod commands;
pub mod device;
pub mod instance;
pub mod params;
pub mod pipeline;
pub mod shader;
pub mod tensor;

pub use commands::Commands;
pub use device::{Caps, Gpu, GpuOptions};
pub use pipeline::{Access, Kernel, Op};
pub use shader::KernelSpec;
pub use tensor::Tensor;
