//! The gradient of RMS normalisation by its input: see `shaders/rms_norm_backward.wgsl`.

use super::{lanes, reduce};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};

const WG: u32 = 64;

params! {
    /// What a dispatch says.
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
    }
}

/// Bindings: `x [T, K]`, `gain [K]`, `dy [T, K]`, `dx [T, K]`; with `add`, to what `dx` holds.
pub fn spec(caps: &Caps, add: bool) -> KernelSpec {
    KernelSpec {
        name: "rms_norm_backward",
        consts: vec![("WG", WG), ("L", lanes(caps)), ("ADD", u32::from(add))],
        fills: vec![reduce(caps)],
        bindings: &[Read, Read, Read, Write],
        params: RmsNormBackwardParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the gradient of `params.rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: RmsNormBackwardParams) {
    let rows = WG / lanes(commands.caps());
    op.record(commands, &params, [params.rows.div_ceil(rows), 1, 1], 0);
}
