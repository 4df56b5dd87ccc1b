//! Every buffer of a training step: what decides their sizes, and the buffers, made in a device or
//! in a sum.
//!
//! Letters: T tokens of a micro-batch, D hidden, F intermediate, H heads, G key and value heads, E
//! width of a head, V vocabulary, L layers, r rank, C rows of logits at a time.
//!
//! Layers go in segments of k (all L without checkpointing). Of each segment the input is kept
//! (Chen et al. 2016, arXiv:1604.06174); what the backward pass needs beside it exists for one
//! segment at a time, in slots.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::adapter::{Factor, MAX_RANK, Target};
use crate::base::ModelConfig;
use crate::base::layout::{Follows, Group};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Class, Memory, Tensor};
use crate::kernels::{grad_norm, rope};
use crate::model::site::SiteKind;

/// How a step is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// No state.
    Sgd,
    /// SGD with momentum: one number a parameter.
    Momentum,
    /// Two moments a parameter (Loshchilov and Hutter 2019, arXiv:1711.05101).
    #[default]
    AdamW,
}

impl Optimizer {
    /// Numbers that it keeps for each parameter.
    pub const fn states(self) -> usize {
        match self {
            Self::Sgd => 0,
            Self::Momentum => 1,
            Self::AdamW => 2,
        }
    }
}

/// The parameters, frozen ones included.
pub(crate) const PARAMS: &str = "adapter.params";
/// What the parameters that are trained were when the run began.
pub(crate) const START: &str = "adapter.start";

/// A flat vector of a run's state.
pub(crate) struct StateVector {
    pub(crate) name: &'static str,
    class: Class,
    pub(crate) len: usize,
}

/// What decides the size of a training step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainShape {
    /// Rows of a micro-batch.
    pub micro_batch: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Keep the input of every k-th layer and compute the rest again; `None` keeps everything.
    pub checkpoint_every: Option<usize>,
    /// r, of every target.
    pub rank: usize,
    /// Linears of each layer that are adapted: `A [r, K]`, `B [N, r]`.
    pub targets: Vec<Target>,
    /// How a step is taken.
    pub optimizer: Optimizer,
    /// The factor that is not trained.
    pub freeze: Option<Factor>,
    /// There is a term that pulls to where the run began, which is kept for it.
    pub proximal: bool,
}

impl TrainShape {
    /// T, the tokens of a micro-batch.
    pub fn tokens(&self) -> usize {
        self.micro_batch.saturating_mul(self.seq_len)
    }

    /// k, the layers of a segment.
    pub fn segment(&self, config: &ModelConfig) -> usize {
        self.checkpoint_every.unwrap_or(usize::MAX).clamp(1, config.num_hidden_layers)
    }

    /// C, the rows of logits at a time: more where cooperative matrices have use for them.
    pub fn logit_rows(&self, caps: &Caps) -> usize {
        self.tokens().min(if caps.cooperative_matrix.is_some() { 256 } else { 64 })
    }

    /// Parameters of the adapter: r (N + K) a target, in each layer (Hu et al. 2021,
    /// arXiv:2106.09685, section 4.2).
    pub fn parameters(&self, config: &ModelConfig) -> usize {
        self.of_factors(config, None)
    }

    /// Those that are trained.
    pub fn trained_parameters(&self, config: &ModelConfig) -> usize {
        self.of_factors(config, self.freeze)
    }

    fn of_factors(&self, config: &ModelConfig, without: Option<Factor>) -> usize {
        let base = config.base_shape();
        let size = |&target: &Target| {
            let [n, k] = base.shape(target);
            match without {
                Some(Factor::A) => n,
                Some(Factor::B) => k,
                None => n + k,
            }
        };
        config.num_hidden_layers * self.rank * self.targets.iter().map(size).sum::<usize>()
    }

    /// What a run's state is, in the order of its buffers: the parameters, what the optimiser keeps
    /// of those that are trained, and where they began if that pulls.
    pub(crate) fn state(&self, config: &ModelConfig) -> Vec<StateVector> {
        let trained = self.trained_parameters(config);
        let kept = |name| StateVector { name, class: Class::OptimizerStates, len: trained };
        let params =
            StateVector { name: PARAMS, class: Class::Adapter, len: self.parameters(config) };
        let moments = &["adapter.m", "adapter.v"][..self.optimizer.states()];
        let start = self.proximal.then_some(START);
        std::iter::once(params).chain(moments.iter().copied().chain(start).map(kept)).collect()
    }

    /// Errors: [`Error::InvalidArgument`] for a size of 0, a row longer than the context, a rank
    /// above that of a matrix or of what can run, or no targets.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let (base, most) = (config.base_shape(), config.max_position_embeddings);
        let sizes = self.targets.iter().flat_map(|&target| base.shape(target));
        // A larger rank could be trained, but not run.
        let widest = sizes.min().unwrap_or(0).min(MAX_RANK as usize);
        let checks = [
            ("batch", self.micro_batch, usize::MAX),
            ("seq_len", self.seq_len, most),
            ("checkpoint_every", self.checkpoint_every.unwrap_or(1), usize::MAX),
            ("rank", self.rank, widest),
        ];
        for (name, value, most) in checks {
            if !(1..=most).contains(&value) {
                let end = if most == usize::MAX {
                    "1 or more is".into()
                } else {
                    format!("1 to {most} are")
                };
                return Err(Error::InvalidArgument {
                    name,
                    reason: format!("{value}, but {end} possible"),
                });
            }
        }
        Ok(())
    }

    /// Most targets that share an input, so that their factors A make one product.
    fn most_sharing(&self) -> usize {
        let sharing = |kind: &SiteKind| {
            self.targets.iter().filter(|target| kind.targets().contains(target)).count()
        };
        SiteKind::ALL.iter().map(sharing).max().unwrap_or(0)
    }
}

/// The buffer that holds the input of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerInput {
    /// The first of a segment: kept until its backward pass.
    Segment(usize),
    /// In the segment at hand.
    Slot(usize),
}

impl LayerInput {
    /// That of `layer` when segments are `k` layers long.
    pub fn of(layer: usize, k: usize) -> Self {
        match layer % k {
            0 => Self::Segment(layer / k),
            slot => Self::Slot(slot),
        }
    }

    /// The buffer's name.
    pub fn name(self) -> String {
        match self {
            Self::Segment(segment) => format!("segments.{segment}.x"),
            Self::Slot(slot) => format!("slots.{slot}.x"),
        }
    }
}

/// The buffers of a training run.
pub(crate) struct Buffers<T = Tensor> {
    /// As [`TrainShape::state`] has it. It stays when the others make room.
    pub(crate) state: Arc<Vec<T>>,
    pub(crate) grads: T,
    /// Inputs of the segments, and of the layers in a segment that are not its first.
    inputs: [Vec<T>; 2],
    slots: Vec<Slot<T>>,
    /// Output of the last layer.
    pub(crate) x_out: T,
    pub(crate) normed: T,
    pub(crate) h: T,
    pub(crate) dx: T,
    pub(crate) d_qkv: T,
    pub(crate) d_attn: T,
    /// Of the input of q, k and v or of gate and up; theirs takes the place of gate and up.
    pub(crate) d_normed: T,
    pub(crate) dh: T,
    /// Row sums of `d_attn` · `attn`.
    pub(crate) delta: T,
    /// Gradient of a group's output that a norm follows; empty where none does.
    pub(crate) d_out: Option<T>,
    /// B's gradient side, of the targets that share an input.
    pub(crate) du: T,
    /// u32, of the largest element of each row of the gradient at hand.
    pub(crate) exponents: T,
    pub(crate) head: Head<T>,
    /// u32.
    pub(crate) token_ids: T,
    /// u32: first token and end of each token's example.
    pub(crate) rows: T,
    /// Cosine and sine of positions 0 to 255, then of multiples of 256, of each of
    /// [`ModelConfig::rotaries`].
    pub(crate) rotations: Vec<T>,
    /// Of the gradient: sums of squares, and their root.
    pub(crate) norm: [T; 2],
}

/// What a layer keeps for its backward pass, beside its input.
pub(crate) struct Slot<T = Tensor> {
    /// Rotated.
    pub(crate) qkv: T,
    pub(crate) attn: T,
    /// Log of the softmax's sum.
    pub(crate) lse: T,
    /// Input of the second norm.
    pub(crate) x_mid: T,
    pub(crate) gate_up: T,
    /// As their linears made them, where their heads are normed.
    pub(crate) raw_qkv: Option<T>,
    /// Outputs of the groups that a norm follows, in their order.
    outs: Vec<(SiteKind, T)>,
    /// `A x` of each target, in their order.
    pub(crate) u: Vec<T>,
}

/// From the last layer's output to the loss.
pub(crate) struct Head<T = Tensor> {
    /// Rows that have a weight in the loss, and then their gradients: every row at most.
    pub(crate) x: T,
    pub(crate) logits: T,
    /// u32: their rows, and for every row its place among them.
    pub(crate) rows: T,
    /// See [`Self::rows`].
    pub(crate) places: T,
    /// u32.
    pub(crate) targets: T,
    pub(crate) weights: T,
    pub(crate) losses: T,
}

impl<T> Buffers<T> {
    /// The state of a run.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(crate) fn state(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        shape: &TrainShape,
    ) -> Result<Arc<Vec<T>>> {
        let vectors = shape.state(config).into_iter();
        let state = vectors.map(|vector| memory.words(vector.class, vector.name, &[vector.len]));
        state.collect::<Result<_>>().map(Arc::new)
    }

    /// The others, beside `state`.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(crate) fn around(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        shape: &TrainShape,
        state: Arc<Vec<T>>,
    ) -> Result<Self> {
        let (t, k, layers) = (shape.tokens(), shape.segment(config), config.num_hidden_layers);
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (heads, e) = (config.num_attention_heads, config.head_dim);
        let qkv = (heads + 2 * config.num_key_value_heads) * e;
        let trained = [shape.trained_parameters(config)];
        let words = |name: &str, shape: &[usize]| memory.words(Class::Activations, name, shape);
        let input = |layer| words(&LayerInput::of(layer, k).name(), &[t, d]);
        let partials = grad_norm::partials(u32::try_from(trained[0]).unwrap_or(u32::MAX));
        Ok(Self {
            state,
            grads: memory.words(Class::Gradients, "adapter.grads", &trained)?,
            inputs: [
                (0..layers).step_by(k).map(input).collect::<Result<_>>()?,
                (1..k).map(input).collect::<Result<_>>()?,
            ],
            slots: (0..k)
                .map(|slot| Slot::new(memory, config, shape, slot))
                .collect::<Result<_>>()?,
            x_out: words("x_out", &[t, d])?,
            normed: words("normed", &[t, d])?,
            h: words("h", &[t, f])?,
            dx: words("dx", &[t, d])?,
            d_qkv: words("d_qkv", &[t, qkv])?,
            d_attn: words("d_attn", &[t, heads * e])?,
            d_normed: words("d_normed", &[t, d])?,
            dh: words("dh", &[t, f])?,
            d_out: (norms_out(config).count() > 0).then(|| words("d_out", &[t, d])).transpose()?,
            delta: words("delta", &[t, heads])?,
            du: words("du", &[t, shape.most_sharing() * shape.rank])?,
            exponents: words("exponents", &[t])?,
            head: Head {
                x: words("head.x", &[t, d])?,
                logits: words(
                    "head.logits",
                    &[shape.logit_rows(memory.caps()), config.vocab_size],
                )?,
                rows: words("head.rows", &[t])?,
                places: words("head.places", &[t])?,
                targets: words("head.targets", &[t])?,
                weights: words("head.weights", &[t])?,
                losses: words("head.losses", &[t])?,
            },
            token_ids: words("token_ids", &[t])?,
            rows: words("rows", &[t, 2])?,
            rotations: (config.rotaries(0).iter())
                .map(|_| words("rotations", &rope::rotations_shape(shape.seq_len, e)))
                .collect::<Result<_>>()?,
            norm: [words("norm.partials", &[partials as usize])?, words("norm", &[1])?],
        })
    }

    /// The input of `layer`.
    pub(crate) fn input(&self, layer: usize) -> &T {
        match LayerInput::of(layer, self.slots.len()) {
            LayerInput::Segment(segment) => &self.inputs[0][segment],
            LayerInput::Slot(slot) => &self.inputs[1][slot - 1],
        }
    }

    /// The output of `layer`: the next one's input.
    pub(crate) fn output(&self, layer: usize, layers: usize) -> &T {
        if layer + 1 == layers { &self.x_out } else { self.input(layer + 1) }
    }

    /// What `layer` keeps.
    pub(crate) fn slot(&self, layer: usize) -> &Slot<T> {
        &self.slots[layer % self.slots.len()]
    }
}

/// The groups whose output goes through a norm.
fn norms_out(config: &ModelConfig) -> impl Iterator<Item = &'static Group> {
    let normed = |group: &&Group| matches!(group.follows, Follows::AddNormed(_));
    config.family().groups.iter().filter(normed)
}

impl<T> Slot<T> {
    /// The output of a group, where a norm follows it.
    pub(crate) fn out(&self, site: SiteKind) -> Option<&T> {
        self.outs.iter().find(|(of, _)| *of == site).map(|(_, out)| out)
    }

    fn new(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        shape: &TrainShape,
        slot: usize,
    ) -> Result<Self> {
        let (t, heads, e) = (shape.tokens(), config.num_attention_heads, config.head_dim);
        let words = |name: &str, width: usize| {
            memory.words(Class::Activations, &format!("slots.{slot}.{name}"), &[t, width])
        };
        let u = |target: &Target| words(&format!("u.{}", target.name()), shape.rank);
        Ok(Self {
            qkv: words("qkv", (heads + 2 * config.num_key_value_heads) * e)?,
            attn: words("attn", heads * e)?,
            lse: words("lse", heads)?,
            x_mid: words("x_mid", config.hidden_size)?,
            gate_up: words("gate_up", 2 * config.intermediate_size)?,
            raw_qkv: (config.family().qk_norms.is_some())
                .then(|| words("raw_qkv", (heads + 2 * config.num_key_value_heads) * e))
                .transpose()?,
            outs: norms_out(config)
                .map(|group| {
                    let name = format!("out.{}", group.site.targets()[0].name());
                    Ok((group.site, words(&name, config.hidden_size)?))
                })
                .collect::<Result<_>>()?,
            u: shape.targets.iter().map(u).collect::<Result<_>>()?,
        })
    }
}
