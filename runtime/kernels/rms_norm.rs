//! RMS normalisation: see `shaders/rms_norm.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::reduction;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, KernelSpec, Op};

const WG: u32 = 64;

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct RmsNormParams {
    /// T.
    pub rows: u32,
    /// K / 4.
    pub k4: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// Unused.
    pub pad: u32,
}

/// Bindings: `x [T, K]`, `gain [K]`, `y [T, K]`.
pub fn spec(caps: &Caps) -> KernelSpec {
    let (reduce, lanes) = reduction(caps);
    KernelSpec {
        source: Source {
            name: "rms_norm",
            consts: vec![("WG", WG), ("L", lanes)],
            imports: vec![reduce],
            ..Default::default()
        },
        bindings: &[Read, Read, Write],
        params_bytes: size_of::<RmsNormParams>() as u32,
    }
}

/// Records the normalisation of `params.rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, caps: &Caps, params: RmsNormParams) {
    let (_, lanes) = reduction(caps);
    op.record(commands, &params, [params.rows.div_ceil(WG / lanes), 1, 1], 0);
}
