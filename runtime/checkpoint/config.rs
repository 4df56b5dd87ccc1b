//! The sizes of a llama as `config.json`, and as keys of GGUF. Reading either is `base`'s.

use serde_json::{Map, Value, json};

use crate::base::{Architecture, ModelConfig, RopeScaling, Traits};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf_writer::GgufWriter;

/// Refuses a family whose keys are not written here.
///
/// Errors: [`Error::Unsupported`].
pub(super) fn refuse_others(config: &ModelConfig) -> Result<()> {
    match config.architecture {
        _ if matches!(config.rope_scaling, RopeScaling::Yarn(_) | RopeScaling::Long(_)) => {
            Err(Error::Unsupported {
                what: "a checkpoint with YaRN's or LongRoPE's rotary scaling".into(),
                hint: "none, linear and llama3 scaling are".into(),
            })
        }
        Architecture::Llama if config.traits == Traits::default() => Ok(()),
        _ => Err(Error::Unsupported {
            what: format!("a checkpoint of family `{}`", config.family().gguf),
            hint: "plain llama models are".into(),
        }),
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
    refuse_others(config)?;
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
        RopeScaling::Factors(_) | RopeScaling::Yarn(_) | RopeScaling::Long(_) => {
            let what = "a config.json for these rotary frequencies".into();
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
