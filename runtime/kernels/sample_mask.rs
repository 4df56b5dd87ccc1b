//! Tokens that a grammar leaves: see `shaders/sample_mask.wgsl`.

use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

params! {
    /// What a dispatch of `sample_mask` says.
    pub struct MaskParams {
        /// V.
        pub vocab: u32,
        /// See [`mask_words`].
        pub mask_words: u32,
    }
}

/// Bindings: `masks`, `logits`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "sample_mask",
        bindings: &[Read, Write],
        params: MaskParams::LAYOUT,
        ..Default::default()
    }
}

/// Words of a row's mask, a bit a token.
pub fn mask_words(vocab: u32) -> u32 {
    vocab.div_ceil(32)
}

/// Records the masks of `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, vocab: u32, rows: u32) {
    let params = MaskParams { vocab, mask_words: mask_words(vocab) };
    op.record(commands, &params, [vocab.div_ceil(64), rows, 1], 0);
}
