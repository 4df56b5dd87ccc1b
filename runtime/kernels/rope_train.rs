//! Rotary position embedding of packed sequences, and its inverse: see `shaders/rope_train.wgsl`.

use super::rope::HeadInput;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Rotates q and k.
pub const FORWARD: f32 = 1.0;
/// Rotates the gradients of q and k back.
pub const BACKWARD: f32 = -1.0;

params! {
    /// What a dispatch says.
    pub struct RopeTrainParams {
        /// H, query heads.
        pub heads: u32,
        /// G, key and value heads.
        pub kv_heads: u32,
        /// First row of `qkv`.
        pub row0: u32,
        /// [`FORWARD`] or [`BACKWARD`].
        pub direction: f32,
        /// With [`HeadInput::norm`]: added to the mean square.
        pub eps: f32,
        /// Dimensions of a head that are rotated, its first.
        pub rotary_dim: u32,
    }
}

/// Bindings: `rows [T]`, `rotations` (see [`super::rope::rotations`]), `qkv [T, (H + 2 G) E]`.
pub fn spec(head_dim: u32) -> KernelSpec {
    KernelSpec {
        name: "rope_train",
        consts: vec![("VALUES", 0), ("WG", 64), ("E", head_dim)],
        bindings: &[Read, Read, Write],
        params: RopeTrainParams::LAYOUT,
        fills: vec!["heads/plain"],
    }
}

/// As [`spec`] for the way forward, of heads that go through `input`: the vector beside their
/// linears is bound after the others.
pub fn beside_spec(head_dim: u32, input: HeadInput) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "rope_train",
        consts: vec![("VALUES", 1)],
        bindings: &[Read, Read, Write, Read],
        params: RopeTrainParams::LAYOUT,
        ..Default::default()
    };
    input.join(&mut spec, head_dim, 3);
    spec
}

/// Records `rows` rows.
pub fn record(
    commands: &mut Commands<'_>,
    op: &Op,
    head_dim: u32,
    params: RopeTrainParams,
    rows: u32,
) {
    let pairs = (params.heads + params.kv_heads) * head_dim / 2;
    op.record(commands, &params, [pairs.div_ceil(64), rows, 1], 0);
}

/// Records `rows` rows of heads that go through an input.
pub fn record_beside(
    commands: &mut Commands<'_>,
    op: &Op,
    (head_dim, input): (u32, HeadInput),
    params: RopeTrainParams,
    rows: u32,
) {
    let groups = input.groups(head_dim, params.heads + 2 * params.kv_heads);
    op.record(commands, &params, [groups, rows, 1], 0);
}
