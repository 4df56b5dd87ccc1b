//! Causal attention within packed sequences, for training: see `shaders/attention_train.wgsl`.

use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Rows that a workgroup takes of queries or of positions.
const TILE: u32 = 32;

params! {
    /// Mirror of `Params` in `attention_train.wgsl` and the three of `attention_backward`.
    pub struct AttentionTrainParams {
        /// T.
        pub rows: u32,
        /// H, query heads.
        pub heads: u32,
        /// G, key and value heads; divides H.
        pub kv_heads: u32,
        /// First row of `qkv`, `out` and `lse`: what the forward pass saves. Gradients begin at row 0.
        pub row0: u32,
        /// On the scores: 1 / sqrt(E).
        pub scale: f32,
        /// Positions that a row sees, its own among them; 0 for all.
        pub window: u32,
    }
}

/// Bindings: `rows [T]`, `qkv [T, (H + 2 G) E]`, `out [T, H E]`, `lse [T, H]`. `head_dim` is a
/// multiple of 16, at most 256.
pub fn spec(head_dim: u32) -> KernelSpec {
    tiled("attention_train", &[Read, Read, Write, Write], head_dim)
}

/// A kernel on the tiles of `attention/tile`.
pub(super) fn tiled(name: &'static str, bindings: &'static [Access], head_dim: u32) -> KernelSpec {
    let consts = vec![("E", head_dim)];
    let params = AttentionTrainParams::LAYOUT;
    KernelSpec { name, consts, bindings, params, ..Default::default() }
}

/// Records the attention of `params.rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: &AttentionTrainParams) {
    op.record(commands, params, grid(params, params.heads), 0);
}

/// A workgroup for each tile of rows and each head.
pub(super) fn grid(params: &AttentionTrainParams, heads: u32) -> [u32; 3] {
    [params.rows.div_ceil(TILE), heads, 1]
}
