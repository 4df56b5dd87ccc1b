//! What a pass works on: activations on the device, allocated once.

use std::sync::Arc;

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Gpu, Tensor};
use crate::kernels::{attention, rope};
use crate::model::kv_cache::PAGE_LEN;

/// Rows of logits there is room for: sequences decoded in one batch.
pub const LOGIT_ROWS: usize = 64;

/// What a [`super::llama::Llama`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most rows of a pass.
    pub rows: usize,
    /// Most sequences of a pass.
    pub tables: usize,
    /// Rows of logits there is room for.
    pub logits: usize,
    /// Most positions of a sequence.
    pub positions: usize,
    /// The cache is f16.
    pub kv_f16: bool,
}

/// What passes of all kinds share, as nothing of it lives from one part of a pass to the next.
pub struct Scratch {
    pub(crate) parts: Arc<Tensor>,
    pub(crate) stats: Arc<Tensor>,
    pub(crate) rotations: Arc<Tensor>,
    /// Rows of `parts` and `stats`.
    pub(crate) part_rows: u32,
}

impl Scratch {
    /// For sequences of up to `positions` tokens.
    ///
    /// Errors: [`crate::Error::OutOfMemory`].
    pub fn new(gpu: &Gpu, config: &ModelConfig, positions: usize) -> Result<Self> {
        let part_rows = attention::splits(positions as u32).max(512);
        let (rows, heads) = (part_rows as usize, config.num_attention_heads);
        let floats = |label: &str, n: usize| gpu.storage(label, n as u64 * 4).map(Arc::new);
        let rotations = rope::rotations(&config.rope_frequencies(), positions);
        Ok(Self {
            parts: floats("attention parts", rows * heads * config.head_dim)?,
            stats: floats("attention stats", rows * heads * 2)?,
            rotations: Arc::new(gpu.upload("rotations", &rotations)?),
            part_rows,
        })
    }
}

/// Activations, by name; `rows` is the most rows of a pass.
pub struct Activations {
    /// Next inputs, u32 `[rows]`.
    pub token_ids: Tensor,
    /// Page table and position of each row, u32 `[rows, 2]`.
    pub rows: Tensor,
    /// Page tables, u32 `[tables, max_pages]`.
    pub pages: Tensor,
    /// f32 `[logits, V]`.
    pub logits: Tensor,
    pub(crate) x: Tensor,
    pub(crate) normed: Tensor,
    pub(crate) qkv: Tensor,
    pub(crate) attn: Tensor,
    pub(crate) gate_up: Tensor,
    pub(crate) h: Tensor,
    pub(crate) parts: Arc<Tensor>,
    pub(crate) stats: Arc<Tensor>,
    pub(crate) rotations: Arc<Tensor>,
}

impl Activations {
    pub(crate) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        scratch: &Scratch,
        limits: Limits,
    ) -> Result<Self> {
        let rows = limits.rows;
        let floats = |label: &str, n: usize| gpu.storage(label, n as u64 * 4);
        let width = config.num_attention_heads * config.head_dim;
        let qkv = width + 2 * config.num_key_value_heads * config.head_dim;
        Ok(Self {
            token_ids: floats("token_ids", rows)?,
            rows: floats("rows", 2 * rows)?,
            pages: floats("pages", limits.tables * limits.positions.div_ceil(PAGE_LEN))?,
            logits: floats("logits", limits.logits * config.vocab_size)?,
            x: floats("x", rows * config.hidden_size)?,
            normed: floats("normed", rows * config.hidden_size)?,
            qkv: floats("qkv", rows * qkv)?,
            attn: floats("attn", rows * width)?,
            gate_up: floats("gate_up", rows * 2 * config.intermediate_size)?,
            h: floats("h", rows * config.intermediate_size)?,
            parts: Arc::clone(&scratch.parts),
            stats: Arc::clone(&scratch.stats),
            rotations: Arc::clone(&scratch.rotations),
        })
    }
}
