//! Names to linears and norms on the device: the one list of what a Llama holds.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::format::TensorView;
use crate::format::gguf::Gguf;
use crate::gpu::{Class, Gpu, Memory, Tensor};
use crate::model::linear::Linear;
use crate::quant;

/// One decoder layer.
pub struct LayerWeights<T = Tensor> {
    /// Gain of the norm before attention, `[D]`.
    pub input_layernorm: T,
    /// q, k and v rows, `[(H + 2 G) E, D]`.
    pub qkv: Linear<T>,
    /// `[D, H E]`.
    pub o_proj: Linear<T>,
    /// Gain of the norm before the MLP, `[D]`.
    pub post_attention_layernorm: T,
    /// gate, then up rows, `[2 F, D]`.
    pub gate_up: Linear<T>,
    /// `[D, F]`.
    pub down_proj: Linear<T>,
}

/// The frozen base on the device.
pub struct Weights<T = Tensor> {
    /// `[V, D]`; also the head when there is no other.
    pub embed_tokens: Linear<T>,
    /// By layer.
    pub layers: Vec<LayerWeights<T>>,
    /// Gain of the last norm, `[D]`.
    pub norm: T,
    /// `[V, D]`, unless tied to the embedding.
    pub lm_head: Option<Linear<T>>,
}

/// What of a file goes where.
#[derive(Default)]
pub struct Views<'a> {
    /// In the order of [`Weights::linears`].
    linears: Vec<Vec<TensorView<'a>>>,
    norms: Vec<TensorView<'a>>,
}

impl<T> Weights<T> {
    /// Makes room for the file's tensors, and says which.
    ///
    /// Errors: as [`Linear::allocate`]; [`crate::Error::MissingTensor`].
    pub fn allocate<'a>(
        memory: &impl Memory<Tensor = T>,
        gguf: &'a Gguf,
        config: &ModelConfig,
    ) -> Result<(Self, Views<'a>)> {
        let mut of = Views::default();
        let mut linear = |names: &[String]| -> Result<Linear<T>> {
            let views = names.iter().map(|name| gguf.require(name)).collect::<Result<Vec<_>>>()?;
            let linear = Linear::allocate(memory, &views)?;
            of.linears.push(views);
            Ok(linear)
        };
        let mut norm = |name: &str| {
            let view = gguf.require(name)?;
            let gain = memory.words(Class::Weights, name, &[view.n_weights()]);
            of.norms.push(view);
            gain
        };
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
        let norm = norm("model.norm.weight")?;
        Ok((Self { embed_tokens, layers, norm, lm_head }, of))
    }

    /// Every linear, in the order of the file's tensors.
    pub fn linears(&self) -> impl Iterator<Item = &Linear<T>> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.o_proj, &l.gate_up, &l.down_proj]);
        std::iter::once(&self.embed_tokens).chain(layers).chain(&self.lm_head)
    }

    /// Every norm, in the order of the file's tensors.
    fn norms(&self) -> impl Iterator<Item = &T> {
        let layers =
            self.layers.iter().flat_map(|l| [&l.input_layernorm, &l.post_attention_layernorm]);
        layers.chain([&self.norm])
    }

    /// The head's rows, `[V, D]`.
    pub fn head(&self) -> &Linear<T> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl Weights {
    /// Sends the file's tensors to the device, calling `progress` with the bytes of the file done
    /// so far.
    ///
    /// Errors: as [`Weights::allocate`].
    pub fn load(
        gpu: &Gpu,
        gguf: &Gguf,
        config: &ModelConfig,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let (weights, views) = Self::allocate(gpu, gguf, config)?;
        for (norm, view) in weights.norms().zip(&views.norms) {
            gpu.write(norm, 0, &vector(view));
        }
        let mut done = 0;
        for (linear, views) in weights.linears().zip(views.linears) {
            linear.fill(gpu, &views);
            done += views.iter().map(|view| view.n_bytes() as u64).sum::<u64>();
            progress(done);
        }
        Ok(weights)
    }
}

/// A small tensor's values.
fn vector(view: &TensorView<'_>) -> Vec<f32> {
    let mut values = vec![0.0; view.n_weights()];
    quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
    values
}
