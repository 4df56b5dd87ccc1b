//! The Llama forward pass: one implementation for every weight format, recorded on buffers bound once.
//!
//! In: token ids and rows of (page table, position) on the device. Out: logits, and the cache extended.
//! Narrow passes (decoding a few sequences) fold the norms into mat-vecs; wide ones (prompts) use mat-muls.

use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::attention::{self, AttentionParams, Heads, PrefillParams, ReduceParams};
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::matvec::{Epilogue, MAX_COLS};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rope::{self, RopeParams};
use crate::kernels::swiglu;
use crate::model::config::ModelConfig;
use crate::model::kv_cache::{KvCache, PAGE_LEN};
use crate::model::linear::{Binding, LinearOp};
use crate::model::weights::{LayerWeights, Weights};

/// Consecutive positions of one sequence in a pass.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First row.
    pub row0: u32,
    /// Rows.
    pub count: u32,
    /// Positions that its last row sees.
    pub positions: u32,
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
    x: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attn: Tensor,
    gate_up: Tensor,
    h: Tensor,
    parts: Tensor,
    stats: Tensor,
    rotations: Tensor,
}

/// Rows of logits there is room for: sequences decoded in one batch.
pub const LOGIT_ROWS: usize = 64;

/// A model bound to its activations and cache.
pub struct Llama {
    config: ModelConfig,
    heads: Heads,
    part_rows: u32,
    max_pages: u32,
    /// Its activations.
    pub activations: Activations,
    embed: Vec<(Op, EmbeddingParams)>,
    layers: Vec<Layer>,
    reduce: Op,
    swiglu: Op,
    head: LinearOp,
}

struct Layer {
    qkv: LinearOp,
    qkv_wide: LinearOp,
    o_proj: LinearOp,
    /// SwiGLU folded in, where gate and up share a format and a binding.
    gate_up: Option<LinearOp>,
    gate_up_wide: LinearOp,
    down_proj: LinearOp,
    input_layernorm: Op,
    post_attention_layernorm: Op,
    cache: CacheOps,
}

struct CacheOps {
    rope: Op,
    attention: Op,
    attention_split: Op,
    attention_prefill: Op,
}

/// What a [`Llama`] is made for.
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

impl Llama {
    /// Allocates the activations and binds every kernel to them, to `weights` and to `cache`.
    ///
    /// Errors: [`Error::OutOfMemory`]; as [`Gpu::kernel`].
    pub fn new(gpu: &Gpu, config: &ModelConfig, weights: &Weights, cache: &KvCache, limits: Limits) -> Result<Self> {
        let heads = Heads {
            heads: config.num_attention_heads as u32,
            kv_heads: config.num_key_value_heads as u32,
            head_dim: config.head_dim as u32,
            page_len: PAGE_LEN as u32,
            kv_f16: limits.kv_f16,
        };
        let max_pages = limits.positions.div_ceil(PAGE_LEN);
        let part_rows = attention::splits(limits.positions as u32).max(512);
        let a = Activations::new(gpu, config, limits, max_pages, part_rows as usize)?;
        let embed = embed_ops(gpu, weights, &a)?;
        let layers = weights
            .layers
            .iter()
            .zip(&cache.layers)
            .map(|(layer, cache)| Layer::new(gpu, config, heads, layer, cache, &a))
            .collect::<Result<_>>()?;
        let head = Binding {
            x: &a.x,
            norm: Some((&weights.norm, config.rms_norm_eps)),
            y: &a.logits,
            y_stride: config.vocab_size,
            epilogue: Epilogue::Store,
        };
        Ok(Self {
            config: config.clone(),
            heads,
            part_rows,
            max_pages: max_pages as u32,
            reduce: gpu.op(&attention::reduce_spec(heads.head_dim), &[&a.rows, &a.parts, &a.stats, &a.attn])?,
            swiglu: gpu.op(&swiglu::spec(), &[&a.gate_up, &a.h])?,
            head: LinearOp::new(gpu, weights.head(), head)?,
            embed,
            layers,
            activations: a,
        })
    }

    /// Binds the cache's buffers anew, after it has grown.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub fn rebind(&mut self, gpu: &Gpu, cache: &KvCache) -> Result<()> {
        for (layer, buffers) in self.layers.iter_mut().zip(&cache.layers) {
            layer.cache = CacheOps::new(gpu, self.heads, buffers, &self.activations)?;
        }
        Ok(())
    }

    /// Length of a page table.
    pub fn max_pages(&self) -> usize {
        self.max_pages as usize
    }

    /// Records the pass over the first `rows` rows of `token_ids` and `rows`, which `runs` covers in order.
    ///
    /// Errors: as [`Commands::bound`] and [`Gpu::kernel`].
    pub fn forward(&self, gpu: &Gpu, commands: &mut Commands<'_>, rows: u32, runs: &[Run]) -> Result<()> {
        for (op, params) in &self.embed {
            embedding::record(commands, op, *params, rows);
        }
        let norm =
            RmsNormParams { rows, k4: self.config.hidden_size as u32 / 4, eps: self.config.rms_norm_eps, pad: 0 };
        let narrow = rows <= MAX_COLS;
        for layer in &self.layers {
            if narrow {
                layer.qkv.record(gpu, commands, rows, 0, 0)?;
            } else {
                rms_norm::record(commands, &layer.input_layernorm, gpu.caps(), norm);
                layer.qkv_wide.record(gpu, commands, rows, 0, 0)?;
            }
            self.attend(gpu, commands, &layer.cache, rows, runs)?;
            layer.o_proj.record(gpu, commands, rows, 0, 0)?;
            match &layer.gate_up {
                Some(fused) if narrow => fused.record(gpu, commands, rows, 0, 0)?,
                _ => {
                    rms_norm::record(commands, &layer.post_attention_layernorm, gpu.caps(), norm);
                    layer.gate_up_wide.record(gpu, commands, rows, 0, 0)?;
                    swiglu::record(commands, &self.swiglu, self.config.intermediate_size as u32, rows);
                }
            }
            layer.down_proj.record(gpu, commands, rows, 0, 0)?;
        }
        Ok(())
    }

    /// Records the logits of `rows` rows from `x_row` of the last pass, into `activations.logits[0..rows]`.
    ///
    /// Errors: as [`Llama::forward`]; [`Error::InvalidArgument`] for more than [`LOGIT_ROWS`].
    pub fn logits(&self, gpu: &Gpu, commands: &mut Commands<'_>, x_row: u32, rows: u32) -> Result<()> {
        if rows as usize > LOGIT_ROWS {
            let reason = format!("{rows} rows; at most {LOGIT_ROWS}");
            return Err(Error::InvalidArgument { name: "rows", reason });
        }
        for first in (0..rows).step_by(MAX_COLS as usize) {
            self.head.record(gpu, commands, MAX_COLS.min(rows - first), x_row + first, first)?;
        }
        Ok(())
    }

    fn attend(&self, gpu: &Gpu, commands: &mut Commands<'_>, ops: &CacheOps, rows: u32, runs: &[Run]) -> Result<()> {
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let rope = RopeParams { heads, kv_heads, max_pages: self.max_pages, pad: 0 };
        rope::record(commands, &ops.rope, head_dim, rope, rows);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let element_bytes = if self.heads.kv_f16 { 2 } else { 4 };
        let cache_bytes = |positions: u32| u64::from(2 * kv_heads * head_dim * element_bytes) * u64::from(positions);
        let tiled = |run: &Run| run.count > MAX_COLS && !gpu.caps().software;
        for run in runs.iter().filter(|run| tiled(run)) {
            let (row0, count) = (run.row0, run.count);
            let params = PrefillParams { heads, kv_heads, max_pages: self.max_pages, row0, count, scale, pad: [0; 2] };
            attention::record_prefill(commands, &ops.attention_prefill, &params, cache_bytes(run.positions));
        }
        // The others row by row: neighbouring runs together, as many rows as there is room for their parts.
        let mut at = 0;
        while at < runs.len() {
            let next = runs[at..].iter().position(tiled).map_or(runs.len(), |n| at + n);
            let group = &runs[at..next];
            at = next.max(at + 1);
            let Some(first) = group.first() else { continue };
            let positions = group.iter().map(|run| run.positions).max().unwrap_or(1);
            let splits = attention::splits(positions);
            let end = group.iter().map(|run| run.row0 + run.count).max().unwrap_or(first.row0);
            let step = (self.part_rows / splits).max(1);
            for row0 in (first.row0..end).step_by(step as usize) {
                let count = step.min(end - row0);
                let params =
                    AttentionParams { heads, kv_heads, max_pages: self.max_pages, splits, scale, row0, pad: [0; 2] };
                let bytes = cache_bytes(positions) * u64::from(count);
                if splits == 1 {
                    attention::record(commands, &ops.attention, &params, count, bytes);
                } else {
                    attention::record(commands, &ops.attention_split, &params, count, bytes);
                    let params = ReduceParams { heads, splits, row0, pad: 0 };
                    attention::record_reduce(commands, &self.reduce, head_dim, &params, count);
                }
            }
        }
        Ok(())
    }
}

impl Activations {
    fn new(gpu: &Gpu, config: &ModelConfig, limits: Limits, max_pages: usize, part_rows: usize) -> Result<Self> {
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

impl Layer {
    fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        heads: Heads,
        weights: &LayerWeights,
        cache: &(Tensor, Tensor),
        a: &Activations,
    ) -> Result<Self> {
        let eps = config.rms_norm_eps;
        let store = Epilogue::Store;
        let hidden = config.hidden_size;
        let before_attention = Some((&weights.input_layernorm, eps));
        let before_mlp = Some((&weights.post_attention_layernorm, eps));
        let qkv = Binding { x: &a.x, norm: before_attention, y: &a.qkv, y_stride: weights.qkv.n, epilogue: store };
        let qkv_wide = Binding { x: &a.normed, norm: None, ..qkv };
        let o_proj = Binding { x: &a.attn, norm: None, y: &a.x, y_stride: hidden, epilogue: Epilogue::Add };
        let gate_up = Binding {
            x: &a.x,
            norm: before_mlp,
            y: &a.h,
            y_stride: config.intermediate_size,
            epilogue: Epilogue::SwiGlu,
        };
        let gate_up_wide =
            Binding { x: &a.normed, norm: None, y: &a.gate_up, y_stride: weights.gate_up.n, epilogue: store };
        let down_proj = Binding { x: &a.h, ..o_proj };
        let fused = weights.gate_up.chunks.len() == 1;
        let norm = |gain: &Tensor| gpu.op(&rms_norm::spec(gpu.caps()), &[&a.x, gain, &a.normed]);
        Ok(Self {
            qkv: LinearOp::new(gpu, &weights.qkv, qkv)?,
            qkv_wide: LinearOp::new(gpu, &weights.qkv, qkv_wide)?,
            o_proj: LinearOp::new(gpu, &weights.o_proj, o_proj)?,
            gate_up: fused.then(|| LinearOp::new(gpu, &weights.gate_up, gate_up)).transpose()?,
            gate_up_wide: LinearOp::new(gpu, &weights.gate_up, gate_up_wide)?,
            down_proj: LinearOp::new(gpu, &weights.down_proj, down_proj)?,
            input_layernorm: norm(&weights.input_layernorm)?,
            post_attention_layernorm: norm(&weights.post_attention_layernorm)?,
            cache: CacheOps::new(gpu, heads, cache, a)?,
        })
    }
}

impl CacheOps {
    fn new(gpu: &Gpu, heads: Heads, (keys, values): &(Tensor, Tensor), a: &Activations) -> Result<Self> {
        let rope = rope::spec(heads.head_dim, heads.page_len, true, heads.kv_f16);
        let (rows, pages, qkv) = (&a.rows, &a.pages, &a.qkv);
        let one = [rows, pages, qkv, keys, values, &a.attn, &a.stats];
        let split = [rows, pages, qkv, keys, values, &a.parts, &a.stats];
        Ok(Self {
            rope: gpu.op(&rope, &[rows, pages, &a.rotations, qkv, keys, values])?,
            attention: gpu.op(&attention::spec(gpu.caps(), heads, false), &one)?,
            attention_split: gpu.op(&attention::spec(gpu.caps(), heads, true), &split)?,
            attention_prefill: gpu.op(&attention::prefill_spec(heads), &one[..6])?,
        })
    }
}

fn embed_ops(gpu: &Gpu, weights: &Weights, a: &Activations) -> Result<Vec<(Op, EmbeddingParams)>> {
    let table = &weights.embed_tokens;
    let bind = |chunk: &crate::model::linear::Chunk| {
        let params = EmbeddingParams {
            k_blocks: (table.k / crate::quant::BLOCK) as u32,
            row0: chunk.row0 as u32,
            rows: chunk.rows as u32,
            pad: 0,
        };
        let op = gpu.op(&embedding::spec(chunk.dtype), &[&a.token_ids, &chunk.words, &chunk.scales, &a.x])?;
        Ok((op, params))
    };
    table.chunks.iter().map(bind).collect()
}
