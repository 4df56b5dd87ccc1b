//! The Llama forward pass: one implementation for every weight format, recorded on buffers bound
//! once.
//!
//! In: token ids and rows of (page table, position) on the device. Out: logits, and the cache
//! extended. Narrow passes (decoding a few sequences) fold the norms into mat-vecs; wide ones
//! (prompts) use mat-muls.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::attention::{self, Heads};
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::lora::Directory;
use crate::kernels::matvec::{Epilogue, MAX_COLS};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::model::activations::{Activations, Limits};
use crate::model::attend::{Around, Attend, CacheOps, Kernels, Run};
use crate::model::kv_cache::{KvCache, PAGE_LEN};
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::lora::{LoraBuffers, LoraOps, Surroundings};
use crate::model::site::{Factors, LoraPass, SiteKind};
use crate::model::weights::{LayerWeights, Weights};

/// A part of a pass: at most one large product, with what is around it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// Token ids to x.
    Embedding,
    /// Of a layer: norm, q, k and v.
    Qkv(usize),
    /// Of a layer: cache, attention, o.
    Attention(usize),
    /// Of a layer: norm, gate and up.
    GateUp(usize),
    /// Of a layer: SwiGLU, down.
    Down(usize),
    /// Norm and logits of some rows.
    Head(RowRange),
    /// What adapters add to logits.
    HeadLora(RowRange),
}

/// What goes through the model together: the first `rows` rows of `token_ids` and `rows`.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) rows: u32,
    /// Covers the rows, in order.
    pub(crate) runs: &'a [Run],
    /// Norms and SwiGLU have kernels of their own; for more than [`MAX_COLS`] rows.
    pub(crate) wide: bool,
    /// What the rows need of their adapters.
    pub(crate) lora: Option<&'a LoraPass>,
}

/// Sites whose factors ride in attention's kernels, and in that of SwiGLU.
const AROUND_ATTENTION: [SiteKind; 2] = [SiteKind::Qkv, SiteKind::OProj];
const AROUND_SWIGLU: [SiteKind; 2] = [SiteKind::GateUp, SiteKind::DownProj];

/// A model bound to its activations and cache.
pub struct Llama {
    config: ModelConfig,
    attend: Attend,
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
    /// Kept when kernels are bound anew, as u lives from one part of a pass to the next.
    lora_buffers: Option<LoraBuffers>,
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

impl Llama {
    /// Binds every kernel to the activations, to `weights` and to `cache`.
    ///
    /// Errors: [`Error::OutOfMemory`]; as [`Gpu::kernel`].
    pub fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        weights: &Weights,
        cache: &KvCache,
        a: Activations,
        limits: &Limits,
    ) -> Result<Self> {
        let heads = heads(config, limits.kv_f16);
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
        let [reduce, swiglu, norm] = shared_specs(gpu.caps(), heads);
        Ok(Self {
            config: config.clone(),
            attend: Attend {
                heads,
                part_rows: limits.part_rows() as u32,
                max_pages: limits.max_pages() as u32,
            },
            reduce: gpu.op(&reduce, &[&a.rows, &a.parts, &a.stats, &a.attn])?,
            swiglu: gpu.op(&swiglu, &[&a.gate_up, &a.h])?,
            norm: gpu.op(&norm, &[&a.x, &weights.norm, &a.normed])?,
            rows: limits.rows,
            lora: None,
            lora_buffers: None,
            head: LinearOp::new(gpu, weights.head(), head)?,
            embed,
            layers,
            activations: a,
        })
    }

    /// What [`Llama::new`] compiles, and the products of a pass over one row, the slowest to
    /// compile first.
    pub fn specs(
        caps: &Caps,
        config: &ModelConfig,
        weights: &Weights,
        kv_f16: bool,
    ) -> Vec<KernelSpec> {
        let heads = heads(config, kv_f16);
        let mut specs: Vec<KernelSpec> = CacheOps::specs(caps, heads, None).into();
        for layer in &weights.layers {
            let fused = layer.gate_up.chunks.len() == 1;
            let gate_up = if fused { Epilogue::SwiGlu } else { Epilogue::Store };
            specs.extend(layer.qkv.specs_for_one(caps, true, Epilogue::Store));
            specs.extend(layer.o_proj.specs_for_one(caps, false, Epilogue::Add));
            specs.extend(layer.gate_up.specs_for_one(caps, fused, gate_up));
            specs.extend(layer.down_proj.specs_for_one(caps, false, Epilogue::Add));
        }
        specs.extend(weights.head().specs_for_one(caps, true, Epilogue::Store));
        specs.extend(weights.embed_tokens.chunks.iter().map(|chunk| embedding::spec(chunk.dtype)));
        specs.extend(shared_specs(caps, heads));
        specs
    }

    /// Binds the cache's buffers anew, after it has grown.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub fn rebind(&mut self, gpu: &Gpu, cache: &KvCache) -> Result<()> {
        for (layer, buffers) in self.layers.iter_mut().zip(&cache.layers) {
            layer.cache = CacheOps::new(gpu, self.attend.heads, buffers, &self.activations, None)?;
        }
        self.lora = None;
        Ok(())
    }

    /// Lets go of the adapters' buffers and of what adapted kernels work on.
    pub(crate) fn drop_adapters(&mut self) {
        (self.lora, self.lora_buffers) = (None, None);
    }

    /// Whether the adapters' buffers have moved since; `None` while there are none.
    pub fn adapters_are_stale(&self, factors: Option<Factors<'_>>) -> bool {
        self.lora.as_ref().map(|lora| lora.moves) != factors.map(|factors| factors.moves)
    }

    /// Makes what adapted kernels work on, if it is not there.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(crate) fn make_u(&mut self, gpu: &Gpu) -> Result<()> {
        if self.lora_buffers.is_none() {
            self.lora_buffers = Some(LoraBuffers::new(gpu, &self.config, self.rows)?);
        }
        Ok(())
    }

    /// Binds the adapted kernels, if the adapters' buffers are not those they are bound to.
    ///
    /// Errors: as [`Gpu::kernel`]; [`Error::OutOfMemory`].
    pub fn bind_adapters(
        &mut self,
        gpu: &Gpu,
        weights: &Weights,
        cache: &KvCache,
        factors: Option<Factors<'_>>,
    ) -> Result<()> {
        if !self.adapters_are_stale(factors) {
            return Ok(());
        }
        let Some(factors) = factors else { return Ok(()) };
        self.make_u(gpu)?;
        let Some(buffers) = &self.lora_buffers else { return Ok(()) };
        let (config, heads, activations) = (&self.config, self.attend.heads, &self.activations);
        let around = Surroundings { config, weights, heads, cache, activations, buffers };
        self.lora = Some(LoraOps::new(gpu, around, factors)?);
        Ok(())
    }

    /// What binding adapters for the first time compiles.
    pub(crate) fn adapted_specs(&self, caps: &Caps, directory: Directory) -> Vec<KernelSpec> {
        LoraOps::specs(caps, self.attend.heads, directory)
    }

    /// Length of a page table.
    pub fn max_pages(&self) -> usize {
        self.attend.max_pages as usize
    }

    /// The parts of a pass, in order, up to what the head reads.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let layer = |i| [Part::Qkv(i), Part::Attention(i), Part::GateUp(i), Part::Down(i)];
        std::iter::once(Part::Embedding).chain((0..self.layers.len()).flat_map(layer))
    }

    /// Then those of the logits of `rows` rows from `x_row`, into `activations.logits` from its
    /// first.
    pub(crate) fn head_parts(x_row: u32, rows: u32) -> impl Iterator<Item = Part> {
        let range = move |y_row: u32| RowRange {
            count: MAX_COLS.min(rows - y_row),
            x_row: x_row + y_row,
            y_row,
        };
        (0..rows)
            .step_by(MAX_COLS as usize)
            .map(move |y_row| Part::Head(range(y_row)))
            .chain(std::iter::once(Part::HeadLora(RowRange { count: rows, x_row, y_row: 0 })))
    }

    /// Records a part of a pass.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub(crate) fn record(
        &self,
        commands: &mut Commands<'_>,
        part: Part,
        pass: Pass<'_>,
    ) -> Result<()> {
        let wide = pass.wide;
        match part {
            Part::Embedding => self.embedding(commands, pass),
            Part::Qkv(i) if wide => self.qkv_wide(commands, i, pass)?,
            Part::Qkv(i) => self.qkv_narrow(commands, i, pass)?,
            Part::Attention(i) if wide => self.attention_wide(commands, i, pass)?,
            Part::Attention(i) => self.attention_narrow(commands, i, pass)?,
            Part::GateUp(i) if wide => self.gate_up_wide(commands, i, pass)?,
            Part::GateUp(i) => self.gate_up_narrow(commands, i, pass)?,
            Part::Down(i) if wide => self.down_wide(commands, i, pass)?,
            Part::Down(i) => self.down_narrow(commands, i, pass)?,
            Part::Head(range) => self.head.record(commands, range, USize::default())?,
            Part::HeadLora(range) => self.head_lora(commands, range, pass),
        }
        Ok(())
    }

    fn embedding(&self, commands: &mut Commands<'_>, pass: Pass<'_>) {
        for (op, params) in &self.embed {
            embedding::record(commands, op, *params, pass.rows);
        }
        if let Some((ops, lora)) = self.lora.as_ref().zip(pass.lora) {
            ops.record_embedding(commands, lora, pass.rows);
        }
    }

    /// The adapted kernels, if a row has adapters at one of two sites that are fused.
    fn adapted<'a>(
        &'a self,
        pass: Pass<'a>,
        sites: [SiteKind; 2],
    ) -> Option<(&'a LoraOps, &'a LoraPass)> {
        let active = |lora: &LoraPass| sites.iter().any(|&kind| lora.u_width[kind as usize] > 0);
        self.lora.as_ref().zip(pass.lora).filter(|(_, lora)| active(lora))
    }

    /// Few rows: norms folded into mat-vecs; with adapters, their factors too.
    fn qkv_narrow(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        let range = RowRange::first(pass.rows);
        match self.adapted(pass, AROUND_ATTENTION) {
            None => self.layers[i].qkv.record(commands, range, USize::default()),
            Some((ops, lora)) => {
                let site = ops.adapted_site(SiteKind::Qkv, i, lora);
                let size = USize { width: site.u_width, parts: 1, alone: site.a };
                ops.by_layer[i].qkv.record(commands, range, size)
            }
        }
    }

    fn attention_narrow(
        &self,
        commands: &mut Commands<'_>,
        i: usize,
        pass: Pass<'_>,
    ) -> Result<()> {
        let (layer, range) = (&self.layers[i], RowRange::first(pass.rows));
        let Some((ops, lora)) = self.adapted(pass, AROUND_ATTENTION) else {
            self.attend(commands, i, pass);
            return layer.o_proj.record(commands, range, USize::default());
        };
        let [qkv, o_proj] = AROUND_ATTENTION.map(|kind| ops.adapted_site(kind, i, lora));
        let adapted = &ops.by_layer[i];
        let kernels = Kernels { cache: &adapted.cache, reduce: &ops.reduce };
        let around = Around { expanded: qkv.to_expand(), shrunk: o_proj.to_shrink() };
        let parts = self.attend.record(commands, kernels, pass.rows, pass.runs, around);
        let size = USize { width: o_proj.u_width, parts, alone: o_proj.b };
        adapted.o_proj.record(commands, range, size)
    }

    fn gate_up_narrow(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        let range = RowRange::first(pass.rows);
        match (self.adapted(pass, AROUND_SWIGLU), &self.layers[i].gate_up) {
            (Some((ops, lora)), _) => {
                let site = ops.adapted_site(SiteKind::GateUp, i, lora);
                let size = USize { width: site.u_width, parts: 1, alone: site.a };
                ops.by_layer[i].gate_up.record(commands, range, size)
            }
            (None, Some(fused)) => fused.record(commands, range, USize::default()),
            (None, None) => self.gate_up_wide(commands, i, Pass { lora: None, ..pass }),
        }
    }

    fn down_narrow(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        let (layer, range) = (&self.layers[i], RowRange::first(pass.rows));
        let Some((ops, lora)) = self.adapted(pass, AROUND_SWIGLU) else {
            if layer.gate_up.is_none() {
                self.swiglu(commands, pass);
            }
            return layer.down_proj.record(commands, range, USize::default());
        };
        let [gate_up, down] = AROUND_SWIGLU.map(|kind| ops.adapted_site(kind, i, lora));
        let (caps, f) = (commands.caps(), self.config.intermediate_size as u32);
        let params = SwiGluParams {
            f,
            gate_up_site: gate_up.number,
            gate_up_width: gate_up.u_width,
            down_site: down.number,
            down_width: down.u_width,
            pad: [0; 3],
            gate_up_alone: gate_up.b,
            down_alone: down.a,
        };
        swiglu::record(commands, &ops.swiglu, &params, pass.rows);
        let size = USize { width: down.u_width, parts: swiglu::parts(caps, f), alone: down.b };
        ops.by_layer[i].down_proj.record(commands, range, size)
    }

    /// Many rows: mat-muls, and the adapters' own beside them.
    fn qkv_wide(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        let layer = &self.layers[i];
        self.norm(commands, &layer.input_layernorm, pass.rows);
        layer.qkv_wide.record(commands, RowRange::first(pass.rows), USize::default())?;
        self.adapt(commands, SiteKind::Qkv, i, pass);
        Ok(())
    }

    fn attention_wide(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        self.attend(commands, i, pass);
        let range = RowRange::first(pass.rows);
        self.layers[i].o_proj.record(commands, range, USize::default())?;
        self.adapt(commands, SiteKind::OProj, i, pass);
        Ok(())
    }

    fn gate_up_wide(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        let layer = &self.layers[i];
        self.norm(commands, &layer.post_attention_layernorm, pass.rows);
        layer.gate_up_wide.record(commands, RowRange::first(pass.rows), USize::default())?;
        self.adapt(commands, SiteKind::GateUp, i, pass);
        Ok(())
    }

    fn down_wide(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) -> Result<()> {
        self.swiglu(commands, pass);
        let range = RowRange::first(pass.rows);
        self.layers[i].down_proj.record(commands, range, USize::default())?;
        self.adapt(commands, SiteKind::DownProj, i, pass);
        Ok(())
    }

    /// Attention without adapters around it.
    fn attend(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) {
        let kernels = Kernels { cache: &self.layers[i].cache, reduce: &self.reduce };
        self.attend.record(commands, kernels, pass.rows, pass.runs, Around::default());
    }

    fn swiglu(&self, commands: &mut Commands<'_>, pass: Pass<'_>) {
        let params = SwiGluParams { f: self.config.intermediate_size as u32, ..Default::default() };
        swiglu::record(commands, &self.swiglu, &params, pass.rows);
    }

    fn norm(&self, commands: &mut Commands<'_>, op: &Op, rows: u32) {
        let (k4, eps) = (self.config.hidden_size as u32 / 4, self.config.rms_norm_eps);
        let params = RmsNormParams { rows, k4, eps };
        rms_norm::record(commands, op, params);
    }

    /// What the adapters add to the first rows of a group of linears.
    fn adapt(&self, commands: &mut Commands<'_>, kind: SiteKind, i: usize, pass: Pass<'_>) {
        if let Some((ops, lora)) = self.lora.as_ref().zip(pass.lora) {
            ops.record_wide(commands, kind, i, lora, RowRange::first(pass.rows));
        }
    }

    fn head_lora(&self, commands: &mut Commands<'_>, range: RowRange, pass: Pass<'_>) {
        let head = SiteKind::LmHead;
        let active = |lora: &LoraPass| lora.u_width[head as usize] > 0;
        if let Some((ops, lora)) = self.lora.as_ref().zip(pass.lora.filter(|lora| active(lora))) {
            self.norm(commands, &self.norm, range.x_row + range.count);
            ops.record_wide(commands, head, 0, lora, range);
        }
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
        let o_proj = Binding {
            x: &a.attn,
            norm: None,
            y: &a.x,
            y_stride: hidden,
            epilogue: Epilogue::Add,
            lora: None,
        };
        let gate_up = Binding {
            x: &a.x,
            norm: before_mlp,
            y: &a.h,
            y_stride: config.intermediate_size,
            epilogue: Epilogue::SwiGlu,
            lora: None,
        };
        let gate_up_wide =
            Binding { x: &a.normed, norm: None, y: &a.gate_up, y_stride: weights.gate_up.n, ..qkv };
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

fn heads(config: &ModelConfig, kv_f16: bool) -> Heads {
    Heads {
        heads: config.num_attention_heads as u32,
        kv_heads: config.num_key_value_heads as u32,
        head_dim: config.head_dim as u32,
        page_len: PAGE_LEN as u32,
        kv_f16,
    }
}

/// The kernels that all layers share: attention's second half, SwiGLU, the norm.
fn shared_specs(caps: &Caps, heads: Heads) -> [KernelSpec; 3] {
    [
        attention::reduce_spec(caps, heads.head_dim, None),
        swiglu::spec(caps, None),
        rms_norm::spec(caps),
    ]
}

fn embed_ops(gpu: &Gpu, weights: &Weights, a: &Activations) -> Result<Vec<(Op, EmbeddingParams)>> {
    let table = &weights.embed_tokens;
    let bind = |chunk: &crate::model::linear::Chunk| {
        let params = EmbeddingParams {
            k_blocks: (table.k / crate::quant::BLOCK) as u32,
            row0: chunk.row0 as u32,
            rows: chunk.rows as u32,
        };
        let op = gpu.op(
            &embedding::spec(chunk.dtype),
            &[&a.token_ids, &chunk.words, &chunk.scales, &a.x],
        )?;
        Ok((op, params))
    };
    table.chunks.iter().map(bind).collect()
}
