//! Every test of the runtime, one binary.

mod kernels;
mod shaders;
