//! The LoRA path of a pass, bound to the activations and to the registry's buffers.
//!
//! Narrow passes are fused: A's rows ride in the mat-vec that reads the same input, or in the
//! kernel that makes that input; B is added by whatever reads the output next. That costs one
//! dispatch a layer. Wide passes and the head use two dispatches of their own for each group of
//! linears.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Caps, Class, Commands, Gpu, KernelSpec, Memory, Op, Tensor};
use crate::kernels::attention::{self, Heads};
use crate::kernels::lora::{self, Directory, EmbeddingParams, Entry, ExpandParams, ShrinkParams};
use crate::kernels::matvec::{Epilogue, Lora, MAX_COLS};
use crate::kernels::swiglu;
use crate::model::activations::Activations;
use crate::model::attend::{Adapted, CacheOps, Site};
use crate::model::kv_cache::KvCache;
use crate::model::linear::{Binding, LinearOp, LoraBinding, RowRange};
use crate::model::site::{Factors, LoraPass, SiteKind};
use crate::model::weights::{LayerWeights, Weights};

/// The adapted variants of a model's kernels.
pub(crate) struct LoraOps {
    layers: usize,
    /// How often the registry's buffers had moved when these were bound.
    pub(crate) moves: u64,
    pub(crate) by_layer: Vec<LoraLayer>,
    pub(crate) reduce: Op,
    pub(crate) swiglu: Op,
    wide: [WideOps; 5],
    embed: Op,
    hidden_size: u32,
}

/// What a narrow pass runs in place of a layer's own.
pub(crate) struct LoraLayer {
    pub(crate) qkv: LinearOp,
    pub(crate) cache: CacheOps,
    pub(crate) o_proj: LinearOp,
    pub(crate) gate_up: LinearOp,
    pub(crate) down_proj: LinearOp,
}

/// `u = A x`, then `y += B u`, for any number of rows.
struct WideOps {
    shrink: Op,
    expand: Op,
    k8s: u32,
    n: u32,
    ends: [u32; 2],
}

/// u, whole and in parts.
pub(crate) struct LoraBuffers<T = Tensor> {
    /// f32 `[rows, u_width]`.
    u: T,
    /// f32 `[MAX_COLS, parts, u_width]`.
    parts: T,
}

impl<T> LoraBuffers<T> {
    /// For passes of up to `rows` rows.
    ///
    /// Errors: [`crate::Error::OutOfMemory`].
    pub(crate) fn new(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        rows: usize,
    ) -> Result<Self> {
        let attention = config.num_key_value_heads.max(attention::reduce_parts(
            config.num_attention_heads as u32,
            config.head_dim as u32,
        ) as usize);
        let parts =
            attention.max(swiglu::parts(memory.caps(), config.intermediate_size as u32) as usize);
        let words = |name: &str, shape: &[usize]| memory.words(Class::Activations, name, shape);
        let [u_width, part_width] =
            [SiteKind::Qkv, SiteKind::OProj].map(|kind| kind.most_u_width() as usize);
        Ok(Self {
            u: words("adapters u", &[rows, u_width])?,
            parts: words("adapters u parts", &[MAX_COLS as usize, parts, part_width])?,
        })
    }
}

/// What the adapted variants of a model's kernels lie between.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a Weights,
    pub(crate) heads: Heads,
    pub(crate) cache: &'a KvCache,
    pub(crate) activations: &'a Activations,
    pub(crate) buffers: &'a LoraBuffers,
}

/// What everything here is bound to.
struct Bound<'a> {
    gpu: &'a Gpu,
    around: Surroundings<'a>,
    factors: Factors<'a>,
}

/// A site in a pass.
#[derive(Clone, Copy)]
pub(crate) struct AdaptedSite {
    pub(crate) number: u32,
    /// Elements of a row of its u.
    pub(crate) u_width: u32,
    /// The rows' only adapter in A, and in B.
    pub(crate) a: Entry,
    pub(crate) b: Entry,
}

impl AdaptedSite {
    /// For what makes u.
    pub(crate) fn to_shrink(self) -> Site {
        Site { number: self.number, u_width: self.u_width, alone: self.a }
    }

    /// For what adds B's part.
    pub(crate) fn to_expand(self) -> Site {
        Site { number: self.number, u_width: self.u_width, alone: self.b }
    }
}

impl LoraOps {
    /// Binds them.
    ///
    /// Errors: as [`Gpu::kernel`]; [`crate::Error::OutOfMemory`].
    pub(crate) fn new(gpu: &Gpu, around: Surroundings<'_>, factors: Factors<'_>) -> Result<Self> {
        let Surroundings { config, weights, heads, cache, activations: act, buffers } = around;
        let bound = Bound { gpu, around, factors };
        let by_layer = weights.layers.iter().zip(&cache.layers).enumerate();
        let Factors { directory, a, b, moves } = factors;
        let [reduce, swiglu, embedding] = own_specs(gpu.caps(), heads, directory);
        Ok(Self {
            layers: weights.layers.len(),
            moves,
            by_layer: by_layer
                .map(|(i, (weights, cache))| bound.layer(i, weights, cache))
                .collect::<Result<_>>()?,
            reduce: gpu
                .op(&reduce, &[&act.rows, &act.parts, &act.stats, &act.attn, a, &buffers.parts])?,
            swiglu: gpu.op(&swiglu, &[&act.gate_up, &act.h, a, b, &buffers.u, &buffers.parts])?,
            wide: bound.wide()?,
            embed: gpu.op(&embedding, &[&act.token_ids, &act.x, a, b])?,
            hidden_size: config.hidden_size as u32,
        })
    }

    /// What [`LoraOps::new`] compiles.
    pub(crate) fn specs(caps: &Caps, heads: Heads, directory: Directory) -> Vec<KernelSpec> {
        let mut specs: Vec<KernelSpec> = CacheOps::specs(caps, heads, Some(directory)).into();
        specs.extend(own_specs(caps, heads, directory));
        specs.extend([lora::shrink_spec(caps, directory), lora::expand_spec(directory)]);
        specs
    }

    /// The number of a site.
    pub(crate) fn site(&self, kind: SiteKind, layer: usize) -> u32 {
        kind.site(self.layers, layer) as u32
    }

    /// A site in a pass.
    pub(crate) fn adapted_site(
        &self,
        kind: SiteKind,
        layer: usize,
        pass: &LoraPass,
    ) -> AdaptedSite {
        let number = self.site(kind, layer);
        let [a, b] = pass.alone(number);
        AdaptedSite { number, u_width: pass.u_width[kind as usize], a, b }
    }

    /// Records what a group of linears of `layer` adds to `rows` rows, unless no row has adapters
    /// there.
    pub(crate) fn record_wide(
        &self,
        commands: &mut Commands<'_>,
        kind: SiteKind,
        layer: usize,
        pass: &LoraPass,
        RowRange { count: rows, x_row, y_row }: RowRange,
    ) {
        let (op, site, u_width) =
            (&self.wide[kind as usize], self.site(kind, layer), pass.u_width[kind as usize]);
        if u_width == 0 {
            return;
        }
        let params = ShrinkParams { k8s: op.k8s, x_row, site, u_width };
        lora::record_shrink(commands, &op.shrink, &params, rows);
        let [end0, end1] = op.ends;
        let params = ExpandParams { n: op.n, x_row, y_row, site, u_width, end0, end1 };
        lora::record_expand(commands, &op.expand, &params, rows);
    }

    /// Records what the adapters add to the embeddings of `rows` tokens.
    pub(crate) fn record_embedding(&self, commands: &mut Commands<'_>, pass: &LoraPass, rows: u32) {
        if pass.u_width[SiteKind::EmbedTokens as usize] > 0 {
            let site = self.site(SiteKind::EmbedTokens, 0);
            let params = EmbeddingParams { d: self.hidden_size, site };
            lora::record_embedding(commands, &self.embed, &params, rows);
        }
    }
}

impl Bound<'_> {
    fn layer(
        &self,
        i: usize,
        weights: &LayerWeights,
        cache: &(Tensor, Tensor),
    ) -> Result<LoraLayer> {
        let (config, act) = (self.around.config, self.around.activations);
        let layers = config.num_hidden_layers;
        let LoraBuffers { u, parts } = self.around.buffers;
        let makes = |kind: SiteKind| {
            let site = kind.site(layers, i) as u32;
            Some(LoraBinding {
                lora: Lora::Shrink(self.factors.directory),
                factors: self.factors.a,
                u,
                site,
            })
        };
        let adds = |kind: SiteKind| {
            let site = kind.site(layers, i) as u32;
            Some(LoraBinding {
                lora: Lora::Expand(self.factors.directory),
                factors: self.factors.b,
                u: parts,
                site,
            })
        };
        let eps = config.rms_norm_eps;
        let (store, hidden) = (Epilogue::Store, config.hidden_size);
        let qkv = Binding {
            x: &act.x,
            norm: Some((&weights.input_layernorm, eps)),
            y: &act.qkv,
            y_stride: weights.qkv.n,
            epilogue: store,
            lora: makes(SiteKind::Qkv),
        };
        let gate_up = Binding {
            norm: Some((&weights.post_attention_layernorm, eps)),
            y: &act.gate_up,
            y_stride: weights.gate_up.n,
            lora: makes(SiteKind::GateUp),
            ..qkv
        };
        let o_proj = Binding {
            x: &act.attn,
            norm: None,
            y: &act.x,
            y_stride: hidden,
            epilogue: Epilogue::Add,
            lora: adds(SiteKind::OProj),
        };
        let down_proj = Binding { x: &act.h, lora: adds(SiteKind::DownProj), ..o_proj };
        let adapted = Adapted { factors: self.factors, u, parts };
        Ok(LoraLayer {
            qkv: LinearOp::new(self.gpu, &weights.qkv, qkv)?,
            cache: CacheOps::new(self.gpu, self.around.heads, cache, act, Some(adapted))?,
            o_proj: LinearOp::new(self.gpu, &weights.o_proj, o_proj)?,
            gate_up: LinearOp::new(self.gpu, &weights.gate_up, gate_up)?,
            down_proj: LinearOp::new(self.gpu, &weights.down_proj, down_proj)?,
        })
    }

    fn wide(&self) -> Result<[WideOps; 5]> {
        let (config, act) = (self.around.config, self.around.activations);
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let v = config.vocab_size;
        let qkv = q + 2 * kv;
        let shapes = [
            Wide { x: &act.normed, k: d, y: &act.qkv, n: qkv, ends: [q, q + kv] },
            Wide { x: &act.attn, k: q, y: &act.x, n: d, ends: [d; 2] },
            Wide { x: &act.normed, k: d, y: &act.gate_up, n: 2 * f, ends: [f, 2 * f] },
            Wide { x: &act.h, k: f, y: &act.x, n: d, ends: [d; 2] },
            Wide { x: &act.normed, k: d, y: &act.logits, n: v, ends: [v; 2] },
        ];
        let [qkv, o_proj, gate_up, down_proj, head] = shapes.map(|wide| self.wide_op(&wide));
        Ok([qkv?, o_proj?, gate_up?, down_proj?, head?])
    }

    fn wide_op(&self, wide: &Wide<'_>) -> Result<WideOps> {
        let (gpu, u) = (self.gpu, &self.around.buffers.u);
        let Factors { directory, a, b, .. } = self.factors;
        Ok(WideOps {
            shrink: gpu.op(&lora::shrink_spec(gpu.caps(), directory), &[wide.x, a, u])?,
            expand: gpu.op(&lora::expand_spec(directory), &[wide.y, b, u])?,
            k8s: wide.k as u32 / 8,
            n: wide.n as u32,
            ends: wide.ends.map(|end| end as u32),
        })
    }
}

/// A group of linears from x to y.
struct Wide<'a> {
    x: &'a Tensor,
    k: usize,
    y: &'a Tensor,
    n: usize,
    /// Where the first two linears' rows of N end.
    ends: [usize; 2],
}

/// The second half of attention, SwiGLU and the embedding.
fn own_specs(caps: &Caps, heads: Heads, directory: Directory) -> [KernelSpec; 3] {
    [
        attention::reduce_spec(caps, heads.head_dim, Some(directory)),
        swiglu::spec(caps, Some(directory)),
        lora::embedding_spec(directory),
    ]
}
