//! The only floor that talks to wgpu: device, buffers, shaders, pipelines, commands.

mod blocks;
pub mod commands;
pub mod device;
mod fault;
pub mod instance;
mod known;
pub mod memory;
pub mod params;
pub mod pipeline;
pub mod shader;
pub mod tensor;

pub use commands::Commands;
pub use device::{Caps, Gpu, GpuOptions};
pub use memory::{Buffer, Class, Memory, MemoryPlan, Tally, human_bytes};
pub use pipeline::{Access, Kernel, Op};
pub use shader::KernelSpec;
pub use tensor::Tensor;
