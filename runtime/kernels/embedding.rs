//! `x[t] = scale W[token_ids[t]]`: see `shaders/embedding.wgsl`.

use crate::dtype::DType;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};
use crate::quant;

params! {
    /// What a dispatch says.
    pub struct EmbeddingParams {
        /// Blocks of 32 in a row of W.
        pub k_blocks: u32,
        /// First row of this chunk of W.
        pub row0: u32,
        /// Rows of this chunk.
        pub rows: u32,
        /// On the weights.
        pub scale: f32,
    }
}

/// Bindings: `token_ids [T]`, `words`, `scales`, `x [T, K]`.
pub fn spec(dtype: DType) -> KernelSpec {
    KernelSpec {
        name: "embedding",
        fills: vec![quant::format(dtype).wgsl()],
        bindings: &[Read, Read, Read, Write],
        params: EmbeddingParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the look-up of `tokens` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: EmbeddingParams, tokens: u32) {
    op.record(commands, &params, [(params.k_blocks * 4).div_ceil(64), tokens, 1], 0);
}
