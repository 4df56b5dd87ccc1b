//! Rotary position embedding of packed sequences, and its inverse: see `shaders/rope_train.wgsl`.

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
    }
}

/// Bindings: `rows [T]`, `rotations` (see [`super::rope::rotations`]), `qkv [T, (H + 2 G) E]`.
pub fn spec(head_dim: u32) -> KernelSpec {
    KernelSpec {
        name: "rope_train",
        consts: vec![("E", head_dim)],
        bindings: &[Read, Read, Write],
        params: RopeTrainParams::LAYOUT,
        ..Default::default()
    }
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
