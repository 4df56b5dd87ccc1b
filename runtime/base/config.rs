//! What a model is: its sizes under Hugging Face's `config.json` names, and the tensors they imply.

use std::collections::HashSet;

use super::module::BaseShape;
use super::rope::{RopeScaling, inverse_frequencies};
use crate::error::{Error, Result};
use crate::format::gguf::{Array, Gguf, Value};

/// Bounds that keep every product of sizes far below `u64`, and far above any model's.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 24;
/// The kernels read weights in blocks of this length.
const BLOCK: usize = crate::quant::BLOCK;
const MAX_HEAD_DIM: usize = 256;

/// Keys `llama.*` that are read here or in `rope`, are checked against others, or change nothing.
const KNOWN: [&str; 29] = [
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
const SCALES: [&str; 7] = [
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "attention.output_scale",
    "rope.scaling.attn_factor",
    "rope.scaling.alpha",
    "expert_weights_scale",
];
/// Keys of `YaRN`, which are for `rope.scaling.type` = `yarn`.
const YARN: &str = "rope.scaling.yarn_";

/// Tensors that old converters left behind and nothing needs.
const HARMLESS: [&str; 2] = ["rope_freqs.weight", ".attn_rot_embd.weight"];

/// Model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama, Mistral, `SmolLM`: `RMSNorm`, grouped-query attention with rotary embeddings,
    /// `SwiGLU`, no biases.
    Llama,
}

/// The sizes of a model. Lengths are in weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides [`Self::num_attention_heads`].
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding; at least the tokenizer's tokens.
    pub vocab_size: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the frequencies are stretched for long contexts.
    pub rope_scaling: RopeScaling,
    /// Positions the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the embedding is also the head: there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
}

impl ModelConfig {
    /// Reads and checks the sizes; [`Self::check_tensors`] is the caller's next step.
    ///
    /// Errors: [`Error::Unsupported`] for another architecture or feature,
    /// [`Error::InvalidMetadata`] naming the key, [`Error::MissingTensor`] without an embedding,
    /// [`Error::InvalidTensor`] for one with too few rows.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        refuse_others(gguf)?;
        let size = |name: &str, max: usize| size(gguf, name, max);
        let num_attention_heads = size("attention.head_count", MAX_HEADS)?;
        let hidden_size = size("embedding_length", MAX_WIDTH)?;
        let head_dim = match gguf.find::<u32>("llama.attention.key_length")? {
            Some(_) => size("attention.key_length", MAX_HEAD_DIM)?,
            None => hidden_size / num_attention_heads,
        };
        let num_key_value_heads = match gguf.find::<u32>("llama.attention.head_count_kv")? {
            Some(_) => size("attention.head_count_kv", MAX_HEADS)?,
            None => num_attention_heads,
        };
        let config = Self {
            architecture: Architecture::Llama,
            hidden_size,
            intermediate_size: size("feed_forward_length", MAX_WIDTH)?,
            num_hidden_layers: size("block_count", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: vocab_size(gguf)?,
            rms_norm_eps: positive(gguf, "llama.attention.layer_norm_rms_epsilon")?,
            rope_theta: match gguf.find::<f32>("llama.rope.freq_base")? {
                Some(_) => positive(gguf, "llama.rope.freq_base")?,
                None => 10_000.0,
            },
            rope_scaling: RopeScaling::from_gguf(gguf, head_dim / 2)?,
            max_position_embeddings: size("context_length", MAX_CONTEXT)?,
            tie_word_embeddings: gguf.tensor("lm_head.weight").is_none(),
        };
        config.check_sizes()?;
        config.check_heads(gguf)?;
        check_attention_scale(gguf, head_dim)?;
        Ok(config)
    }

    fn check_sizes(&self) -> Result<()> {
        let check = |ok: bool, key: &str, reason: String| {
            if ok {
                Ok(())
            } else {
                Err(Error::InvalidMetadata { key: format!("llama.{key}"), reason })
            }
        };
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        let whole = |n: usize| n.is_multiple_of(BLOCK);
        check(whole(self.hidden_size), "embedding_length", needs_blocks(self.hidden_size))?;
        check(
            whole(self.intermediate_size),
            "feed_forward_length",
            needs_blocks(self.intermediate_size),
        )?;
        check(
            heads.is_multiple_of(kv),
            "attention.head_count_kv",
            format!("{kv} does not divide {heads} heads"),
        )?;
        let head_ok = whole(self.head_dim) && (BLOCK..=MAX_HEAD_DIM).contains(&self.head_dim);
        let reason = format!(
            "the head width {} is not a multiple of {BLOCK} up to {MAX_HEAD_DIM}",
            self.head_dim
        );
        check(head_ok, "attention.key_length", reason)
    }

    /// Checks the keys that must agree with the width of a head.
    fn check_heads(&self, gguf: &Gguf) -> Result<()> {
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(n) = gguf.find::<u32>(key)?.filter(|&n| n as usize != self.head_dim) {
                let reason = format!(
                    "{n}, but heads are {} wide; only equal widths are supported",
                    self.head_dim
                );
                return Err(Error::InvalidMetadata { key: key.into(), reason });
            }
        }
        Ok(())
    }

    /// Every tensor of the model with its row-major shape, in the order of use.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens.weight".into(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |module: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{module}.weight"), shape.to_vec()));
            };
            add("input_layernorm", &[hidden]);
            add("self_attn.q_proj", &[q, hidden]);
            add("self_attn.k_proj", &[kv, hidden]);
            add("self_attn.v_proj", &[kv, hidden]);
            add("self_attn.o_proj", &[hidden, q]);
            add("post_attention_layernorm", &[hidden]);
            add("mlp.gate_proj", &[inner, hidden]);
            add("mlp.up_proj", &[inner, hidden]);
            add("mlp.down_proj", &[hidden, inner]);
        }
        all.push(("model.norm.weight".into(), vec![hidden]));
        if !self.tie_word_embeddings {
            all.push(("lm_head.weight".into(), vec![self.vocab_size, hidden]));
        }
        all
    }

    /// Checks that the file holds every tensor of the model in its shape, and none that would be
    /// left out.
    ///
    /// Errors: [`Error::MissingTensor`]; [`Error::InvalidTensor`] naming the tensor and both
    /// shapes; [`Error::Unsupported`] for a tensor that this family does not have, such as a bias.
    pub fn check_tensors(&self, gguf: &Gguf) -> Result<()> {
        let expected = self.tensors();
        for (name, shape) in &expected {
            let found = gguf.require(name)?.shape;
            if found != shape {
                let reason = format!(
                    "its shape is {found:?}, the metadata imply {shape:?}; convert the file again"
                );
                return Err(Error::InvalidTensor { name: name.clone(), reason });
            }
        }
        let expected: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let harmless = |name: &str| HARMLESS.iter().any(|end| name.ends_with(end));
        match gguf
            .tensors()
            .find(|tensor| !expected.contains(tensor.name) && !harmless(tensor.name))
        {
            Some(extra) => Err(unsupported(
                format!("tensor `{}` in a llama model", extra.name),
                "plain llama models without biases or experts are",
            )),
            None => Ok(()),
        }
    }

    /// The sizes that an adapter has to fit.
    pub fn base_shape(&self) -> BaseShape {
        BaseShape {
            num_hidden_layers: self.num_hidden_layers,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            q_size: self.num_attention_heads * self.head_dim,
            kv_size: self.num_key_value_heads * self.head_dim,
            vocab_size: self.vocab_size,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    /// Weights in all; a tied head counts once.
    pub fn n_params(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }

    /// What Llama 3's scaling or explicit factors divide each inverse frequency by, `head_dim / 2`
    /// of them: GGUF's `rope_freqs.weight`. `None` where there is no such tensor.
    pub(crate) fn rope_divisors(&self) -> Option<Vec<f32>> {
        match &self.rope_scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => None,
            RopeScaling::Factors(factors) => Some(factors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = inverse_frequencies(self.head_dim, self.rope_theta, &RopeScaling::None);
                let scaled = self.rope_frequencies();
                Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
            }
        }
    }

    /// Inverse frequencies of the rotary embedding with scaling applied, radians a token: `head_dim
    /// / 2` of them, the i-th for dimensions `i` and `i + head_dim / 2` (rows are in Hugging Face's
    /// order, whatever the file's).
    pub fn rope_frequencies(&self) -> Vec<f32> {
        inverse_frequencies(self.head_dim, self.rope_theta, &self.rope_scaling)
    }
}

/// Refuses what is not a plain llama, by name.
fn refuse_others(gguf: &Gguf) -> Result<()> {
    let architecture = gguf.architecture()?;
    if let Some(kind) = gguf.find_note::<&str>("general.type").filter(|&kind| kind != "model") {
        return Err(unsupported(
            format!("a GGUF file of type `{kind}` as a model"),
            "give the base model",
        ));
    }
    if architecture != "llama" {
        return Err(unsupported(
            format!("architecture `{architecture}`"),
            "llama is (Llama, Mistral, SmolLM)",
        ));
    }
    if let Some(n) = gguf.find::<u32>("llama.expert_count")?.filter(|&n| n > 0) {
        return Err(unsupported(
            format!("a mixture of {n} experts (`llama.expert_count`)"),
            "dense models are",
        ));
    }
    for (key, value) in gguf.metadata() {
        let Some(name) = key.strip_prefix("llama.") else { continue };
        if let Some(value) = foreign(name, value) {
            let shown = match value {
                // As it was before it was widened.
                Value::Float(v) => (v as f32).to_string(),
                other => other.to_string(),
            };
            let key: String = key.chars().take(64).collect();
            return Err(unsupported(format!("`{key}` = {shown}"), "plain llama models are"));
        }
    }
    if gguf.find::<bool>("llama.attention.causal")? == Some(false) {
        return Err(unsupported("`llama.attention.causal` = false".into(), "causal models are"));
    }
    let window = gguf.find::<u32>("llama.attention.sliding_window")?.unwrap_or(0);
    if window > 0 && window < gguf.get("llama.context_length")? {
        return Err(unsupported(
            format!("sliding-window attention over {window} tokens"),
            "full attention is",
        ));
    }
    Ok(())
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

/// Refuses another scaling of attention than by the root of a head's width.
fn check_attention_scale(gguf: &Gguf, head_dim: usize) -> Result<()> {
    let usual = (head_dim as f32).sqrt().recip();
    match gguf.find::<f32>("llama.attention.scale")?.filter(|&v| v != 0.0) {
        Some(v) if (v - usual).abs() > 1e-6 * usual || v.is_nan() => Err(unsupported(
            format!("`llama.attention.scale` = {v}"),
            "1 over the root of a head's width is",
        )),
        _ => Ok(()),
    }
}

/// A size from key `llama.<name>`: 1 to `max`.
fn size(gguf: &Gguf, name: &str, max: usize) -> Result<usize> {
    let key = format!("llama.{name}");
    let n = gguf.get::<u32>(&key)? as usize;
    let reason = format!("{n} is not between 1 and {max}");
    if (1..=max).contains(&n) { Ok(n) } else { Err(Error::InvalidMetadata { key, reason }) }
}

/// A finite number above 0.
fn positive(gguf: &Gguf, key: &str) -> Result<f32> {
    let v: f32 = gguf.get(key)?;
    let reason = format!("{v} is not a number above 0");
    if v.is_finite() && v > 0.0 {
        Ok(v)
    } else {
        Err(Error::InvalidMetadata { key: key.into(), reason })
    }
}

/// The embedding's rows, which the metadata and the tokenizer must fit.
fn vocab_size(gguf: &Gguf) -> Result<usize> {
    let embedding = gguf.require("model.embed_tokens.weight")?;
    let rows = embedding.n_rows();
    let tokens = gguf.find::<Array<'_>>("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
    let said = gguf.find::<u32>("llama.vocab_size")?.map_or(rows, |n| n as usize);
    let reason = match () {
        () if rows > MAX_VOCAB => format!("{rows} rows are more than {MAX_VOCAB}"),
        () if said != rows => {
            format!("{rows} rows, but `llama.vocab_size` is {said}; convert the file again")
        }
        () if tokens > rows => {
            format!("{rows} rows, but the tokenizer has {tokens} tokens; convert the file again")
        }
        () => return Ok(rows),
    };
    Err(Error::InvalidTensor { name: embedding.name.into(), reason })
}

fn needs_blocks(n: usize) -> String {
    format!("{n} is not a multiple of {BLOCK}, which the kernels need")
}

fn unsupported(what: String, hint: &str) -> Error {
    Error::Unsupported { what, hint: hint.into() }
}
