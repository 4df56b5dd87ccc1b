//! The gradient of RMS normalisation by its input: see `shaders/rms_norm_backward.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::reduction;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, KernelSpec, Op};

const WG: u32 = 64;

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct RmsNormBackwardParams {
    /// T.
    pub rows: u32,
    /// K / 4.
    pub k4: u32,
    /// Added to the mean square.
    pub eps: f32,
    /// First row of `x`.
    pub x_row: u32,
    /// First row of `dy`.
    pub dy_row: u32,
    /// First row of `dx`.
    pub dx_row: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// Bindings: `x [T, K]`, `gain [K]`, `dy [T, K]`, `dx [T, K]`; with `add`, to what `dx` holds.
pub fn spec(caps: &Caps, add: bool) -> KernelSpec {
    let (reduce, lanes) = reduction(caps);
    KernelSpec {
        source: Source {
            name: "rms_norm_backward",
            consts: vec![("WG", WG), ("L", lanes), ("ADD", u32::from(add))],
            imports: vec![reduce],
            ..Default::default()
        },
        bindings: &[Read, Read, Read, Write],
        params_bytes: size_of::<RmsNormBackwardParams>() as u32,
    }
}

/// Records the gradient of `params.rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, caps: &Caps, params: RmsNormBackwardParams) {
    let (_, lanes) = reduction(caps);
    op.record(commands, &params, [params.rows.div_ceil(WG / lanes), 1, 1], 0);
}
