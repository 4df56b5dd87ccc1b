//! The frozen base: everything that is read from a model file, immutable once loaded.

use std::sync::Arc;

use crate::adapter::BaseShape;
use crate::chat::ChatTemplate;
use crate::error::Result;
use crate::format::gguf::Gguf;
use crate::gpu::Gpu;
use crate::model::config::ModelConfig;
use crate::model::weights::Weights;
use crate::tokenizer::{Tokenizer, TokenizerSpec};

/// A loaded model: sizes, weights on the device, tokenizer, template.
pub struct Base {
    /// Its sizes.
    pub config: ModelConfig,
    /// On the device.
    pub weights: Arc<Weights>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text.
    pub chat_template: ChatTemplate,
    /// Names this base; see [`fingerprint`].
    pub fingerprint: String,
    /// Size of the file's tensors.
    pub file_bytes: u64,
}

impl Base {
    /// Reads and checks the whole file, then sends the weights to the device; `progress` gets bytes done and in all.
    ///
    /// Errors: as [`Gguf`]'s, [`ModelConfig::from_gguf`], [`ModelConfig::check_tensors`], [`Tokenizer::from_spec`],
    /// [`ChatTemplate::new`] and [`Weights::load`].
    pub fn load(gpu: &Gpu, gguf: &Gguf, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let config = ModelConfig::from_gguf(gguf)?;
        config.check_tensors(gguf)?;
        let template: Option<&str> = gguf.find("tokenizer.chat_template")?;
        let spec = TokenizerSpec::from_gguf(gguf)?;
        let file_bytes = gguf.tensors().map(|view| view.n_bytes() as u64).sum();
        // The tokenizer takes about as long as the weights: build it beside them.
        let (tokenizer, weights) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::from_spec(spec));
            let weights = Weights::load(gpu, gguf, &config, &mut |done| progress(done, file_bytes));
            (tokenizer.join(), weights)
        });
        let tokenizer = match tokenizer {
            Ok(tokenizer) => Arc::new(tokenizer?),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_string();
        let chat_template = ChatTemplate::new(template, &text(tokenizer.bos()), &text(tokenizer.eos()))?;
        let fingerprint = fingerprint(gguf, &config, template);
        Ok(Self { config, weights: Arc::new(weights?), tokenizer, chat_template, fingerprint, file_bytes })
    }
}

impl Base {
    /// What an adapter has to fit.
    pub fn adapter_shape(&self) -> BaseShape {
        let config = &self.config;
        BaseShape {
            num_hidden_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            q_size: config.num_attention_heads * config.head_dim,
            kv_size: config.num_key_value_heads * config.head_dim,
            vocab_size: config.vocab_size,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            tie_word_embeddings: config.tie_word_embeddings,
        }
    }
}

/// Bytes sampled at each end and in the middle of a tensor.
const SAMPLE: usize = 1024;

/// A hash over architecture, shapes, types, sampled weights, vocabulary and template: 32 hex digits.
///
/// Sampled, so that it costs milliseconds: it tells models apart, it does not prove that none of the weights changed.
pub fn fingerprint(gguf: &Gguf, config: &ModelConfig, template: Option<&str>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(format!("{config:?}").as_bytes());
    for view in gguf.tensors() {
        field(format!("{} {} {:?}", view.name, view.dtype.name(), view.shape).as_bytes());
        let rows = view.n_rows();
        for row in [0, rows / 2, rows - 1] {
            let bytes = view.rows(row, 1);
            field(&bytes[..bytes.len().min(SAMPLE)]);
        }
    }
    for (key, value) in gguf.metadata().filter(|(key, _)| key.starts_with("tokenizer.ggml.")) {
        field(key.as_bytes());
        value.digest(&mut field);
    }
    field(template.unwrap_or_default().as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}
