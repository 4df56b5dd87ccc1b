//! Every test of the runtime, one binary.

mod shaders;
