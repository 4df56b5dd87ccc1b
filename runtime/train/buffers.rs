//! Every buffer of a training step by name and shape: what the plan adds up and the trainer
//! allocates.
//!
//! Letters: T tokens of a micro-batch, D hidden, F intermediate, H heads, G key and value heads, E
//! width of a head, V vocabulary, L layers, r rank, C rows of logits at a time.
//!
//! Layers go in segments of k (all L without checkpointing). Of each segment the input is kept
//! (Chen et al. 2016, arXiv:1604.06174); what the backward pass needs beside it exists for one
//! segment at a time, in `slots`.

use serde::{Deserialize, Serialize};

use crate::adapter::MAX_RANK;
use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::model::kv_cache::PAGE_LEN;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The model's, frozen or not.
    Weights,
    /// The factors A and B.
    Adapter,
    /// One a trained parameter.
    Gradients,
    /// The optimiser's moments.
    OptimizerStates,
    /// Grows with the tokens at work.
    Activations,
    /// Keys and values of conversations.
    KvCache,
    /// A rule of thumb's share for what it does not count.
    Overhead,
}

impl Class {
    /// Every class, in the order of a table.
    pub const ALL: [Self; 7] = [
        Self::Weights,
        Self::Adapter,
        Self::Gradients,
        Self::OptimizerStates,
        Self::Activations,
        Self::KvCache,
        Self::Overhead,
    ];

    /// For people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Adapter => "adapter",
            Self::Gradients => "gradients",
            Self::OptimizerStates => "optimiser states",
            Self::Activations => "activations",
            Self::KvCache => "KV cache",
            Self::Overhead => "overhead",
        }
    }
}

/// A buffer on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Unique in its list.
    pub name: String,
    /// What it is for.
    pub class: Class,
    /// Row-major, in elements.
    pub shape: Vec<u64>,
    /// Bytes of an element.
    pub element_bytes: u64,
}

impl Buffer {
    /// f32 or u32 elements.
    fn words(name: impl Into<String>, class: Class, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            class,
            shape: shape.iter().map(|&n| n as u64).collect(),
            element_bytes: 4,
        }
    }

    /// Its size; a size beyond `u64` is the largest there is.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.element_bytes, |bytes, &n| bytes.saturating_mul(n))
    }
}

/// A linear of a layer that gets `LoRA` factors: `A [r, K]`, `B [N, r]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The last part of its path, e.g. `q_proj`.
    pub name: String,
    /// Rows of the linear, its outputs.
    pub n: usize,
    /// Its inputs.
    pub k: usize,
}

impl Target {
    /// Every linear of a layer, in the order of use.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        );
        let all = [
            ("q_proj", q, d),
            ("k_proj", kv, d),
            ("v_proj", kv, d),
            ("o_proj", d, q),
            ("gate_proj", f, d),
            ("up_proj", f, d),
            ("down_proj", d, f),
        ];
        all.map(|(name, n, k)| Self { name: name.into(), n, k }).into()
    }

    /// Those of `names`, in the order of use; `all-linear` is every one.
    ///
    /// Errors: [`Error::InvalidArgument`] for a name that a layer does not have, or none.
    pub fn named(config: &ModelConfig, names: &[impl AsRef<str>]) -> Result<Vec<Self>> {
        let all = Self::all(config);
        if names.iter().any(|name| name.as_ref() == "all-linear") {
            return Ok(all);
        }
        let unknown = names
            .iter()
            .map(AsRef::as_ref)
            .find(|name| all.iter().all(|target| target.name != *name));
        if names.is_empty() || unknown.is_some() {
            let known =
                all.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
            let reason =
                format!("`{}` is none of {known}, all-linear", unknown.unwrap_or_default());
            return Err(Error::InvalidArgument { name: "targets", reason });
        }
        Ok(all
            .into_iter()
            .filter(|target| names.iter().any(|name| name.as_ref() == target.name))
            .collect())
    }

    /// Targets with the same number share their input, so their factors A make one product.
    fn input(&self) -> usize {
        match self.name.as_str() {
            "q_proj" | "k_proj" | "v_proj" => 0,
            "o_proj" => 1,
            "gate_proj" | "up_proj" => 2,
            _ => 3,
        }
    }
}

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
    /// Names of the numbers it keeps for each parameter.
    pub const fn states(self) -> &'static [&'static str] {
        match self {
            Self::Sgd => &[],
            Self::Momentum => &["m"],
            Self::AdamW => &["m", "v"],
        }
    }
}

/// What decides the size of a training step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrainShape {
    /// Rows of a micro-batch.
    pub micro_batch: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Keep the input of every k-th layer and compute the rest again; `None` keeps everything.
    pub checkpoint_every: Option<usize>,
    /// r, of every target.
    pub rank: usize,
    /// Linears of each layer that are adapted.
    pub targets: Vec<Target>,
    /// How a step is taken.
    pub optimizer: Optimizer,
    /// Rows of logits at a time: 64, or 256 with cooperative matrices.
    pub logit_rows: usize,
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

    /// Parameters of the adapter: r (N + K) a target, in each layer (Hu et al. 2021,
    /// arXiv:2106.09685, section 4.2).
    pub fn parameters(&self, config: &ModelConfig) -> usize {
        let layer =
            self.targets.iter().map(|target| self.rank * (target.n + target.k)).sum::<usize>();
        config.num_hidden_layers * layer
    }

    /// Errors: [`Error::InvalidArgument`] for a size of 0, a row longer than the context, a rank
    /// above that of a matrix or of what can run, or no targets.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let most = config.max_position_embeddings;
        let widest = self.targets.iter().map(|target| target.n.min(target.k)).min().unwrap_or(0);
        // A larger rank could be trained, but not run.
        let widest = widest.min(MAX_RANK as usize);
        let checks = [
            ("batch", self.micro_batch, usize::MAX),
            ("seq_len", self.seq_len, most),
            ("checkpoint_every", self.checkpoint_every.unwrap_or(1), usize::MAX),
            ("rank", self.rank, widest),
            ("logit_rows", self.logit_rows, usize::MAX),
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
}

/// The buffer that holds the input of `layer` when segments are `k` layers long.
pub fn layer_input(layer: usize, k: usize) -> String {
    match layer % k {
        0 => format!("segments.{}.x", layer / k),
        slot => format!("slots.{slot}.x"),
    }
}

/// Every buffer of a training step but the weights, for the trainer to allocate.
pub fn train_buffers(config: &ModelConfig, shape: &TrainShape) -> Vec<Buffer> {
    let (t, d, k) = (shape.tokens(), config.hidden_size, shape.segment(config));
    let layers = config.num_hidden_layers;
    let activation = |name: String, shape: &[usize]| Buffer::words(name, Class::Activations, shape);
    let mut all = adapter_buffers(shape.parameters(config), shape.optimizer);
    all.extend((0..layers).step_by(k).map(|layer| activation(layer_input(layer, k), &[t, d])));
    all.extend((1..k).map(|slot| activation(layer_input(slot, k), &[t, d])));
    for slot in 0..k {
        let saved = |name: &str, shape: &[usize]| activation(format!("slots.{slot}.{name}"), shape);
        all.extend(slot_shapes(config, t).map(|(name, shape)| saved(name, &shape)));
        all.extend(
            shape
                .targets
                .iter()
                .map(|target| saved(&format!("u.{}", target.name), &[t, shape.rank])),
        );
    }
    all.extend(
        scratch_shapes(config, shape)
            .into_iter()
            .map(|(name, shape)| activation(name.into(), &shape)),
    );
    all
}

/// One flat vector each.
fn adapter_buffers(parameters: usize, optimizer: Optimizer) -> Vec<Buffer> {
    let mut all = vec![
        Buffer::words("adapter.params", Class::Adapter, &[parameters]),
        Buffer::words("adapter.grads", Class::Gradients, &[parameters]),
    ];
    let state = |name: &&str| {
        Buffer::words(format!("adapter.{name}"), Class::OptimizerStates, &[parameters])
    };
    all.extend(optimizer.states().iter().map(state));
    all
}

/// What a layer keeps for its backward pass, beside its input and the products with A.
fn slot_shapes(config: &ModelConfig, t: usize) -> [(&'static str, [usize; 2]); 5] {
    let (heads, kv, e) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    [
        // Rotated.
        ("qkv", [t, (heads + 2 * kv) * e]),
        ("attn", [t, heads * e]),
        // Log of the softmax's sum.
        ("lse", [t, heads]),
        // Input of the second norm.
        ("x_mid", [t, config.hidden_size]),
        ("gate_up", [t, 2 * config.intermediate_size]),
    ]
}

/// What every layer uses in turn, the head's buffers and what comes from the host.
fn scratch_shapes(config: &ModelConfig, shape: &TrainShape) -> Vec<(&'static str, Vec<usize>)> {
    let (t, d, f, v) =
        (shape.tokens(), config.hidden_size, config.intermediate_size, config.vocab_size);
    let (heads, kv, e) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let sharing =
        |input: usize| shape.targets.iter().filter(|target| target.input() == input).count();
    let widest = (0..4).map(sharing).max().unwrap_or(0) * shape.rank;
    vec![
        // Output of the last layer.
        ("x_out", vec![t, d]),
        ("normed", vec![t, d]),
        ("h", vec![t, f]),
        ("dx", vec![t, d]),
        ("d_qkv", vec![t, (heads + 2 * kv) * e]),
        ("d_attn", vec![t, heads * e]),
        // Of the input of q, k and v or of gate and up; theirs takes the place of gate and up.
        ("d_normed", vec![t, d]),
        ("dh", vec![t, f]),
        // Row sums of d_attn · attn.
        ("delta", vec![t, heads]),
        // B's gradient side, of the targets that share an input.
        ("du", vec![t, widest]),
        // u32, of the largest element of each row of the gradient at hand.
        ("exponents", vec![t]),
        // Rows that have a weight in the loss, and then their gradients: every row at most.
        ("head.x", vec![t, d]),
        ("head.logits", vec![t.min(shape.logit_rows), v]),
        // u32 from here on, but for the weights and losses.
        // Their rows, and for every row its place among them.
        ("head.rows", vec![t]),
        ("head.places", vec![t]),
        ("head.targets", vec![t]),
        ("head.weights", vec![t]),
        ("head.losses", vec![t]),
        ("token_ids", vec![t]),
        // First token and end of each token's example.
        ("rows", vec![t, 2]),
        // Cosine and sine of positions 0 to 255, then of multiples of 256.
        ("rotations", vec![256 + shape.seq_len.div_ceil(256), e]),
    ]
}

/// Keys and values of `tokens` positions, in whole pages: 2 bytes an element where the device has
/// f16.
pub fn kv_buffers(config: &ModelConfig, tokens: usize, element_bytes: usize) -> Vec<Buffer> {
    let pages = tokens.div_ceil(PAGE_LEN);
    let shape =
        [pages, config.num_key_value_heads, PAGE_LEN, config.head_dim].map(|n| n as u64).to_vec();
    let buffer = |layer: usize, which: &str| Buffer {
        name: format!("kv_cache.{layer}.{which}"),
        class: Class::KvCache,
        shape: shape.clone(),
        element_bytes: element_bytes as u64,
    };
    (0..config.num_hidden_layers)
        .flat_map(|layer| ["keys", "values"].map(|which| buffer(layer, which)))
        .collect()
}

/// Activations of the engine that answers: passes of `rows` rows, contexts of `positions` tokens.
pub fn inference_buffers(config: &ModelConfig, rows: usize, positions: usize) -> Vec<Buffer> {
    use crate::kernels::{attention, matvec, sample};
    use crate::model::activations::LOGIT_ROWS;
    let (d, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let (heads, e) = (config.num_attention_heads, config.head_dim);
    let qkv = (heads + 2 * config.num_key_value_heads) * e;
    let part_rows =
        (attention::splits(u32::try_from(positions).unwrap_or(u32::MAX)) as usize).max(512);
    let vocab = u32::try_from(v).unwrap_or(u32::MAX);
    // Prompts and decode steps have their own.
    let (both, columns) = (rows + LOGIT_ROWS, matvec::MAX_COLS as usize);
    let all = [
        ("token_ids", [both, 1]),
        ("rows", [both, 2]),
        ("pages", [LOGIT_ROWS + 1, positions.div_ceil(PAGE_LEN)]),
        ("logits", [LOGIT_ROWS + columns, v]),
        ("x", [both, d]),
        ("normed", [both, d]),
        ("qkv", [both, qkv]),
        ("attn", [both, heads * e]),
        ("gate_up", [both, 2 * f]),
        ("h", [both, f]),
        ("attention parts", [part_rows, heads * e]),
        ("attention stats", [part_rows, heads * 2]),
        ("rotations", [256 + positions.div_ceil(256), e]),
        ("seen", [LOGIT_ROWS, sample::seen_words(vocab) as usize]),
        ("partials", [2 * LOGIT_ROWS, vocab.div_ceil(sample::RUN) as usize]),
    ];
    all.map(|(name, shape)| Buffer::words(name, Class::Activations, &shape)).into()
}
