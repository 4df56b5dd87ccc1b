//! Rows by index, and back: see `shaders/gather_rows.wgsl`.

use crate::error::{Error, Result};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// The index of no row: gives zeros.
pub const NONE: u32 = u32::MAX;

params! {
    /// What a dispatch says.
    pub struct GatherRowsParams {
        /// K / 4.
        pub k4: u32,
        /// First of `index`.
        pub index0: u32,
        /// Row of `x` that index 0 means.
        pub x_row: u32,
        /// First row of `y`.
        pub y_row: u32,
    }
}

/// Bindings: `index [N]`, rows of `x` or [`NONE`]; `x [.., K]`; `y [N, K]`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "gather_rows",
        consts: vec![("NONE", NONE)],
        bindings: &[Read, Read, Write],
        params: GatherRowsParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the gathering of `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: GatherRowsParams, rows: u32) {
    op.record(commands, &params, [params.k4.div_ceil(64), rows, 1], 0);
}

/// The index that takes each of `rows` rows to where `index` put it, or to [`NONE`]: the gradient's
/// way back.
///
/// Errors: [`Error::InvalidArgument`] for a row beyond `rows`, or named twice, whose gradient would
/// be a sum.
pub fn inverse(index: &[u32], rows: usize) -> Result<Vec<u32>> {
    let mut inverse = vec![NONE; rows];
    for (&row, i) in index.iter().zip(0..).filter(|(row, _)| **row != NONE) {
        let reason = match inverse.get_mut(row as usize) {
            Some(at @ &mut NONE) => {
                *at = i;
                continue;
            }
            Some(_) => format!("row {row} is named twice"),
            None => format!("row {row} of {rows} rows"),
        };
        return Err(Error::InvalidArgument { name: "index", reason });
    }
    Ok(inverse)
}
