//! Weighted cross entropy of a chunk of logits, and its gradient in their place: see
//! `shaders/cross_entropy.wgsl`.

use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Lanes a row. Not of one subgroup: sums are the same on every tier.
pub const LANES: u32 = 256;

params! {
    /// What a dispatch says.
    pub struct CrossEntropyParams {
        /// V.
        pub vocab: u32,
        /// From one row of logits to the next, at least V.
        pub stride: u32,
        /// First row of `targets` and `weights`.
        pub row0: u32,
        /// First of `losses`.
        pub loss0: u32,
    }
}

/// Bindings: `targets [C]`, all below V; `weights [C]`, each the row's part in the mean; `logits
/// [C, stride]`; `losses [C]`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "cross_entropy",
        consts: vec![("WG", LANES), ("L", LANES)],
        bindings: &[Read, Read, Write, Write],
        params: CrossEntropyParams::LAYOUT,
        ..Default::default()
    }
}

/// Records `rows` rows of logits.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: CrossEntropyParams, rows: u32) {
    op.record(commands, &params, [rows, 1, 1], 0);
}
