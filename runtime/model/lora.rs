//! The LoRA path of a pass, bound to the activations and to the registry's buffers.
//!
//! Narrow passes are fused: A's rows ride in the mat-vec that reads the same input, or in the
//! kernel that makes that input; B is added by whatever reads the output next. That costs one
//! dispatch a layer. Wide passes and the head use two dispatches of their own for each group of
//! linears.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Class, Commands, Gpu, Memory, Op, Tensor};
use crate::kernels::attention::{self, Heads};
use crate::kernels::lora::{self, Directory, EmbeddingParams, ExpandParams, ShrinkParams};
use crate::kernels::matvec::{Epilogue, Lora, MAX_COLS};
use crate::kernels::swiglu;
use crate::model::activations::Activations;
use crate::model::attend::CacheOps;
use crate::model::kv_cache::KvCache;
use crate::model::linear::{Binding, LinearOp, LoraBinding};
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
    /// Kept alive by the bind groups too; here so that their memory is counted.
    _buffers: LoraBuffers,
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
    /// f32 `[rows, u_rows]`.
    u: T,
    /// f32 `[MAX_COLS, parts, u_rows]`.
    parts: T,
}

impl<T> LoraBuffers<T> {
    /// For passes of up to `rows` rows.
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
        let [u_rows, part_rows] =
            [SiteKind::Qkv, SiteKind::OProj].map(|kind| kind.most_u_rows() as usize);
        Ok(Self {
            u: words("adapters u", &[rows, u_rows])?,
            parts: words("adapters u parts", &[MAX_COLS as usize, parts, part_rows])?,
        })
    }
}

/// What everything here is bound to.
struct Bound<'a> {
    gpu: &'a Gpu,
    config: &'a ModelConfig,
    heads: Heads,
    activations: &'a Activations,
    directory: Directory,
    a: &'a Tensor,
    b: &'a Tensor,
    buffers: LoraBuffers,
}

impl LoraOps {
    /// Binds them.
    ///
    /// Errors: as [`Gpu::kernel`]; [`crate::Error::OutOfMemory`].
    pub(crate) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        weights: &Weights,
        (heads, rows): (Heads, usize),
        (cache, activations): (&KvCache, &Activations),
        Factors { directory, a, b, moves }: Factors<'_>,
    ) -> Result<Self> {
        let buffers = LoraBuffers::new(gpu, config, rows)?;
        let bound = Bound { gpu, config, heads, activations, directory, a, b, buffers };
        let layers = weights.layers.len();
        let by_layer = weights.layers.iter().zip(&cache.layers).enumerate();
        let act = activations;
        Ok(Self {
            layers,
            moves,
            by_layer: by_layer
                .map(|(i, (weights, cache))| bound.layer(i, weights, cache))
                .collect::<Result<_>>()?,
            reduce: gpu.op(
                &attention::reduce_spec(gpu.caps(), heads.head_dim, Some(bound.directory)),
                &[&act.rows, &act.parts, &act.stats, &act.attn, a, &bound.buffers.parts],
            )?,
            swiglu: gpu.op(
                &swiglu::spec(gpu.caps(), Some(bound.directory)),
                &[&act.gate_up, &act.h, a, b, &bound.buffers.u, &bound.buffers.parts],
            )?,
            wide: bound.wide()?,
            embed: gpu
                .op(&lora::embedding_spec(bound.directory), &[&act.token_ids, &act.x, a, b])?,
            hidden_size: config.hidden_size as u32,
            _buffers: bound.buffers,
        })
    }

    /// The number of a site.
    pub(crate) fn site(&self, kind: SiteKind, layer: usize) -> u32 {
        kind.site(self.layers, layer) as u32
    }

    /// Records what a group of linears of `layer` adds to `rows` rows, unless no row has adapters
    /// there.
    pub(crate) fn record_wide(
        &self,
        gpu: &Gpu,
        commands: &mut Commands<'_>,
        (kind, layer): (SiteKind, usize),
        pass: &LoraPass,
        (rows, x_row, y_row): (u32, u32, u32),
    ) {
        let (op, site, u_rows) =
            (&self.wide[kind as usize], self.site(kind, layer), pass.u_rows[kind as usize]);
        if u_rows == 0 {
            return;
        }
        lora::record_shrink(
            commands,
            gpu.caps(),
            &op.shrink,
            &ShrinkParams { k8s: op.k8s, x_row, site, u_rows },
            rows,
        );
        let [end0, end1] = op.ends;
        let params = ExpandParams { n: op.n, x_row, y_row, site, u_rows, end0, end1, pad: 0 };
        lora::record_expand(commands, &op.expand, &params, rows);
    }

    /// Records what the adapters add to the embeddings of `rows` tokens.
    pub(crate) fn record_embedding(&self, commands: &mut Commands<'_>, pass: &LoraPass, rows: u32) {
        if pass.u_rows[SiteKind::EmbedTokens as usize] > 0 {
            let site = self.site(SiteKind::EmbedTokens, 0);
            let params = EmbeddingParams { d: self.hidden_size, site, pad: [0; 2] };
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
        let (config, act) = (self.config, self.activations);
        let layers = config.num_hidden_layers;
        let (u, parts) = (&self.buffers.u, &self.buffers.parts);
        let makes = |kind: SiteKind| {
            let site = kind.site(layers, i) as u32;
            Some(LoraBinding { lora: Lora::Shrink(self.directory), factors: self.a, u, site })
        };
        let adds = |kind: SiteKind| {
            let site = kind.site(layers, i) as u32;
            Some(LoraBinding {
                lora: Lora::Expand(self.directory),
                factors: self.b,
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
        Ok(LoraLayer {
            qkv: LinearOp::new(self.gpu, &weights.qkv, qkv)?,
            cache: CacheOps::new(
                self.gpu,
                self.heads,
                cache,
                act,
                Some((self.directory, self.a, self.b, u, parts)),
            )?,
            o_proj: LinearOp::new(self.gpu, &weights.o_proj, o_proj)?,
            gate_up: LinearOp::new(self.gpu, &weights.gate_up, gate_up)?,
            down_proj: LinearOp::new(self.gpu, &weights.down_proj, down_proj)?,
        })
    }

    fn wide(&self) -> Result<[WideOps; 5]> {
        let (config, act) = (self.config, self.activations);
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        Ok([
            self.wide_op((&act.normed, d), (&act.qkv, q + 2 * kv), [q, q + kv])?,
            self.wide_op((&act.attn, q), (&act.x, d), [d; 2])?,
            self.wide_op((&act.normed, d), (&act.gate_up, 2 * f), [f, 2 * f])?,
            self.wide_op((&act.h, f), (&act.x, d), [d; 2])?,
            self.wide_op(
                (&act.normed, d),
                (&act.logits, config.vocab_size),
                [config.vocab_size; 2],
            )?,
        ])
    }

    fn wide_op(
        &self,
        (x, k): (&Tensor, usize),
        (y, n): (&Tensor, usize),
        ends: [usize; 2],
    ) -> Result<WideOps> {
        let u = &self.buffers.u;
        Ok(WideOps {
            shrink: self
                .gpu
                .op(&lora::shrink_spec(self.gpu.caps(), self.directory), &[x, self.a, u])?,
            expand: self.gpu.op(&lora::expand_spec(self.directory), &[y, self.b, u])?,
            k8s: k as u32 / 8,
            n: n as u32,
            ends: ends.map(|end| end as u32),
        })
    }
}
