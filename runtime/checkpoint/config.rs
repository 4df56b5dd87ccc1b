//! `config.json` of a llama, read, written, and as keys of GGUF.

use serde_json::{Map, Value, json};

use crate::base::{Architecture, ModelConfig, RopeScaling};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf_writer::GgufWriter;

/// Bounds of a size; what a file may have at most is checked again when the GGUF is read.
const MOST: u64 = 1 << 24;
/// Keys that are read here, or that say nothing about the result.
const KNOWN: [&str; 33] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "is_llama_config",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "pretraining_tp",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
    "vocab_size",
    "unsloth_version",
];

struct Keys(Map<String, Value>);

/// The sizes that a `config.json` gives.
pub(super) fn read(text: &str) -> Result<ModelConfig> {
    let no_object =
        |_| invalid("config.json", "it is no JSON object; download the checkpoint again");
    let keys = Keys(serde_json::from_str(text).map_err(no_object)?);
    keys.refuse_others()?;
    let (hidden_size, num_attention_heads) =
        (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    let or = |key: &str, other: usize| keys.get(key).map_or(Ok(other), |_| keys.size(key));
    let parameters = keys.get("rope_parameters").and_then(Value::as_object);
    let rope_theta = match parameters.and_then(|all| all.get("rope_theta")) {
        Some(theta) => positive("rope_theta", theta)?,
        None => keys.get("rope_theta").map_or(Ok(10_000.0), |v| positive("rope_theta", v))?,
    };
    let scaling = parameters.or_else(|| keys.get("rope_scaling")?.as_object());
    Ok(ModelConfig {
        architecture: Architecture::Llama,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: or("num_key_value_heads", num_attention_heads)?,
        head_dim: or("head_dim", hidden_size / num_attention_heads)?,
        vocab_size: keys.size("vocab_size")?,
        rms_norm_eps: keys.get("rms_norm_eps").map_or(Ok(1e-6), |v| positive("rms_norm_eps", v))?,
        rope_theta,
        rope_scaling: scaling.map_or(Ok(RopeScaling::None), rope_scaling)?,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        tie_word_embeddings: keys.get("tie_word_embeddings").and_then(Value::as_bool) == Some(true),
    })
}

impl Keys {
    /// A value, unless it is null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize> {
        let size = self.get(key).and_then(Value::as_u64).filter(|n| (1..=MOST).contains(n));
        let reason = format!("a number from 1 to {MOST} is needed; download it again");
        size.map(|n| n as usize).ok_or_else(|| invalid(key, &reason))
    }

    /// Refuses another family, and whatever is on and not understood.
    fn refuse_others(&self) -> Result<()> {
        let text = |key: &str| self.get(key).and_then(Value::as_str).unwrap_or_default();
        let unsupported =
            |what: String, hint: &str| Err(Error::Unsupported { what, hint: hint.into() });
        if !matches!(text("model_type"), "llama" | "mistral") {
            let kind: String = text("model_type").chars().take(64).collect();
            return unsupported(format!("a checkpoint of `model_type` = `{kind}`"), "llama is");
        }
        if !matches!(text("hidden_act"), "silu" | "swish" | "") {
            return unsupported("another `hidden_act` than silu".into(), "plain llama models are");
        }
        let is_off =
            |value: &Value| value.is_null() || *value == false || value.as_f64() == Some(0.0);
        let on =
            |(key, value): &(&String, &Value)| !KNOWN.contains(&key.as_str()) && !is_off(value);
        let other = self.0.iter().find(on).map(|(key, _)| key.as_str());
        match other.or(self.get("sliding_window").map(|_| "sliding_window")) {
            Some(key) => {
                let key: String = key.chars().take(64).collect();
                unsupported(format!("`{key}` of config.json"), "plain llama models are")
            }
            None => Ok(()),
        }
    }
}

fn invalid(key: &str, reason: &str) -> Error {
    Error::InvalidMetadata { key: key.into(), reason: reason.into() }
}

fn positive(key: &str, value: &Value) -> Result<f32> {
    let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite() && *v > 0.0);
    number.ok_or_else(|| invalid(key, "a number above 0 is needed; download it again"))
}

fn rope_scaling(keys: &Map<String, Value>) -> Result<RopeScaling> {
    let number = |key: &str| positive(key, keys.get(key).unwrap_or(&Value::Null));
    let kind = keys.get("rope_type").or_else(|| keys.get("type"));
    match kind.and_then(Value::as_str).unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
        }),
        kind => {
            let what = format!("rope scaling `{}`", kind.chars().take(64).collect::<String>());
            Err(Error::Unsupported { what, hint: "none, linear and llama3 scaling are".into() })
        }
    }
}

/// The same as keys of GGUF. Llama 3's scaling is a tensor there.
pub(crate) fn gguf_keys(config: &ModelConfig, writer: &mut GgufWriter) {
    writer.text("general.architecture", "llama").text("general.type", "model");
    for (key, size) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        writer.u32(&format!("llama.{key}"), size as u32);
    }
    writer.f32("llama.rope.freq_base", config.rope_theta);
    writer.f32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps);
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        writer.text("llama.rope.scaling.type", "linear");
        writer.f32("llama.rope.scaling.factor", factor);
    }
}

/// The `config.json` of a model whose weights are written in `dtype`.
///
/// Errors: [`Error::Unsupported`] for frequencies that it can't say.
pub(super) fn write(config: &ModelConfig, dtype: DType) -> Result<Map<String, Value>> {
    let torch_dtype = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    let rope_scaling = match &config.rope_scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": number(*factor)}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": number(*factor),
            "low_freq_factor": number(*low_freq_factor),
            "high_freq_factor": number(*high_freq_factor),
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Factors(factors) if factors.iter().all(|factor| *factor == 1.0) => Value::Null,
        RopeScaling::Factors(_) => {
            let what = "a config.json for the frequencies of `rope_freqs.weight`".into();
            return Err(Error::Unsupported { what, hint: "none and linear scaling are".into() });
        }
    };
    let keys = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": number(config.rms_norm_eps),
        "rope_theta": number(config.rope_theta),
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "torch_dtype": torch_dtype,
    });
    match keys {
        Value::Object(keys) => Ok(keys),
        _ => Ok(Map::new()),
    }
}

/// As few digits as tell it from other f32.
fn number(v: f32) -> f64 {
    v.to_string().parse().unwrap_or_else(|_| v.into())
}
