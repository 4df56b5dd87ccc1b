//! The Llama forward pass: one implementation for every weight format, recorded on buffers bound
//! once.
//!
//! In: token ids and rows of (page table, position) on the device. Out: logits, and the cache
//! extended. Narrow passes (decoding a few sequences) fold the norms into mat-vecs; wide ones
//! (prompts) use mat-muls.

use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::attention::{self, Heads};
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::matvec::{Epilogue, MAX_COLS};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rope;
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::model::activations::{Activations, LOGIT_ROWS, Limits};
use crate::model::attend::{Around, Attend, CacheOps, Run};
use crate::model::kv_cache::{KvCache, PAGE_LEN};
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::lora::LoraOps;
use crate::model::site::{Factors, LoraPass, SiteKind};
use crate::model::weights::{LayerWeights, Weights};

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
        let rotations = rope::rotations(&config.rope_frequencies(), limits.positions);
        gpu.write(&a.rotations, 0, &rotations);
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

    /// Whether the adapters' buffers have moved since; `None` while there are none.
    pub fn adapters_are_stale(&self, factors: Option<Factors<'_>>) -> bool {
        self.lora.as_ref().map(|lora| lora.moves) != factors.map(|factors| factors.moves)
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
        if self.adapters_are_stale(factors) {
            let (shape, bound) = ((self.attend.heads, self.rows), (cache, &self.activations));
            let new = |factors| LoraOps::new(gpu, &self.config, weights, shape, bound, factors);
            self.lora = factors.map(new).transpose()?;
        }
        Ok(())
    }

    /// Length of a page table.
    pub fn max_pages(&self) -> usize {
        self.attend.max_pages as usize
    }

    /// Records the pass over the first `rows` rows of `token_ids` and `rows`, which `runs` covers
    /// in order; `lora` is what their adapters need.
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
            self.attend.record(
                gpu,
                commands,
                (&layer.cache, &self.reduce),
                (rows, runs),
                Around::default(),
            );
            return layer.o_proj.record(gpu, commands, range, USize::default());
        };
        let adapted = &ops.by_layer[i];
        let [qkv_a, qkv_b] = pass.alone(ops.site(qkv, i));
        let [o_proj_a, o_proj_b] = pass.alone(ops.site(o_proj, i));
        let around = Around {
            qkv: (ops.site(qkv, i), pass.u_rows[qkv as usize], qkv_b),
            o_proj: (ops.site(o_proj, i), pass.u_rows[o_proj as usize], o_proj_a),
        };
        adapted.qkv.record(
            gpu,
            commands,
            range,
            USize { rows: around.qkv.1, parts: 1, lora: qkv_a },
        )?;
        let parts =
            self.attend.record(gpu, commands, (&adapted.cache, &ops.reduce), (rows, runs), around);
        adapted.o_proj.record(
            gpu,
            commands,
            range,
            USize { rows: around.o_proj.1, parts, lora: o_proj_b },
        )
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
        let active =
            |pass: &LoraPass| pass.u_rows[gate_up as usize] + pass.u_rows[down as usize] > 0;
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
        let ([gate_up_a, gate_up_lora], [down_lora, down_b]) =
            (pass.alone(gate_up_site), pass.alone(down_site));
        adapted.gate_up.record(
            gpu,
            commands,
            range,
            USize { rows: gate_up_rows, parts: 1, lora: gate_up_a },
        )?;
        let pad = [0; 3];
        let params = SwiGluParams {
            f,
            gate_up_site,
            gate_up_rows,
            down_site,
            down_rows,
            pad,
            gate_up_lora,
            down_lora,
        };
        swiglu::record(commands, gpu.caps(), &ops.swiglu, &params, rows);
        let parts = swiglu::parts(gpu.caps(), f);
        adapted.down_proj.record(
            gpu,
            commands,
            range,
            USize { rows: down_rows, parts, lora: down_b },
        )
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
        self.attend.record(
            gpu,
            commands,
            (&layer.cache, &self.reduce),
            (rows, runs),
            Around::default(),
        );
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
        rms_norm::record(
            commands,
            &layer.post_attention_layernorm,
            gpu.caps(),
            self.norm_params(rows),
        );
        layer.gate_up_wide.record(gpu, commands, RowRange::first(rows), USize::default())?;
        if let Some((ops, pass)) = lora {
            ops.record_wide(gpu, commands, (SiteKind::GateUp, i), pass, (rows, 0, 0));
        }
        let params = SwiGluParams { f: self.config.intermediate_size as u32, ..Default::default() };
        swiglu::record(commands, gpu.caps(), &self.swiglu, &params, rows);
        Ok(())
    }

    fn norm_params(&self, rows: u32) -> RmsNormParams {
        RmsNormParams {
            rows,
            k4: self.config.hidden_size as u32 / 4,
            eps: self.config.rms_norm_eps,
            pad: 0,
        }
    }

    /// Records the logits of `rows` rows from `x_row` of the last pass, into
    /// `activations.logits[0..rows]`.
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
            let range =
                RowRange { count: MAX_COLS.min(rows - first), x_row: x_row + first, y_row: first };
            self.head.record(gpu, commands, range, USize::default())?;
        }
        let head = SiteKind::LmHead;
        if let Some((ops, pass)) =
            self.lora.as_ref().zip(lora).filter(|(_, pass)| pass.u_rows[head as usize] > 0)
        {
            rms_norm::record(commands, &self.norm, gpu.caps(), self.norm_params(x_row + rows));
            ops.record_wide(gpu, commands, (head, 0), pass, (rows, x_row, 0));
        }
        Ok(())
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
            pad: 0,
        };
        let op = gpu.op(
            &embedding::spec(chunk.dtype),
            &[&a.token_ids, &chunk.words, &chunk.scales, &a.x],
        )?;
        Ok((op, params))
    };
    table.chunks.iter().map(bind).collect()
}
