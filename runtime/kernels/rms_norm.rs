//! RMS normalisation: see `shaders/rms_norm.wgsl`.

use super::{lanes, reduce};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};

const WG: u32 = 64;

params! {
    /// What a dispatch says.
    pub struct RmsNormParams {
        /// T.
        pub rows: u32,
        /// K / 4.
        pub k4: u32,
        /// Added to the mean square.
        pub eps: f32,
    }
}

/// Bindings: `x [T, K]`, `gain [K]`, `y [T, K]`; with `add`, to what `y` holds.
pub fn spec(caps: &Caps, add: bool) -> KernelSpec {
    KernelSpec {
        name: "rms_norm",
        consts: vec![("WG", WG), ("L", lanes(caps)), ("ADD", u32::from(add))],
        fills: vec![reduce(caps)],
        bindings: &[Read, Read, Write],
        params: RmsNormParams::LAYOUT,
    }
}

/// Records the normalisation of `params.rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: RmsNormParams) {
    let rows = WG / lanes(commands.caps());
    op.record(commands, &params, [params.rows.div_ceil(rows), 1, 1], 0);
}
