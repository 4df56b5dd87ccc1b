//! The forward pass of a decoder: one walk over the groups of `base/layout` for every family and
//! weight format, recorded on buffers bound once.
//!
//! In: token ids and rows of (page table, position) on the device. Out: logits, and the cache
//! extended. Narrow passes (decoding a few sequences) fold the norms into mat-vecs; wide ones
//! (prompts) use mat-muls.

mod layer;

use crate::base::ModelConfig;
use crate::base::layout::Source;
use crate::error::Result;
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::attention;
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::lora::Directory;
use crate::kernels::matvec::{Epilogue, MAX_COLS};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::model::activations::{Activations, Limits};
use crate::model::attend::{Around, Attend, CacheOps, Kernels, Run};
use crate::model::kv_cache::KvCache;
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::lora::{LoraBuffers, LoraOps, Surroundings};
use crate::model::site::{Factors, LoraPass, SiteKind};
use crate::model::weights::Weights;

use layer::{GroupOps, Layer, after, gate_of};
pub(crate) use layer::{OfModel, binding};

/// A part of a pass: at most one large product, with what is around it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// Token ids to x.
    Embedding,
    /// Of a layer: what makes a group's input, its product, and what follows.
    Group(usize, SiteKind),
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
    /// Norms and the gate have kernels of their own; for more than [`MAX_COLS`] rows.
    pub(crate) wide: bool,
    /// What the rows need of their adapters.
    pub(crate) lora: Option<&'a LoraPass>,
}

/// Sites whose factors ride in attention's kernels, and in that of the gate.
const AROUND_ATTENTION: [SiteKind; 2] = [SiteKind::Qkv, SiteKind::OProj];
const AROUND_GATE: [SiteKind; 2] = [SiteKind::GateUp, SiteKind::DownProj];

/// A model bound to its activations and cache.
pub struct Decoder {
    config: ModelConfig,
    attend: Attend,
    /// Its activations.
    pub activations: Activations,
    embed: Vec<(Op, EmbeddingParams)>,
    layers: Vec<Layer>,
    reduce: Op,
    gate: Op,
    norm: Op,
    head: LinearOp,
    rows: usize,
    lora: Option<LoraOps>,
    /// Kept when kernels are bound anew, as u lives from one part of a pass to the next.
    lora_buffers: Option<LoraBuffers>,
}

impl Decoder {
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
        let attend = Attend::new(config, limits);
        let layer = |i| Layer::new(gpu, config, &attend, OfModel { weights, cache }, i, &a);
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let head = Binding {
            x: &a.x,
            norm: Some((&weights.norm, config.norm_eps())),
            y: &a.logits,
            y_stride: config.vocab_size,
            epilogue: Epilogue::Store,
            lora: None,
        };
        let [reduce, gate, norm] = shared_specs(gpu.caps(), config);
        Ok(Self {
            config: config.clone(),
            attend,
            reduce: gpu.op(&reduce, &[&a.rows, &a.parts, &a.stats, &a.attn])?,
            gate: gpu.op(&gate, &[&a.gate_up, &a.h])?,
            norm: gpu.op(&norm, &[&a.x, &weights.norm, &a.normed])?,
            rows: limits.rows,
            lora: None,
            lora_buffers: None,
            head: LinearOp::new(gpu, weights.head(), head)?,
            embed: embed_ops(gpu, config, weights, &a)?,
            layers,
            activations: a,
        })
    }

    /// What [`Decoder::new`] compiles, and the products of passes over each number of `rows`, the
    /// slowest to compile first.
    pub fn specs(
        caps: &Caps,
        config: &ModelConfig,
        weights: &Weights,
        limits: &Limits,
        rows: &[u32],
    ) -> Vec<KernelSpec> {
        let attend = Attend::new(config, limits);
        let mut specs: Vec<KernelSpec> = CacheOps::specs(caps, &attend, None).into();
        for layer in &weights.layers {
            for group in &config.family().groups {
                let linear = layer.linear(group.site);
                let gate = gate_of(config, group, linear);
                let epilogue = gate.unwrap_or(after(group));
                let folded = matches!(group.source, Source::Norm(_))
                    && (gate.is_some() || group.site == SiteKind::Qkv);
                for &rows in rows {
                    specs.extend(linear.specs_for(caps, rows, folded, epilogue));
                }
            }
        }
        for &rows in rows {
            specs.extend(weights.head().specs_for(caps, rows, true, Epilogue::Store));
        }
        specs.extend(weights.embed_tokens.chunks.iter().map(|chunk| embedding::spec(chunk.dtype)));
        specs.extend(shared_specs(caps, config));
        specs
    }

    /// Binds the cache's buffers anew, after it has grown.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub fn rebind(&mut self, gpu: &Gpu, weights: &Weights, cache: &KvCache) -> Result<()> {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let of_layer = OfModel { weights, cache }.layer(&self.config, i);
            layer.cache = CacheOps::new(gpu, &self.attend, of_layer, &self.activations, None)?;
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
        let (config, attend, activations) = (&self.config, &self.attend, &self.activations);
        let model = OfModel { weights, cache };
        let around = Surroundings { config, model, attend, activations, buffers };
        self.lora = Some(LoraOps::new(gpu, around, factors)?);
        Ok(())
    }

    /// What binding adapters for the first time compiles.
    pub(crate) fn adapted_specs(&self, caps: &Caps, directory: Directory) -> Vec<KernelSpec> {
        LoraOps::specs(caps, &self.config, &self.attend, directory)
    }

    /// Length of a page table.
    pub fn max_pages(&self) -> usize {
        self.attend.max_pages as usize
    }

    /// The parts of a pass, in order, up to what the head reads.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let layer = |i| SiteKind::IN_LAYER.map(|kind| Part::Group(i, kind));
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
        match part {
            Part::Embedding => self.embedding(commands, pass),
            Part::Group(i, kind) if pass.wide => self.wide(commands, i, kind, pass)?,
            Part::Group(i, kind) => self.narrow(commands, i, kind, pass)?,
            Part::Head(range) => self.head.record(commands, range, USize::default())?,
            Part::HeadLora(range) => self.head_lora(commands, range, pass),
        }
        Ok(())
    }

    /// Records the last norm, of what the last layer made of the first `rows` rows, into
    /// `activations.normed`.
    pub(crate) fn record_states(&self, commands: &mut Commands<'_>, rows: u32) {
        self.norm(commands, &self.norm, rows);
    }

    /// What the product of a group has read, once a wide pass has recorded it: `[rows, K]`.
    pub(crate) fn input_of(&self, site: SiteKind) -> &Tensor {
        let groups = &self.config.family().groups;
        let source = groups.iter().find(|group| group.site == site).map(|group| group.source);
        match source {
            Some(Source::Attention) => &self.activations.attn,
            Some(Source::Gate) => &self.activations.h,
            Some(Source::Norm(_)) | None => &self.activations.normed,
        }
    }

    /// Bytes of a row's state.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.config.hidden_size as u64 * 4
    }

    fn embedding(&self, commands: &mut Commands<'_>, pass: Pass<'_>) {
        for (op, params) in &self.embed {
            embedding::record(commands, op, *params, pass.rows);
        }
        if let Some((ops, lora)) = self.lora.as_ref().zip(pass.lora) {
            ops.record_embedding(commands, lora, pass.rows);
        }
    }

    /// The adapted kernels, if a row has adapters at one of the two sites that are fused with
    /// `kind`.
    fn adapted<'a>(
        &'a self,
        pass: Pass<'a>,
        kind: SiteKind,
    ) -> Option<(&'a LoraOps, &'a LoraPass)> {
        let sites = if AROUND_ATTENTION.contains(&kind) { AROUND_ATTENTION } else { AROUND_GATE };
        let active = |lora: &LoraPass| sites.iter().any(|&kind| lora.u_width[kind as usize] > 0);
        self.lora.as_ref().zip(pass.lora).filter(|(_, lora)| active(lora))
    }

    /// Many rows: mat-muls, and the adapters' own beside them.
    fn wide(
        &self,
        commands: &mut Commands<'_>,
        i: usize,
        kind: SiteKind,
        pass: Pass<'_>,
    ) -> Result<()> {
        let group = self.layers[i].group(kind);
        self.input(commands, i, kind, pass, false);
        group.product.record(commands, RowRange::first(pass.rows), USize::default())?;
        if let Some((ops, lora)) = self.lora.as_ref().zip(pass.lora) {
            ops.record_wide(commands, kind, i, lora, RowRange::first(pass.rows));
        }
        self.norm_out(commands, group, pass.rows);
        Ok(())
    }

    /// What a product of a group reads; `is_gated`: the gate was folded into the product before.
    fn input(
        &self,
        commands: &mut Commands<'_>,
        i: usize,
        kind: SiteKind,
        pass: Pass<'_>,
        is_gated: bool,
    ) {
        match (&self.layers[i].group(kind).norm_in, kind) {
            (Some(norm), _) => self.norm(commands, norm, pass.rows),
            (None, SiteKind::OProj) => self.attend(commands, i, pass),
            (None, _) if !is_gated => self.gate(commands, pass),
            (None, _) => {}
        }
    }

    /// Few rows: norms and gate folded into mat-vecs; with adapters, their factors too.
    fn narrow(
        &self,
        commands: &mut Commands<'_>,
        i: usize,
        kind: SiteKind,
        pass: Pass<'_>,
    ) -> Result<()> {
        let (group, range) = (self.layers[i].group(kind), RowRange::first(pass.rows));
        if let Some((ops, lora)) = self.adapted(pass, kind) {
            self.narrow_adapted(commands, i, kind, pass, (ops, lora))?;
        } else if let Some(folded) = &group.folded {
            folded.record(commands, range, USize::default())?;
        } else {
            let is_gated = self.layers[i].group(SiteKind::GateUp).folded.is_some();
            self.input(commands, i, kind, pass, is_gated);
            group.product.record(commands, range, USize::default())?;
        }
        self.norm_out(commands, group, pass.rows);
        Ok(())
    }

    fn narrow_adapted(
        &self,
        commands: &mut Commands<'_>,
        i: usize,
        kind: SiteKind,
        pass: Pass<'_>,
        (ops, lora): (&LoraOps, &LoraPass),
    ) -> Result<()> {
        let (layer, range) = (&ops.by_layer[i], RowRange::first(pass.rows));
        let site = ops.adapted_site(kind, i, lora);
        let parts = match kind {
            SiteKind::OProj => {
                let qkv = ops.adapted_site(SiteKind::Qkv, i, lora);
                let kernels = Kernels { cache: &layer.cache, reduce: &ops.reduce };
                let around = Around { expanded: qkv.to_expand(), shrunk: site.to_shrink() };
                self.attend.record(commands, kernels, pass.rows, pass.runs, around)
            }
            SiteKind::DownProj => self.gate_adapted(commands, i, pass, (ops, lora)),
            _ => 1,
        };
        let alone =
            if matches!(kind, SiteKind::OProj | SiteKind::DownProj) { site.b } else { site.a };
        let size = USize { width: site.u_width, parts, alone };
        layer.product(kind).record(commands, range, size)?;
        if kind == SiteKind::Qkv && !self.attend.input.is_plain() {
            // Before what lies beside the linears, so not on the way into the cache.
            ops.record_expand(commands, kind, i, lora, range);
        }
        Ok(())
    }

    /// Gives the parts in which u of what follows comes.
    fn gate_adapted(
        &self,
        commands: &mut Commands<'_>,
        i: usize,
        pass: Pass<'_>,
        (ops, lora): (&LoraOps, &LoraPass),
    ) -> u32 {
        let [gate_up, down] = AROUND_GATE.map(|kind| ops.adapted_site(kind, i, lora));
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
        swiglu::parts(caps, f)
    }

    /// Attention without adapters around it.
    fn attend(&self, commands: &mut Commands<'_>, i: usize, pass: Pass<'_>) {
        let kernels = Kernels { cache: &self.layers[i].cache, reduce: &self.reduce };
        self.attend.record(commands, kernels, pass.rows, pass.runs, Around::default());
    }

    fn gate(&self, commands: &mut Commands<'_>, pass: Pass<'_>) {
        let params = SwiGluParams { f: self.config.intermediate_size as u32, ..Default::default() };
        swiglu::record(commands, &self.gate, &params, pass.rows);
    }

    fn norm(&self, commands: &mut Commands<'_>, op: &Op, rows: u32) {
        let (k4, eps) = (self.config.hidden_size as u32 / 4, self.config.norm_eps());
        let params = RmsNormParams { rows, k4, eps };
        rms_norm::record(commands, op, params);
    }

    /// What a group's output goes through on its way to the residual stream, if it does.
    fn norm_out(&self, commands: &mut Commands<'_>, group: &GroupOps, rows: u32) {
        if let Some(norm) = &group.norm_out {
            let (k4, eps) = (self.config.hidden_size as u32 / 4, self.config.rms_norm_eps);
            rms_norm::record(commands, norm, RmsNormParams { rows, k4, eps });
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

/// The kernels that all layers share: attention's second half, the gate, the norm.
fn shared_specs(caps: &Caps, config: &ModelConfig) -> [KernelSpec; 3] {
    [
        attention::reduce_spec(caps, config.head_dim as u32, None),
        swiglu::spec(caps, config.family().activation, None),
        rms_norm::spec(caps, false),
    ]
}

fn embed_ops(
    gpu: &Gpu,
    config: &ModelConfig,
    weights: &Weights,
    a: &Activations,
) -> Result<Vec<(Op, EmbeddingParams)>> {
    let table = &weights.embed_tokens;
    let bind = |chunk: &crate::model::linear::Chunk| {
        let params = EmbeddingParams {
            k_blocks: (table.k / crate::quant::BLOCK) as u32,
            row0: chunk.row0 as u32,
            rows: chunk.rows as u32,
            scale: config.input_scale(),
        };
        let op = gpu.op(
            &embedding::spec(chunk.dtype),
            &[&a.token_ids, &chunk.words, &chunk.scales, &a.x],
        )?;
        Ok((op, params))
    };
    table.chunks.iter().map(bind).collect()
}
