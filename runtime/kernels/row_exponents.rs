//! The exponent of each row's largest gradient, by which `matmul_backward_coop` scales: see
//! `shaders/row_exponents.wgsl`.

use super::matmul_backward::MatmulBackwardParams;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

params! {
    /// What a dispatch says.
    pub struct RowExponentsParams {
        /// Elements of a row that count.
        pub n: u32,
        /// First row of dy.
        pub dy_row: u32,
        /// Elements from one row of dy to the next.
        pub dy_stride: u32,
        /// Column of dy that is the first.
        pub dy_offset: u32,
    }
}

impl From<&MatmulBackwardParams> for RowExponentsParams {
    /// Of the part of dy that a product reads.
    fn from(p: &MatmulBackwardParams) -> Self {
        Self { n: p.n, dy_row: p.dy_row, dy_stride: p.dy_stride, dy_offset: p.dy_offset }
    }
}

/// Bindings: `dy [., dy_stride]`, `exponents [M]`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "row_exponents",
        bindings: &[Read, Write],
        params: RowExponentsParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the exponents of `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: RowExponentsParams, rows: u32) {
    op.record(commands, &params, [rows, 1, 1], 0);
}
