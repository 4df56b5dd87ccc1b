//! What a pass works on: activations on the device, allocated once.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Gpu, Tensor};
use crate::kernels::rope;

/// Rows of logits there is room for: sequences decoded in one batch.
pub const LOGIT_ROWS: usize = 64;

/// What a [`super::llama::Llama`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most rows of a pass.
    pub rows: usize,
    /// Most sequences of a pass.
    pub tables: usize,
    /// Most positions of a sequence.
    pub positions: usize,
    /// The cache is f16.
    pub kv_f16: bool,
}

/// Activations, by name; `rows` is the most rows of a pass.
pub struct Activations {
    /// Next inputs, u32 `[rows]`.
    pub token_ids: Tensor,
    /// Page table and position of each row, u32 `[rows, 2]`.
    pub rows: Tensor,
    /// Page tables, u32 `[tables, max_pages]`.
    pub pages: Tensor,
    /// f32 `[LOGIT_ROWS, V]`.
    pub logits: Tensor,
    pub(crate) x: Tensor,
    pub(crate) normed: Tensor,
    pub(crate) qkv: Tensor,
    pub(crate) attn: Tensor,
    pub(crate) gate_up: Tensor,
    pub(crate) h: Tensor,
    pub(crate) parts: Tensor,
    pub(crate) stats: Tensor,
    pub(crate) rotations: Tensor,
}

impl Activations {
    pub(crate) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        limits: Limits,
        max_pages: usize,
        part_rows: usize,
    ) -> Result<Self> {
        let rows = limits.rows;
        let floats = |label: &str, n: usize| gpu.storage(label, n as u64 * 4);
        let width = config.num_attention_heads * config.head_dim;
        let qkv = width + 2 * config.num_key_value_heads * config.head_dim;
        let rotations = rope::rotations(&config.rope_frequencies(), limits.positions);
        Ok(Self {
            token_ids: floats("token_ids", rows)?,
            rows: floats("rows", 2 * rows)?,
            pages: floats("pages", limits.tables * max_pages)?,
            logits: floats("logits", LOGIT_ROWS.min(limits.rows) * config.vocab_size)?,
            x: floats("x", rows * config.hidden_size)?,
            normed: floats("normed", rows * config.hidden_size)?,
            qkv: floats("qkv", rows * qkv)?,
            attn: floats("attn", rows * width)?,
            gate_up: floats("gate_up", rows * 2 * config.intermediate_size)?,
            h: floats("h", rows * config.intermediate_size)?,
            parts: floats("attention parts", part_rows * width)?,
            stats: floats("attention stats", part_rows * config.num_attention_heads * 2)?,
            rotations: gpu.upload("rotations", &rotations)?,
        })
    }
}
