//! The gradient of the norms of q's and k's heads: see `shaders/heads_backward.wgsl`.

use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

params! {
    /// What a dispatch says.
    pub struct HeadsBackwardParams {
        /// H, query heads.
        pub heads: u32,
        /// G, key and value heads.
        pub kv_heads: u32,
        /// First row of `raw`.
        pub row0: u32,
        /// Added to the mean square.
        pub eps: f32,
    }
}

/// Bindings: `raw [T, (H + 2 G) E]`, the vector beside q, k and v (see [`super::rope::HeadInput`]),
/// `d_qkv [T, (H + 2 G) E]`.
pub fn spec(head_dim: u32, bias: bool) -> KernelSpec {
    KernelSpec {
        name: "heads_backward",
        consts: vec![("WG", head_dim / 2), ("E", head_dim), ("HEAD_BIAS", u32::from(bias))],
        bindings: &[Read, Read, Write],
        params: HeadsBackwardParams::LAYOUT,
        ..Default::default()
    }
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: HeadsBackwardParams, rows: u32) {
    op.record(commands, &params, [params.heads + params.kv_heads, rows, 1], 0);
}
