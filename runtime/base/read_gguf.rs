//! A model's sizes from the keys of a GGUF file; what is not understood is refused by name.

use super::config::{MAX_HEAD_DIM, ModelConfig, SlidingWindow, Traits, unsupported};
use super::layout::{Architecture, FAMILIES, Family};
use super::rope::RopeScaling;
use crate::error::{Error, Result};
use crate::format::gguf::{Array, FromValue, Gguf, Value};

/// Bounds that keep every product of sizes far below `u64`, and far above any model's.
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_VOCAB: usize = 1 << 22;
pub(super) const MAX_CONTEXT: usize = 1 << 24;

/// Keys after the family's prefix that are read here or in `rope`, are checked against others, or change nothing.
const KNOWN: [&str; 30] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "attention.scale",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "expert_count",
    // Of what is refused or not there.
    "attention.layer_norm_epsilon",
    "attention.sliding_window_pattern",
    "expert_used_count",
    "expert_feed_forward_length",
    "rope.freq_base_swa",
    "rope.scaling.original_context_length",
    "rope.scaling.orig_ctx_len",
    "rope.scaling.finetuned",
    "pooling_type",
    "tensor_data_layout",
];
/// Scales, for which 1 is as good as none.
const SCALES: [&str; 6] = [
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attention.output_scale",
    "rope.scaling.alpha",
    "expert_weights_scale",
];
/// Keys of `YaRN`, which are for `rope.scaling.type` = `yarn`.
const YARN: &str = "rope.scaling.yarn_";

/// Layers of Gemma 3 27B, of which files do not say that its attention is scaled by another width.
const GEMMA_27B: usize = 62;

/// Keys that a family has beyond those that all have.
fn own_keys(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Gemma3 => &["attention.scale"],
        Architecture::Granite => {
            &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"]
        }
        _ => &[],
    }
}

/// The keys of a family in a file.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    family: &'static Family,
}

impl<'a> Keys<'a> {
    /// Errors: [`Error::Unsupported`] for another family, or a file that is no model.
    fn of(gguf: &'a Gguf) -> Result<Self> {
        let architecture = gguf.architecture()?;
        if let Some(kind) = gguf.find_note::<&str>("general.type").filter(|&kind| kind != "model") {
            let what = format!("a GGUF file of type `{kind}` as a model");
            return Err(unsupported(what, "give the base model"));
        }
        let Some(family) = FAMILIES.iter().find(|family| family.gguf == architecture) else {
            let known = FAMILIES.each_ref().map(|family| family.gguf).join(", ");
            let what = format!("architecture `{architecture}`");
            return Err(unsupported(what, &format!("{known} are")));
        };
        Ok(Self { gguf, family })
    }

    /// A key in full.
    pub(super) fn name(self, key: &str) -> String {
        format!("{}.{key}", self.family.gguf)
    }

    pub(super) fn find<T: FromValue<'a>>(self, key: &str) -> Result<Option<T>> {
        self.gguf.find(&self.name(key))
    }

    pub(super) fn get<T: FromValue<'a>>(self, key: &str) -> Result<T> {
        self.gguf.get(&self.name(key))
    }

    fn invalid(self, key: &str, reason: String) -> Error {
        Error::InvalidMetadata { key: self.name(key), reason }
    }

    /// A size: 1 to `max`.
    fn size(self, key: &str, max: usize) -> Result<usize> {
        let n = self.get::<u32>(key)? as usize;
        let reason = format!("{n} is not between 1 and {max}");
        if (1..=max).contains(&n) { Ok(n) } else { Err(self.invalid(key, reason)) }
    }

    fn find_size(self, key: &str, max: usize) -> Result<Option<usize>> {
        self.find::<Value<'_>>(key)?.map(|_| self.size(key, max)).transpose()
    }

    /// A finite number above 0.
    fn positive(self, key: &str) -> Result<f32> {
        let v: f32 = self.get(key)?;
        let reason = format!("{v} is not a number above 0");
        if v.is_finite() && v > 0.0 { Ok(v) } else { Err(self.invalid(key, reason)) }
    }

    fn find_positive(self, key: &str) -> Result<Option<f32>> {
        self.find::<Value<'_>>(key)?.map(|_| self.positive(key)).transpose()
    }
}

impl ModelConfig {
    /// Reads and checks the sizes; [`Self::check_tensors`] is the caller's next step.
    ///
    /// Errors: [`Error::Unsupported`] for another architecture or feature,
    /// [`Error::InvalidMetadata`] naming the key, [`Error::MissingTensor`] without an embedding,
    /// [`Error::InvalidTensor`] for one with too few rows.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let keys = Keys::of(gguf)?;
        keys.refuse_others()?;
        let num_attention_heads = keys.size("attention.head_count", MAX_HEADS)?;
        let hidden_size = keys.size("embedding_length", MAX_WIDTH)?;
        let head_dim = keys
            .find_size("attention.key_length", MAX_HEAD_DIM)?
            .unwrap_or(hidden_size / num_attention_heads);
        let kv_heads = keys.find_size("attention.head_count_kv", MAX_HEADS)?;
        let mut config = Self {
            architecture: keys.family.architecture,
            hidden_size,
            intermediate_size: keys.size("feed_forward_length", MAX_WIDTH)?,
            num_hidden_layers: keys.size("block_count", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads: kv_heads.unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: vocab_size(keys)?,
            rms_norm_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            rope_theta: keys.find_positive("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: RopeScaling::None,
            max_position_embeddings: keys.size("context_length", MAX_CONTEXT)?,
            tie_word_embeddings: gguf.tensor("lm_head.weight").is_none(),
            traits: Traits::default(),
        };
        config.traits = keys.traits(&config)?;
        config.rope_scaling = RopeScaling::from_gguf(keys, config.rotary_dim() / 2)?;
        config.check_sizes(|key| keys.name(key.gguf))?;
        keys.check_heads(&config)?;
        Ok(config)
    }
}

impl Keys<'_> {
    /// In what a model of these sizes is no plain llama.
    fn traits(self, config: &ModelConfig) -> Result<Traits> {
        let plain = Traits { sliding_window: self.window(config)?, ..Traits::default() };
        let scale = |key| Ok::<_, Error>(self.find_positive(key)?.unwrap_or(1.0));
        let own_scale = || {
            let scale = self.find_positive("attention.scale")?;
            Ok::<_, Error>(scale.and_then(|scale| config.unusual_scale(scale)))
        };
        Ok(match config.architecture {
            Architecture::Gemma3 => {
                let width = config.hidden_size / config.num_attention_heads;
                let wide = (config.num_hidden_layers == GEMMA_27B).then(|| root(width).recip());
                let embedding_scale = root(config.hidden_size);
                Traits { attention_scale: own_scale()?.or(wide), embedding_scale, ..plain }
            }
            Architecture::Granite => Traits {
                attention_scale: own_scale()?,
                embedding_scale: scale("embedding_scale")?,
                residual_scale: scale("residual_scale")?,
                logit_scale: scale("logit_scale")?.recip(),
                ..plain
            },
            Architecture::SmolLm3 => Traits { no_rope_every: Some(4), ..plain },
            Architecture::Phi3 => {
                let turned = self.find_size("rope.dimension_count", MAX_HEAD_DIM)?;
                let rotary_dim = turned.filter(|&turned| turned != config.head_dim);
                Traits { rotary_dim, ..plain }
            }
            _ => plain,
        })
    }

    /// Which layers have windows; those of Gemma 3 have rotary frequencies of their own.
    fn window(self, config: &ModelConfig) -> Result<Option<SlidingWindow>> {
        let gemma = config.architecture == Architecture::Gemma3;
        let tokens = self
            .find::<u32>("attention.sliding_window")?
            .map_or(0, |n| n as usize)
            .min(MAX_CONTEXT);
        let shorter = (1..config.max_position_embeddings).contains(&tokens);
        if !(shorter || gemma && tokens > 0) {
            return Ok(None);
        }
        let every = self.find_size("attention.sliding_window_pattern", MAX_LAYERS)?;
        let theta = self.find_positive("rope.freq_base_swa")?;
        Ok(Some(SlidingWindow {
            tokens,
            full_every: every.or(gemma.then_some(6)),
            rope_theta: theta.or(gemma.then_some(10_000.0)),
        }))
    }

    /// Checks the keys that must agree with the width of a head.
    fn check_heads(self, config: &ModelConfig) -> Result<()> {
        let head_dim = config.head_dim;
        let partial = config.traits.rotary_dim.is_some();
        let equal = ["attention.value_length", "rope.dimension_count"];
        for key in &equal[..if partial { 1 } else { 2 }] {
            if let Some(n) = self.find::<u32>(key)?.filter(|&n| n as usize != head_dim) {
                let reason =
                    format!("{n}, but heads are {head_dim} wide; only equal widths are supported");
                return Err(self.invalid(key, reason));
            }
        }
        let usual = root(head_dim).recip();
        let own = own_keys(self.family.architecture).contains(&"attention.scale");
        match self.find::<f32>("attention.scale")?.filter(|&v| v != 0.0 && !own) {
            Some(v) if (v - usual).abs() > 1e-6 * usual || v.is_nan() => Err(unsupported(
                format!("`{}` = {v}", self.name("attention.scale")),
                "1 over the root of a head's width is",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses what its family does not have, by name.
    fn refuse_others(self) -> Result<()> {
        let plain = format!("plain {} models are", self.family.gguf);
        if let Some(n) = self.find::<u32>("expert_count")?.filter(|&n| n > 0) {
            return Err(unsupported(
                format!("a mixture of {n} experts (`{}`)", self.name("expert_count")),
                "dense models are",
            ));
        }
        let own = own_keys(self.family.architecture);
        for (key, value) in self.gguf.metadata() {
            let prefix = self.name("");
            let Some(name) = key.strip_prefix(&prefix).filter(|name| !own.contains(name)) else {
                continue;
            };
            if let Some(value) = foreign(name, value) {
                let shown = match value {
                    // As it was before it was widened.
                    Value::Float(v) => (v as f32).to_string(),
                    other => other.to_string(),
                };
                let key: String = key.chars().take(64).collect();
                return Err(unsupported(format!("`{key}` = {shown}"), &plain));
            }
        }
        let causal = "attention.causal";
        if self.find::<bool>(causal)? == Some(false) {
            return Err(unsupported(
                format!("`{}` = false", self.name(causal)),
                "causal models are",
            ));
        }
        Ok(())
    }
}

fn root(n: usize) -> f32 {
    (n as f32).sqrt()
}

/// The value of a key that this family does not have and that is not off: it may change the result.
fn foreign<'a>(name: &str, value: Value<'a>) -> Option<Value<'a>> {
    if KNOWN.contains(&name) || name.starts_with(YARN) {
        return None;
    }
    let is_off = match value {
        Value::Unsigned(n) => n == 0,
        Value::Signed(n) => n == 0,
        Value::Float(v) => v == 0.0 || v == 1.0 && SCALES.contains(&name),
        Value::Bool(on) => !on,
        // A note: what computes is a number.
        Value::String(_) => true,
        Value::Array(items) => items.iter().all(|item| foreign(name, item).is_none()),
    };
    (!is_off).then_some(value)
}

/// The embedding's rows, which the metadata and the tokenizer must fit.
fn vocab_size(keys: Keys<'_>) -> Result<usize> {
    let gguf = keys.gguf;
    let embedding = gguf.require("model.embed_tokens.weight")?;
    let rows = embedding.n_rows();
    let tokens = gguf.find::<Array<'_>>("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
    let said = keys.find::<u32>("vocab_size")?.map_or(rows, |n| n as usize);
    let reason = match () {
        () if rows > MAX_VOCAB => format!("{rows} rows are more than {MAX_VOCAB}"),
        () if said != rows => {
            format!(
                "{rows} rows, but `{}` is {said}; convert the file again",
                keys.name("vocab_size")
            )
        }
        () if tokens > rows => {
            format!("{rows} rows, but the tokenizer has {tokens} tokens; convert the file again")
        }
        () => return Ok(rows),
    };
    Err(Error::InvalidTensor { name: embedding.name.into(), reason })
}
