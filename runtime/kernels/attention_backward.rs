//! The gradient of [`super::attention_train`] by q, k and v: see
//! `shaders/attention_{delta,dq,dkv}.wgsl`.
//!
//! Three dispatches: `delta` first, then `dq` and `dkv` in any order. The probabilities are made
//! again from the saved log-sum-exp; each sum is one lane's, in the order of the positions, so that
//! the result is the same every time.

use super::attention_train::{AttentionTrainParams, grid, tiled};
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Bindings: `out [T, H E]`, `d_out [T, H E]`, `delta [T, H]`.
pub fn delta_spec(head_dim: u32) -> KernelSpec {
    KernelSpec {
        name: "attention_delta",
        consts: vec![("E", head_dim)],
        bindings: &[Read, Read, Write],
        params: AttentionTrainParams::LAYOUT,
        ..Default::default()
    }
}

/// Bindings: `rows [T]`, `qkv [T, (H + 2 G) E]`, `lse [T, H]`, `d_out [T, H E]`, `delta [T, H]`,
/// `d_qkv [T, (H + 2 G) E]`.
pub fn dq_spec(head_dim: u32) -> KernelSpec {
    tiled("attention_dq", &[Read, Read, Read, Read, Read, Write], head_dim)
}

/// Bindings: as [`dq_spec`].
pub fn dkv_spec(head_dim: u32) -> KernelSpec {
    tiled("attention_dkv", &[Read, Read, Read, Read, Read, Write], head_dim)
}

/// Records the rows' `delta`, which the other two read.
pub fn record_delta(commands: &mut Commands<'_>, op: &Op, params: &AttentionTrainParams) {
    op.record(commands, params, [(params.rows * params.heads).div_ceil(64), 1, 1], 0);
}

/// Records the gradient by q.
pub fn record_dq(commands: &mut Commands<'_>, op: &Op, params: &AttentionTrainParams) {
    op.record(commands, params, grid(params, params.heads), 0);
}

/// Records the gradients by k and v.
pub fn record_dkv(commands: &mut Commands<'_>, op: &Op, params: &AttentionTrainParams) {
    op.record(commands, params, grid(params, params.kv_heads), 0);
}
