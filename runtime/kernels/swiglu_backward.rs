//! The gradient of `SwiGLU`: see `shaders/swiglu_backward.wgsl`.

use super::activation;
use crate::base::layout::Activation;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

params! {
    /// What a dispatch says.
    pub struct SwiGluBackwardParams {
        /// F / 4.
        pub f4: u32,
        /// First row of `dh`.
        pub dh_row: u32,
        /// First row of `gu`.
        pub gu_row: u32,
    }
}

/// Bindings: `dh [T, F]`, `gu [T, 2 F]`, which becomes its own gradient.
pub fn spec(gate: Activation) -> KernelSpec {
    KernelSpec {
        name: "swiglu_backward",
        fills: vec![activation(gate)],
        bindings: &[Read, Write],
        params: SwiGluBackwardParams::LAYOUT,
        ..Default::default()
    }
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: SwiGluBackwardParams, rows: u32) {
    op.record(commands, &params, [params.f4.div_ceil(64), rows, 1], 0);
}
