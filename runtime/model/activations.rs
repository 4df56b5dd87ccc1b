//! What a pass works on: activations on the device, allocated once.

use std::sync::Arc;

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Class, Gpu, Memory, Tensor};
use crate::kernels::{attention, rope};
use crate::model::pages::{Held, PAGE_LEN, PageRef};

/// Rows of logits there is room for: sequences decoded in one batch.
pub const LOGIT_ROWS: usize = 64;

/// What a [`super::decoder::Decoder`] is made for.
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

impl Limits {
    /// Length of a page table.
    pub(crate) fn max_pages(&self) -> usize {
        self.positions.div_ceil(PAGE_LEN)
    }

    /// Rows of attention in parts.
    pub(crate) fn part_rows(&self) -> usize {
        attention::splits(self.positions as u32).max(512) as usize
    }
}

/// What passes of all kinds share, as nothing of it lives from one part of a pass to the next.
pub struct Scratch<T = Tensor> {
    parts: Arc<T>,
    stats: Arc<T>,
    rotations: Vec<Arc<T>>,
}

impl<T> Scratch<T> {
    /// For passes within `limits`.
    ///
    /// Errors: [`crate::Error::OutOfMemory`].
    pub fn new(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        limits: &Limits,
    ) -> Result<Self> {
        let words = |name: &str, shape: &[usize]| {
            memory.words(Class::Activations, name, shape).map(Arc::new)
        };
        let (rows, heads, e) = (limits.part_rows(), config.num_attention_heads, config.head_dim);
        Ok(Self {
            parts: words("attention parts", &[rows, heads * e])?,
            stats: words("attention stats", &[rows, heads * 2])?,
            rotations: (config.rotaries(0).iter())
                .map(|_| words("rotations", &rope::rotations_shape(limits.positions, e)))
                .collect::<Result<_>>()?,
        })
    }
}

/// Activations, by name; `rows` is the most rows of a pass.
pub struct Activations<T = Tensor> {
    /// Next inputs, u32 `[rows]`.
    pub token_ids: T,
    /// Page table and position of each row, u32 `[rows, 2]`.
    pub rows: T,
    /// Page tables, u32 `[tables, max_pages]`.
    pub pages: T,
    /// Those of layers with windows, if there are any, of which the pages before them mean nothing.
    pub window_pages: Option<T>,
    /// f32 `[logits, V]`.
    pub logits: T,
    pub(crate) x: T,
    pub(crate) normed: T,
    pub(crate) qkv: T,
    pub(crate) attn: T,
    pub(crate) gate_up: T,
    pub(crate) h: T,
    pub(crate) parts: Arc<T>,
    pub(crate) stats: Arc<T>,
    /// Cosines and sines ([`rope::rotations`]) of each of [`ModelConfig::rotaries`].
    pub(crate) rotations: Vec<Arc<T>>,
}

impl<T> Activations<T> {
    pub(crate) fn new(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        scratch: &Scratch<T>,
        limits: &Limits,
    ) -> Result<Self> {
        let words = |name: &str, shape: &[usize]| memory.words(Class::Activations, name, shape);
        let (rows, e) = (limits.rows, config.head_dim);
        let (heads, d, f) =
            (config.num_attention_heads, config.hidden_size, config.intermediate_size);
        Ok(Self {
            token_ids: words("token_ids", &[rows])?,
            rows: words("rows", &[rows, 2])?,
            pages: words("pages", &[limits.tables, limits.max_pages()])?,
            window_pages: (config.window())
                .map(|_| words("window_pages", &[limits.tables, limits.max_pages()]))
                .transpose()?,
            logits: words("logits", &[limits.logits, config.vocab_size])?,
            x: words("x", &[rows, d])?,
            normed: words("normed", &[rows, d])?,
            qkv: words("qkv", &[rows, (heads + 2 * config.num_key_value_heads) * e])?,
            attn: words("attn", &[rows, heads * e])?,
            gate_up: words("gate_up", &[rows, 2 * f])?,
            h: words("h", &[rows, f])?,
            parts: Arc::clone(&scratch.parts),
            stats: Arc::clone(&scratch.stats),
            rotations: scratch.rotations.clone(),
        })
    }
}

impl Activations {
    /// Writes the page tables of a sequence, which begin at element `at`.
    pub(crate) fn write_pages(&self, gpu: &Gpu, at: usize, held: &Held) {
        let numbers = |pages: &[PageRef]| pages.iter().map(PageRef::number).collect::<Vec<_>>();
        gpu.write(&self.pages, at as u64 * 4, &numbers(&held.all));
        if let Some(pages) = &self.window_pages {
            gpu.write(pages, (at + held.window_from) as u64 * 4, &numbers(&held.window));
        }
    }
}
