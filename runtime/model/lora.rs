//! The LoRA path of a pass, bound to the activations and to the registry's buffers.
//!
//! Narrow passes are fused: A's rows ride in the mat-vec that reads the same input, or in the
//! kernel that makes that input; B is added by whatever reads the output next. That costs one
//! dispatch a layer. Wide passes and the head use two dispatches of their own for each group of
//! linears.

use crate::base::ModelConfig;
use crate::base::layout::Group;
use crate::error::Result;
use crate::gpu::{Caps, Class, Commands, Gpu, KernelSpec, Memory, Op, Tensor};
use crate::kernels::attention;
use crate::kernels::lora::{self, Directory, EmbeddingParams, Entry, ExpandParams, ShrinkParams};
use crate::kernels::matvec::{Lora, MAX_COLS};
use crate::kernels::swiglu;
use crate::model::activations::Activations;
use crate::model::attend::{Adapted, Attend, CacheOps, Site};
use crate::model::decoder::{OfModel, binding};
use crate::model::linear::{Binding, LinearOp, LoraBinding, RowRange};
use crate::model::site::{Factors, LoraPass, SiteKind};

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
    input_scale: f32,
}

/// What a narrow pass runs in place of a layer's own.
pub(crate) struct LoraLayer {
    /// By [`SiteKind`].
    products: [LinearOp; 4],
    pub(crate) cache: CacheOps,
}

impl LoraLayer {
    /// The product of a group, with what its adapters make or add.
    pub(crate) fn product(&self, kind: SiteKind) -> &LinearOp {
        &self.products[kind as usize % self.products.len()]
    }
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
    pub(crate) model: OfModel<'a>,
    pub(crate) attend: &'a Attend,
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
        let Surroundings { config, activations: act, buffers, .. } = around;
        let bound = Bound { gpu, around, factors };
        let Factors { directory, a, b, moves } = factors;
        let [reduce, swiglu, embedding] = own_specs(gpu.caps(), config, directory);
        Ok(Self {
            layers: config.num_hidden_layers,
            moves,
            by_layer: (0..config.num_hidden_layers)
                .map(|i| bound.layer(i))
                .collect::<Result<_>>()?,
            reduce: gpu
                .op(&reduce, &[&act.rows, &act.parts, &act.stats, &act.attn, a, &buffers.parts])?,
            swiglu: gpu.op(&swiglu, &[&act.gate_up, &act.h, a, b, &buffers.u, &buffers.parts])?,
            wide: bound.wide()?,
            embed: gpu.op(&embedding, &[&act.token_ids, &act.x, a, b])?,
            hidden_size: config.hidden_size as u32,
            input_scale: config.input_scale(),
        })
    }

    /// What [`LoraOps::new`] compiles.
    pub(crate) fn specs(
        caps: &Caps,
        config: &ModelConfig,
        attend: &Attend,
        directory: Directory,
    ) -> Vec<KernelSpec> {
        let mut specs: Vec<KernelSpec> = CacheOps::specs(caps, attend, Some(directory)).into();
        specs.extend(own_specs(caps, config, directory));
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
        let (op, u_width) = (&self.wide[kind as usize], pass.u_width[kind as usize]);
        if u_width > 0 {
            let params = ShrinkParams { k8s: op.k8s, x_row, site: self.site(kind, layer), u_width };
            lora::record_shrink(commands, &op.shrink, &params, rows);
        }
        self.record_expand(commands, kind, layer, pass, RowRange { count: rows, x_row, y_row });
    }

    /// Records what u of a group of linears adds to `rows` rows.
    pub(crate) fn record_expand(
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
        let [end0, end1] = op.ends;
        let params = ExpandParams { n: op.n, x_row, y_row, site, u_width, end0, end1 };
        lora::record_expand(commands, &op.expand, &params, rows);
    }

    /// Records what the adapters add to the embeddings of `rows` tokens.
    pub(crate) fn record_embedding(&self, commands: &mut Commands<'_>, pass: &LoraPass, rows: u32) {
        if pass.u_width[SiteKind::EmbedTokens as usize] > 0 {
            let site = self.site(SiteKind::EmbedTokens, 0);
            let params = EmbeddingParams { d: self.hidden_size, site, scale: self.input_scale };
            lora::record_embedding(commands, &self.embed, &params, rows);
        }
    }
}

impl Bound<'_> {
    fn layer(&self, i: usize) -> Result<LoraLayer> {
        let Surroundings { config, model, attend, activations: act, buffers } = self.around;
        let LoraBuffers { u, parts } = buffers;
        let weights = &model.weights.layers[i];
        let product = |group: &Group| {
            let (linear, plain) =
                (weights.linear(group.site), binding(act, group, weights.linear(group.site)));
            let site = group.site.site(config.num_hidden_layers, i) as u32;
            let Factors { directory, a, b, .. } = self.factors;
            let (makes, adds) = (Lora::Shrink(directory), Lora::Expand(directory));
            // With the norm of its input u is made, where there is one; else it is added, having
            // been made with the input.
            let binding = match weights.group(group.site).norm_in.as_ref() {
                Some(gain) => Binding {
                    x: &act.x,
                    norm: Some((gain, config.norm_eps())),
                    lora: Some(LoraBinding { lora: makes, factors: a, u, site }),
                    ..plain
                },
                None => Binding {
                    lora: Some(LoraBinding { lora: adds, factors: b, u: parts, site }),
                    ..plain
                },
            };
            LinearOp::new(self.gpu, linear, binding)
        };
        let [qkv, o_proj, gate_up, down_proj] = &config.family().groups;
        let adapted = Adapted { factors: self.factors, u, parts };
        let of_layer = model.layer(config, i);
        Ok(LoraLayer {
            products: [product(qkv)?, product(o_proj)?, product(gate_up)?, product(down_proj)?],
            cache: CacheOps::new(self.gpu, attend, of_layer, act, Some(adapted))?,
        })
    }

    fn wide(&self) -> Result<[WideOps; 5]> {
        let Surroundings { config, model, activations: act, .. } = self.around;
        let shape = config.base_shape();
        let of = |kind: SiteKind, x, y| {
            let rows = kind.targets().iter().map(|&target| shape.shape(target)[0]);
            let ends: Vec<usize> = rows
                .scan(0, |end, rows| {
                    *end += rows;
                    Some(*end)
                })
                .collect();
            let k = shape.shape(kind.targets()[0])[1];
            let n = ends.last().copied().unwrap_or(0);
            let end = |i: usize| ends.get(i).copied().unwrap_or(n);
            self.wide_op(&Wide { x, k, y, n, ends: [end(0), end(1)] })
        };
        let group = |group: &Group| {
            let Binding { x, y, .. } =
                binding(act, group, model.weights.layers[0].linear(group.site));
            of(group.site, x, y)
        };
        let [qkv, o_proj, gate_up, down_proj] = &config.family().groups;
        let head = of(SiteKind::LmHead, &act.normed, &act.logits)?;
        Ok([group(qkv)?, group(o_proj)?, group(gate_up)?, group(down_proj)?, head])
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

/// The second half of attention, the gate and the embedding.
fn own_specs(caps: &Caps, config: &ModelConfig, directory: Directory) -> [KernelSpec; 3] {
    [
        attention::reduce_spec(caps, config.head_dim as u32, Some(directory)),
        swiglu::spec(caps, config.family().activation, Some(directory)),
        lora::embedding_spec(directory),
    ]
}
