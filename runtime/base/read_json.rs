//! A model's sizes from Hugging Face's `config.json`; what is not understood is refused by name.

use serde_json::{Map, Value};

use super::config::{ModelConfig, SlidingWindow, Traits, unsupported};
use super::layout::{Activation, Architecture, FAMILIES, Family};
use super::read_gguf::{MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use super::read_scaling::Scaling;
use super::rope::RopeScaling;
use crate::error::{Error, Result};

/// Keys that are read here.
const READ: [&str; 34] = [
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_local_base_freq",
    "max_position_embeddings",
    "tie_word_embeddings",
    "hidden_act",
    "hidden_activation",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "no_rope_layers",
    "no_rope_layer_interval",
    "attention_bias",
    "mlp_bias",
    "partial_rotary_factor",
    "original_max_position_embeddings",
];

/// Keys that change no result here.
const HARMLESS: [&str; 26] = [
    "architectures",
    "_name_or_path",
    "attention_dropout",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "unsloth_fixed",
    "use_cache",
    "is_llama_config",
    "rope_interleaved",
    "transformers.js_config",
    "quantization_config",
    "id2label",
    "label2id",
    "auto_map",
    "embd_pdrop",
    "resid_pdrop",
    "full_attn_mod",
    "interpolate_factor",
];

/// The keys of a file.
struct Keys {
    map: Map<String, Value>,
    family: &'static Family,
}

impl ModelConfig {
    /// Reads and checks the sizes of a text model's `config.json`. Whether the head is the
    /// embedding is as it says, or the family's default.
    ///
    /// Errors: [`Error::InvalidMetadata`] naming the key; [`Error::Unsupported`] for another family
    /// or a key that would change the result.
    pub fn from_json(text: &str) -> Result<Self> {
        let keys = Keys::read(text)?;
        keys.refuse_others()?;
        let (architecture, heads) =
            (keys.family.architecture, keys.size("num_attention_heads", MAX_HEADS)?);
        let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
        let or_size = |key: &str, max, default| match keys.some(key) {
            Some(_) => keys.size(key, max),
            None => Ok(default),
        };
        let head_dim = or_size("head_dim", MAX_WIDTH, hidden_size / heads)?;
        let gemma = architecture == Architecture::Gemma3;
        let mut config = Self {
            architecture,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers: keys.size("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads: heads,
            num_key_value_heads: or_size("num_key_value_heads", MAX_HEADS, heads)?,
            head_dim,
            vocab_size: keys.size("vocab_size", MAX_VOCAB)?,
            rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: keys.size("max_position_embeddings", MAX_CONTEXT)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(gemma),
            traits: Traits::default(),
        };
        (config.rope_theta, config.rope_scaling) = keys.rope()?;
        config.traits = keys.traits(&config)?;
        config.check_sizes(|key| key.json.into())?;
        Ok(config)
    }
}

impl Keys {
    fn read(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidMetadata { key: "config.json".into(), reason };
        let map: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| invalid("it is no JSON object".into()))?;
        let said = map.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let is = |family: &&Family| family.model_types.contains(&said);
        let Some(family) = FAMILIES.iter().find(is) else {
            let known: Vec<_> =
                FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
            let said: String = said.chars().take(64).collect();
            let hint = format!("{} are", known.join(", "));
            return Err(unsupported(format!("`model_type` = `{said}`"), &hint));
        };
        Ok(Self { map, family })
    }

    /// A key's value, unless it is null.
    fn some(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn invalid(key: &str, needed: &str) -> Error {
        Error::InvalidMetadata { key: key.into(), reason: format!("{needed} is needed") }
    }

    fn size(&self, key: &str, max: usize) -> Result<usize> {
        let n = self.some(key).and_then(Value::as_u64).filter(|&n| (1..=max as u64).contains(&n));
        n.map(|n| n as usize)
            .ok_or_else(|| Self::invalid(key, &format!("a number from 1 to {max}")))
    }

    fn positive(&self, key: &str) -> Result<Option<f32>> {
        self.some(key).map(|value| positive(key, value)).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| Self::invalid(key, "a boolean"));
        self.some(key).map(flag).transpose()
    }

    /// Refuses keys that are not read, unless they are off.
    fn refuse_others(&self) -> Result<()> {
        let is_off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            _ => false,
        };
        let known = |key: &str| READ.contains(&key) || HARMLESS.contains(&key);
        let on = |key: &str| self.map.get(key).is_some_and(|value| !is_off(value));
        let other = self.map.keys().find(|key| !known(key) && on(key));
        let biased = ["attention_bias", "mlp_bias"].into_iter().find(|key| on(key));
        let partial = self.turned()?.is_some() && self.family.architecture != Architecture::Phi3;
        let turned = partial.then_some("partial_rotary_factor");
        let activation = match self.family.activation {
            Activation::Silu => &["silu", "swish"][..],
            Activation::GeluTanh => &["gelu_pytorch_tanh"],
        };
        // Gemma's older files say `hidden_act` and mean `hidden_activation`.
        let said = self.some("hidden_activation").or_else(|| self.some("hidden_act"));
        let acts = said.is_none_or(|act| act.as_str().is_some_and(|act| activation.contains(&act)));
        let act = (!acts).then_some("hidden_act");
        match other.map(String::as_str).or(biased).or(turned).or(act) {
            Some(key) => {
                let key: String = key.chars().take(64).collect();
                let what =
                    format!("`{key}` of a {} model, as its config.json has it,", self.family.gguf);
                Err(unsupported(what, &format!("plain {} models are", self.family.gguf)))
            }
            None => Ok(()),
        }
    }

    /// What the file says of the rotary embedding: of all layers, or of those that see everything.
    fn rotary(&self, layers: &str) -> Option<&Map<String, Value>> {
        let all = self.some("rope_parameters")?.as_object()?;
        all.get(layers).map_or(Some(all), Value::as_object)
    }

    /// The share of a head that is rotated, if not all.
    fn turned(&self) -> Result<Option<f64>> {
        let key = "partial_rotary_factor";
        let inside = self.rotary("full_attention").and_then(|parameters| parameters.get(key));
        let share = inside.or_else(|| self.some(key));
        let share = share.map(|share| positive(key, share).map(f64::from)).transpose()?;
        Ok(share.filter(|&share| share != 1.0))
    }

    fn rope(&self) -> Result<(f32, RopeScaling)> {
        let parameters = self.rotary("full_attention");
        let in_parameters = |key: &str| parameters.and_then(|p| p.get(key));
        let theta = match in_parameters("rope_theta") {
            Some(value) => Some(positive("rope_theta", value)?),
            None => self.positive("rope_theta")?,
        };
        let scaling = parameters.or_else(|| self.some("rope_scaling")?.as_object());
        let original = self.positive("original_max_position_embeddings")?;
        let most = self.size("max_position_embeddings", MAX_CONTEXT)?;
        let read = |parameters| Scaling { parameters, original, most }.read();
        let scaling = scaling.map_or(Ok(RopeScaling::None), read)?;
        Ok((theta.unwrap_or(10_000.0), scaling))
    }

    fn traits(&self, config: &ModelConfig) -> Result<Traits> {
        let scale = |key| Ok::<_, Error>(self.positive(key)?.unwrap_or(1.0));
        let plain = Traits {
            sliding_window: self.window(config)?,
            no_rope_every: self.no_rope(config)?,
            ..Traits::default()
        };
        Ok(match config.architecture {
            Architecture::Gemma3 => Traits {
                attention_scale: self
                    .positive("query_pre_attn_scalar")?
                    .and_then(|scalar| config.unusual_scale(scalar.sqrt().recip())),
                embedding_scale: (config.hidden_size as f32).sqrt(),
                ..plain
            },
            Architecture::Granite => Traits {
                attention_scale: config.unusual_scale(scale("attention_multiplier")?),
                embedding_scale: scale("embedding_multiplier")?,
                residual_scale: scale("residual_multiplier")?,
                logit_scale: scale("logits_scaling")?.recip(),
                ..plain
            },
            Architecture::Phi3 => {
                // As Python rounds it.
                let dims = |share: f64| (config.head_dim as f64 * share) as usize;
                Traits { rotary_dim: self.turned()?.map(dims), ..plain }
            }
            _ => plain,
        })
    }

    fn window(&self, config: &ModelConfig) -> Result<Option<SlidingWindow>> {
        let qwen = matches!(config.architecture, Architecture::Qwen2 | Architecture::Qwen3);
        let off = !self.flag("use_sliding_window")?.unwrap_or(!qwen);
        if off || self.some("sliding_window").is_none() {
            return Ok(None);
        }
        if qwen && self.some("layer_types").is_none() {
            // Those from this one on have windows.
            let first = self.some("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
            if first >= config.num_hidden_layers as u64 {
                return Ok(None);
            }
            if first > 0 {
                let what = format!("`max_window_layers` = {first}");
                let hint = "0, and as many as there are layers, are".into();
                return Err(Error::Unsupported { what, hint });
            }
        }
        let gemma = config.architecture == Architecture::Gemma3;
        let tokens = self.size("sliding_window", MAX_CONTEXT)?;
        let full_every = match self.some("layer_types").and_then(Value::as_array) {
            Some(types) => {
                let full = |value: &Value| value.as_str() == Some("full_attention");
                let every = types.iter().position(full).map(|first| first + 1);
                check_pattern("layer_types", types.iter().map(full), every, config)?;
                every
            }
            None => match ["sliding_window_pattern", "_sliding_window_pattern"]
                .into_iter()
                .find(|key| self.some(key).is_some())
            {
                Some(key) => Some(self.size(key, MAX_LAYERS)?),
                None => gemma.then_some(6),
            },
        };
        let local = self.rotary("sliding_attention").filter(|_| gemma);
        let theta = match local.and_then(|rotary| rotary.get("rope_theta")) {
            Some(value) => Some(positive("rope_theta", value)?),
            None => self.positive("rope_local_base_freq")?,
        };
        let shorter = tokens < config.max_position_embeddings && full_every != Some(1);
        let rope_theta = theta.or(gemma.then_some(10_000.0));
        Ok((shorter || gemma).then_some(SlidingWindow { tokens, full_every, rope_theta }))
    }

    fn no_rope(&self, config: &ModelConfig) -> Result<Option<usize>> {
        if config.architecture != Architecture::SmolLm3 {
            return Ok(None);
        }
        let Some(layers) = self.some("no_rope_layers").and_then(Value::as_array) else {
            let every = "no_rope_layer_interval";
            return Ok(Some(self.some(every).map_or(Ok(4), |_| self.size(every, MAX_LAYERS))?));
        };
        let without = |value: &Value| value.as_u64() == Some(0);
        let every = layers.iter().position(without).map(|first| first + 1);
        check_pattern("no_rope_layers", layers.iter().map(without), every, config)?;
        Ok(every)
    }
}

/// That the last of every so many layers is one, and no other.
fn check_pattern(
    key: &str,
    layers: impl ExactSizeIterator<Item = bool>,
    every: Option<usize>,
    config: &ModelConfig,
) -> Result<()> {
    let whole = layers.len() == config.num_hidden_layers;
    let expected = |i: usize| every.is_some_and(|every| (i + 1).is_multiple_of(every));
    if whole && layers.enumerate().all(|(i, is)| is == expected(i)) {
        Ok(())
    } else {
        Err(unsupported(format!("this pattern of `{key}`"), "one layer of every so many is"))
    }
}

pub(super) fn positive(key: &str, value: &Value) -> Result<f32> {
    let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite() && *v > 0.0);
    number.ok_or_else(|| Keys::invalid(key, "a number above 0"))
}
