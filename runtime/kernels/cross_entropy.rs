//! Weighted cross entropy of a chunk of logits, and its gradient in their place: see
//! `shaders/cross_entropy.wgsl`.

use bytemuck::{Pod, Zeroable};

use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Commands, KernelSpec, Op};

/// Lanes a row. Not of one subgroup: sums are the same on every tier.
pub const LANES: u32 = 256;

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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

/// Bindings: `targets [C]`, all below V; `weights [C]`, each the row's part in the mean; `logits
/// [C, stride]`; `losses [C]`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        source: Source {
            name: "cross_entropy",
            consts: vec![("WG", LANES), ("L", LANES)],
            imports: vec!["shared/reduce_workgroup"],
            ..Default::default()
        },
        bindings: &[Read, Read, Write, Write],
        params_bytes: size_of::<CrossEntropyParams>() as u32,
    }
}

/// Records `rows` rows of logits.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: CrossEntropyParams, rows: u32) {
    op.record(commands, &params, [rows, 1, 1], 0);
}
