//! The Llama forward pass: one implementation for every weight format, recorded on buffers bound once.
//!
//! In: token ids and rows of (page table, position) on the device. Out: logits, and the cache extended.
//! Narrow passes (decoding a few sequences) fold the norms into mat-vecs; wide ones (prompts) use mat-muls.

use crate::adapter::registry::{LoraPass, Registry};
use crate::adapter::site::SiteKind;
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::attention::{self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams};
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::lora::{Directory, Entry};
use crate::kernels::matvec::{Epilogue, MAX_COLS};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rope::{self, RopeParams};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::model::config::ModelConfig;
use crate::model::kv_cache::{KvCache, PAGE_LEN};
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::lora::LoraOps;
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
    pub(crate) x: Tensor,
    pub(crate) normed: Tensor,
    pub(crate) qkv: Tensor,
    pub(crate) attn: Tensor,
    pub(crate) gate_up: Tensor,
    pub(crate) h: Tensor,
    pub(crate) parts: Tensor,
    pub(crate) stats: Tensor,
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
    norm: Op,
    head: LinearOp,
    rows: usize,
    lora: Option<LoraOps>,
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

/// What touches the cache; in the adapted variant what is expanded and shrunk on the way.
pub(crate) struct CacheOps {
    rope: Op,
    attention: Op,
    attention_split: Op,
    attention_prefill: Op,
}

/// Sites and sizes of the LoRA around attention in this pass; zeros without.
#[derive(Clone, Copy, Default)]
struct Around {
    qkv: (u32, u32, Entry),
    o_proj: (u32, u32, Entry),
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
            lora: None,
        };
        Ok(Self {
            config: config.clone(),
            heads,
            part_rows,
            max_pages: max_pages as u32,
            reduce: gpu.op(
                &attention::reduce_spec(gpu.caps(), heads.head_dim, None),
                &[&a.rows, &a.parts, &a.stats, &a.attn],
            )?,
            swiglu: gpu.op(&swiglu::spec(gpu.caps(), None), &[&a.gate_up, &a.h])?,
            norm: gpu.op(&rms_norm::spec(gpu.caps()), &[&a.x, &weights.norm, &a.normed])?,
            rows: limits.rows,
            lora: None,
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
            layer.cache = CacheOps::new(gpu, self.heads, buffers, &self.activations, None)?;
        }
        self.lora = None;
        Ok(())
    }

    /// Whether the registry's buffers have moved since.
    pub fn adapters_are_stale(&self, registry: &Registry) -> bool {
        self.lora.as_ref().map(|lora| lora.moves) != registry.factors().map(|(.., moves)| moves)
    }

    /// Binds the adapted kernels, if the registry's buffers are not those they are bound to.
    ///
    /// Errors: as [`Gpu::kernel`]; [`Error::OutOfMemory`].
    pub fn bind_adapters(&mut self, gpu: &Gpu, weights: &Weights, cache: &KvCache, registry: &Registry) -> Result<()> {
        if self.adapters_are_stale(registry) {
            let (shape, bound) = ((self.heads, self.rows), (cache, &self.activations));
            self.lora = LoraOps::new(gpu, &self.config, weights, shape, bound, registry)?;
        }
        Ok(())
    }

    /// Length of a page table.
    pub fn max_pages(&self) -> usize {
        self.max_pages as usize
    }

    /// Records the pass over the first `rows` rows of `token_ids` and `rows`, which `runs` covers in order; `lora` is
    /// what their adapters need.
    ///
    /// Errors: as [`Commands::bound`] and [`Gpu::kernel`].
    pub fn forward(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        (rows, runs): (u32, &[Run]),
        lora: Option<&LoraPass>,
    ) -> Result<()> {
        for (op, params) in &self.embed {
            embedding::record(commands, op, *params, rows);
        }
        let lora = self.lora.as_ref().zip(lora);
        if let Some((ops, pass)) = lora {
            ops.record_embedding(commands, pass, rows);
        }
        for i in 0..self.layers.len() {
            if rows > MAX_COLS {
                self.layer_wide(gpu, commands, i, (rows, runs), lora)?;
            } else {
                self.attention_narrow(gpu, commands, i, (rows, runs), lora)?;
                self.mlp_narrow(gpu, commands, i, rows, lora)?;
            }
        }
        Ok(())
    }

    /// Few rows: norms folded into mat-vecs; with adapters, their factors too.
    fn attention_narrow(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        i: usize,
        (rows, runs): (u32, &[Run]),
        lora: Option<(&LoraOps, &LoraPass)>,
    ) -> Result<()> {
        let layer = &self.layers[i];
        let range = RowRange::first(rows);
        let [qkv, o_proj] = [SiteKind::Qkv, SiteKind::OProj];
        let active = |pass: &LoraPass| pass.u_rows[qkv as usize] + pass.u_rows[o_proj as usize] > 0;
        let Some((ops, pass)) = lora.filter(|(_, pass)| active(pass)) else {
            layer.qkv.record(gpu, commands, range, USize::default())?;
            self.attend(gpu, commands, (&layer.cache, &self.reduce), (rows, runs), Around::default())?;
            return layer.o_proj.record(gpu, commands, range, USize::default());
        };
        let adapted = &ops.by_layer[i];
        let [qkv_a, qkv_b] = pass.alone(ops.site(qkv, i));
        let [o_proj_a, o_proj_b] = pass.alone(ops.site(o_proj, i));
        let around = Around {
            qkv: (ops.site(qkv, i), pass.u_rows[qkv as usize], qkv_b),
            o_proj: (ops.site(o_proj, i), pass.u_rows[o_proj as usize], o_proj_a),
        };
        adapted.qkv.record(gpu, commands, range, USize { rows: around.qkv.1, parts: 1, lora: qkv_a })?;
        let parts = self.attend(gpu, commands, (&adapted.cache, &ops.reduce), (rows, runs), around)?;
        adapted.o_proj.record(gpu, commands, range, USize { rows: around.o_proj.1, parts, lora: o_proj_b })
    }

    fn mlp_narrow(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        i: usize,
        rows: u32,
        lora: Option<(&LoraOps, &LoraPass)>,
    ) -> Result<()> {
        let layer = &self.layers[i];
        let range = RowRange::first(rows);
        let f = self.config.intermediate_size as u32;
        let [gate_up, down] = [SiteKind::GateUp, SiteKind::DownProj];
        let active = |pass: &LoraPass| pass.u_rows[gate_up as usize] + pass.u_rows[down as usize] > 0;
        let Some((ops, pass)) = lora.filter(|(_, pass)| active(pass)) else {
            match &layer.gate_up {
                Some(fused) => fused.record(gpu, commands, range, USize::default())?,
                None => self.gate_up_wide(gpu, commands, i, rows, None)?,
            }
            return layer.down_proj.record(gpu, commands, range, USize::default());
        };
        let adapted = &ops.by_layer[i];
        let [gate_up_rows, down_rows] = [gate_up, down].map(|kind| pass.u_rows[kind as usize]);
        let (gate_up_site, down_site) = (ops.site(gate_up, i), ops.site(down, i));
        let ([gate_up_a, gate_up_lora], [down_lora, down_b]) = (pass.alone(gate_up_site), pass.alone(down_site));
        adapted.gate_up.record(gpu, commands, range, USize { rows: gate_up_rows, parts: 1, lora: gate_up_a })?;
        let pad = [0; 3];
        let params = SwiGluParams { f, gate_up_site, gate_up_rows, down_site, down_rows, pad, gate_up_lora, down_lora };
        swiglu::record(commands, gpu.caps(), &ops.swiglu, &params, rows);
        let parts = swiglu::parts(gpu.caps(), f);
        adapted.down_proj.record(gpu, commands, range, USize { rows: down_rows, parts, lora: down_b })
    }

    /// Many rows: mat-muls, and the adapters' own beside them.
    fn layer_wide(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        i: usize,
        (rows, runs): (u32, &[Run]),
        lora: Option<(&LoraOps, &LoraPass)>,
    ) -> Result<()> {
        let layer = &self.layers[i];
        let range = RowRange::first(rows);
        let adapt = |commands: &mut Commands<'_>, kind: SiteKind| {
            if let Some((ops, pass)) = lora {
                ops.record_wide(gpu, commands, (kind, i), pass, (rows, 0, 0));
            }
        };
        rms_norm::record(commands, &layer.input_layernorm, gpu.caps(), self.norm_params(rows));
        layer.qkv_wide.record(gpu, commands, range, USize::default())?;
        adapt(commands, SiteKind::Qkv);
        self.attend(gpu, commands, (&layer.cache, &self.reduce), (rows, runs), Around::default())?;
        layer.o_proj.record(gpu, commands, range, USize::default())?;
        adapt(commands, SiteKind::OProj);
        self.gate_up_wide(gpu, commands, i, rows, lora)?;
        layer.down_proj.record(gpu, commands, range, USize::default())?;
        adapt(commands, SiteKind::DownProj);
        Ok(())
    }

    fn gate_up_wide(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        i: usize,
        rows: u32,
        lora: Option<(&LoraOps, &LoraPass)>,
    ) -> Result<()> {
        let layer = &self.layers[i];
        rms_norm::record(commands, &layer.post_attention_layernorm, gpu.caps(), self.norm_params(rows));
        layer.gate_up_wide.record(gpu, commands, RowRange::first(rows), USize::default())?;
        if let Some((ops, pass)) = lora {
            ops.record_wide(gpu, commands, (SiteKind::GateUp, i), pass, (rows, 0, 0));
        }
        let params = SwiGluParams { f: self.config.intermediate_size as u32, ..Default::default() };
        swiglu::record(commands, gpu.caps(), &self.swiglu, &params, rows);
        Ok(())
    }

    fn norm_params(&self, rows: u32) -> RmsNormParams {
        RmsNormParams { rows, k4: self.config.hidden_size as u32 / 4, eps: self.config.rms_norm_eps, pad: 0 }
    }

    /// Records the logits of `rows` rows from `x_row` of the last pass, into `activations.logits[0..rows]`.
    ///
    /// Errors: as [`Llama::forward`]; [`Error::InvalidArgument`] for more than [`LOGIT_ROWS`].
    pub fn logits(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        (x_row, rows): (u32, u32),
        lora: Option<&LoraPass>,
    ) -> Result<()> {
        if rows as usize > LOGIT_ROWS {
            let reason = format!("{rows} rows; at most {LOGIT_ROWS}");
            return Err(Error::InvalidArgument { name: "rows", reason });
        }
        for first in (0..rows).step_by(MAX_COLS as usize) {
            let range = RowRange { count: MAX_COLS.min(rows - first), x_row: x_row + first, y_row: first };
            self.head.record(gpu, commands, range, USize::default())?;
        }
        let head = SiteKind::LmHead;
        if let Some((ops, pass)) = self.lora.as_ref().zip(lora).filter(|(_, pass)| pass.u_rows[head as usize] > 0) {
            rms_norm::record(commands, &self.norm, gpu.caps(), self.norm_params(x_row + rows));
            ops.record_wide(gpu, commands, (head, 0), pass, (rows, x_row, 0));
        }
        Ok(())
    }

    /// Records rotation, cache and attention; gives the parts in which u of what follows comes.
    fn attend(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        (ops, reduce): (&CacheOps, &Op),
        (rows, runs): (u32, &[Run]),
        around: Around,
    ) -> Result<u32> {
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let (site, u_rows, lora) = around.qkv;
        let rope = RopeParams { heads, kv_heads, max_pages: self.max_pages, site, u_rows, pad: [0; 3], lora };
        rope::record(commands, &ops.rope, head_dim, rope, rows);
        let (site, u_rows, lora) = around.o_proj;
        let mut parts = kv_heads;
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
                let max_pages = self.max_pages;
                let params = AttentionParams { heads, kv_heads, max_pages, splits, scale, row0, site, u_rows, lora };
                let bytes = cache_bytes(positions) * u64::from(count);
                if splits == 1 {
                    attention::record(commands, &ops.attention, &params, count, bytes);
                } else {
                    attention::record(commands, &ops.attention_split, &params, count, bytes);
                    let params = ReduceParams { heads, splits, row0, site, u_rows, pad: [0; 3], lora };
                    attention::record_reduce(commands, reduce, head_dim, &params, count);
                    parts = attention::reduce_parts(heads, head_dim);
                }
            }
        }
        Ok(parts)
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
        let qkv = Binding {
            x: &a.x,
            norm: before_attention,
            y: &a.qkv,
            y_stride: weights.qkv.n,
            epilogue: store,
            lora: None,
        };
        let qkv_wide = Binding { x: &a.normed, norm: None, ..qkv };
        let o_proj = Binding { x: &a.attn, norm: None, y: &a.x, y_stride: hidden, epilogue: Epilogue::Add, lora: None };
        let gate_up = Binding {
            x: &a.x,
            norm: before_mlp,
            y: &a.h,
            y_stride: config.intermediate_size,
            epilogue: Epilogue::SwiGlu,
            lora: None,
        };
        let gate_up_wide = Binding { x: &a.normed, norm: None, y: &a.gate_up, y_stride: weights.gate_up.n, ..qkv };
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
            cache: CacheOps::new(gpu, heads, cache, a, None)?,
        })
    }
}

/// The directory, A, B, u and its parts.
type Adapted<'a> = (Directory, &'a Tensor, &'a Tensor, &'a Tensor, &'a Tensor);

impl CacheOps {
    /// Binds them to a layer's cache; with `adapted` rope expands and attention shrinks.
    pub(crate) fn new(
        gpu: &Gpu,
        heads: Heads,
        (keys, values): &(Tensor, Tensor),
        act: &Activations,
        adapted: Option<Adapted<'_>>,
    ) -> Result<Self> {
        let (rows, pages, qkv) = (&act.rows, &act.pages, &act.qkv);
        let directory = adapted.map(|(directory, ..)| directory);
        let rope = rope::spec(heads.head_dim, heads.page_len, true, heads.kv_f16, directory);
        let mut for_rope = vec![rows, pages, &act.rotations, qkv, keys, values];
        let whole = [rows, pages, qkv, keys, values, &act.attn];
        let split = [rows, pages, qkv, keys, values, &act.parts, &act.stats];
        let mut for_attention = whole.to_vec();
        if let Some((_, a, b, u, parts)) = adapted {
            for_rope.extend([b, u]);
            for_attention.extend([a, parts]);
        }
        let leaves = directory.map_or(Leaves::Whole, Leaves::WholeAndU);
        Ok(Self {
            rope: gpu.op(&rope, &for_rope)?,
            attention: gpu.op(&attention::spec(gpu.caps(), heads, leaves), &for_attention)?,
            attention_split: gpu.op(&attention::spec(gpu.caps(), heads, Leaves::Split), &split)?,
            attention_prefill: gpu.op(&attention::prefill_spec(heads), &whole)?,
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
