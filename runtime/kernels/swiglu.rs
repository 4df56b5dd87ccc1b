//! `SwiGLU`: see `shaders/swiglu.wgsl`.

use bytemuck::{Pod, Zeroable};

use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Commands, KernelSpec, Op};

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SwiGluParams {
    /// F / 4.
    pub f4: u32,
    /// Unused.
    pub pad: [u32; 3],
}

/// Bindings: `gu [T, 2 F]`, `h [T, F]`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        source: Source { name: "swiglu", ..Default::default() },
        bindings: &[Read, Write],
        params_bytes: size_of::<SwiGluParams>() as u32,
    }
}

/// Records `rows` rows of `intermediate_size`.
pub fn record(commands: &mut Commands<'_>, op: &Op, intermediate_size: u32, rows: u32) {
    let params = SwiGluParams { f4: intermediate_size / 4, pad: [0; 3] };
    op.record(commands, &params, [params.f4.div_ceil(64), rows, 1], 0);
}
