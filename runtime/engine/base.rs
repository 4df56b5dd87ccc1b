//! The frozen base: everything that is read from a model file, immutable once loaded.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapter::{AdaptedBase, BaseShape, BaseWeights};
use crate::base::ModelConfig;
use crate::base::fingerprint::fingerprint;
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::gpu::Gpu;
use crate::model::weights::Weights;
use crate::progress::{LoadPhase, LoadProgress};
use crate::tokenizer::{Tokenizer, TokenizerSpec};

/// A loaded model: sizes, weights on the device, tokenizer, template.
pub struct Base {
    /// Its sizes.
    pub config: ModelConfig,
    /// On the device.
    pub(crate) weights: Arc<Weights>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text.
    pub chat_template: ChatTemplate,
    /// Names this base; see [`fingerprint()`].
    pub fingerprint: String,
    /// Size of the file's tensors.
    pub file_bytes: u64,
    /// Where it was read from, unless from memory.
    path: Option<PathBuf>,
}

impl Base {
    internal! {
        /// The weights on the device.
        pub fn weights(&self) -> &Arc<Weights> {
            &self.weights
        }
    }

    /// Reads and checks the whole file, then sends the weights to the device, of which `progress`
    /// hears. Chats are rendered with `chat_template`, or with the file's own, which is parsed when
    /// the first one is.
    ///
    /// Errors: as [`Gguf`]'s, [`ModelConfig::from_gguf`], [`ModelConfig::check_tensors`],
    /// [`Tokenizer::from_spec`] and [`Weights::load`].
    pub(crate) fn load(
        gpu: &Gpu,
        gguf: &Gguf,
        chat_template: Option<&str>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let config = ModelConfig::from_gguf(gguf)?;
        config.check_tensors(gguf)?;
        let spec = TokenizerSpec::from_gguf(gguf)?;
        let file_bytes = gguf.tensors().map(|view| view.n_bytes() as u64).sum();
        let mut sent =
            |done| progress(LoadProgress { phase: LoadPhase::Weights, done, total: file_bytes });
        sent(0);
        // The tokenizer takes about as long as the weights: build it beside them.
        let (beside, weights) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let fingerprint = fingerprint(gguf, &config, &spec)?;
                Ok::<_, Error>((fingerprint, Arc::new(Tokenizer::from_spec(spec)?)))
            });
            let weights = Weights::load(gpu, gguf, &config, &mut sent);
            (beside.join(), weights)
        });
        let (fingerprint, tokenizer) =
            beside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let weights = Arc::new(weights?);
        // With the norms, which are too small to be told of.
        sent(file_bytes);
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_string()
        };
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let source = chat_template
            .map_or_else(|| gguf.find("tokenizer.chat_template"), |source| Ok(Some(source)));
        let chat_template = ChatTemplate::unchecked(source, &bos, &eos);
        let path = std::path::absolute(gguf.path()).ok().filter(|path| path.is_file());
        Ok(Self { config, weights, tokenizer, chat_template, fingerprint, file_bytes, path })
    }
}

impl Base {
    /// What an adapter has to fit.
    pub fn adapter_shape(&self) -> BaseShape {
        self.config.base_shape()
    }

    /// As [`Self::adapter_shape`], and where the weights are.
    pub fn adapted(&self) -> AdaptedBase<'_> {
        let weights = self.path.as_deref().map_or(BaseWeights::Unknown, BaseWeights::File);
        AdaptedBase { shape: self.adapter_shape(), weights }
    }
}
