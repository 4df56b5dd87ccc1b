//! The gradient of `SwiGLU`: see `shaders/swiglu_backward.wgsl`.

use bytemuck::{Pod, Zeroable};

use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Commands, KernelSpec, Op};

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SwiGluBackwardParams {
    /// F / 4.
    pub f4: u32,
    /// First row of `dh`.
    pub dh_row: u32,
    /// First row of `gu`.
    pub gu_row: u32,
    /// Unused.
    pub pad: u32,
}

/// Bindings: `dh [T, F]`, `gu [T, 2 F]`, which becomes its own gradient.
pub fn spec() -> KernelSpec {
    KernelSpec {
        source: Source { name: "swiglu_backward", ..Default::default() },
        bindings: &[Read, Write],
        params_bytes: size_of::<SwiGluBackwardParams>() as u32,
    }
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: SwiGluBackwardParams, rows: u32) {
    op.record(commands, &params, [params.f4.div_ceil(64), rows, 1], 0);
}
