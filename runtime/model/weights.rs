//! Names to linears and norms on the device: the one list of what a Llama holds.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::format::TensorView;
use crate::format::gguf::Gguf;
use crate::gpu::{Gpu, Tensor};
use crate::model::linear::Linear;
use crate::quant;

/// One decoder layer.
pub struct LayerWeights {
    /// Gain of the norm before attention, `[D]`.
    pub input_layernorm: Tensor,
    /// q, k and v rows, `[(H + 2 G) E, D]`.
    pub qkv: Linear,
    /// `[D, H E]`.
    pub o_proj: Linear,
    /// Gain of the norm before the MLP, `[D]`.
    pub post_attention_layernorm: Tensor,
    /// gate, then up rows, `[2 F, D]`.
    pub gate_up: Linear,
    /// `[D, F]`.
    pub down_proj: Linear,
}

/// The frozen base on the device.
pub struct Weights {
    /// `[V, D]`; also the head when there is no other.
    pub embed_tokens: Linear,
    /// By layer.
    pub layers: Vec<LayerWeights>,
    /// Gain of the last norm, `[D]`.
    pub norm: Tensor,
    /// `[V, D]`, unless tied to the embedding.
    pub lm_head: Option<Linear>,
}

impl Weights {
    /// Sends the file's tensors to the device, calling `progress` with the bytes of the file done
    /// so far.
    ///
    /// Errors: as [`Linear::load`]; [`crate::Error::MissingTensor`].
    pub fn load(
        gpu: &Gpu,
        gguf: &Gguf,
        config: &ModelConfig,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let mut done = 0;
        let mut linear = |names: &[String]| -> Result<Linear> {
            let views = names.iter().map(|name| gguf.require(name)).collect::<Result<Vec<_>>>()?;
            let linear = Linear::load(gpu, &views)?;
            done += views.iter().map(|view| view.n_bytes() as u64).sum::<u64>();
            progress(done);
            Ok(linear)
        };
        let norm = |name: &str| gpu.upload(name, &vector(&gguf.require(name)?));
        let embed_tokens = linear(&["model.embed_tokens.weight".into()])?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            layers.push(LayerWeights {
                input_layernorm: norm(&name("input_layernorm"))?,
                qkv: linear(
                    &["q_proj", "k_proj", "v_proj"].map(|p| name(&format!("self_attn.{p}"))),
                )?,
                o_proj: linear(&[name("self_attn.o_proj")])?,
                post_attention_layernorm: norm(&name("post_attention_layernorm"))?,
                gate_up: linear(&["gate_proj", "up_proj"].map(|p| name(&format!("mlp.{p}"))))?,
                down_proj: linear(&[name("mlp.down_proj")])?,
            });
        }
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(linear(&["lm_head.weight".into()])?)
        };
        Ok(Self { embed_tokens, layers, norm: norm("model.norm.weight")?, lm_head })
    }

    /// The head's rows, `[V, D]`.
    pub fn head(&self) -> &Linear {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

/// A small tensor's values.
fn vector(view: &TensorView<'_>) -> Vec<f32> {
    let mut values = vec![0.0; view.n_weights()];
    quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
    values
}
