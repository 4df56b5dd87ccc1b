//! The frozen base: everything that is read from a model file, immutable once loaded.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::adapter::{AdaptedBase, BaseShape, BaseWeights};
use crate::base::ModelConfig;
use crate::base::fingerprint::{self, fingerprint};
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::gpu::Gpu;
use crate::grammar::{Grammar, Grammars, ResponseFormat};
use crate::model::weights::Weights;
use crate::progress::{LoadPhase, Loading};
use crate::tokenizer::{Tokenizer, TokenizerSpec};

/// A loaded model: sizes, tokenizer, template. Its weights are on the device.
pub struct Base {
    /// Its sizes.
    pub config: ModelConfig,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations to text.
    pub chat_template: ChatTemplate,
    /// Names this base; see [`fingerprint()`].
    pub fingerprint: String,
    /// Size of the file's tensors.
    pub file_bytes: u64,
    source: Source,
    /// Made when the first is asked for.
    grammars: OnceLock<Grammars>,
}

/// Where a model can be read again.
enum Source {
    /// Its file, or the first of its shards.
    File(PathBuf),
    /// A file without a name, that stays open.
    Open(Gguf),
    /// Memory that was not kept.
    Nowhere,
}

impl Base {
    /// Reads and checks the whole file, then sends the weights to the device, of which `loading`
    /// hears. Chats are rendered with `chat_template`, or with the file's own, which is parsed when
    /// the first one is.
    ///
    /// Errors: as [`Gguf`]'s, [`ModelConfig::from_gguf`], [`ModelConfig::check_tensors`],
    /// [`Tokenizer::from_spec`] and [`Weights::load`]; [`Error::Cancelled`].
    pub(crate) fn load(
        gpu: &Gpu,
        gguf: &Gguf,
        chat_template: Option<&str>,
        loading: &mut Loading<'_>,
    ) -> Result<(Self, Weights)> {
        let config = ModelConfig::from_gguf(gguf)?;
        config.check_tensors(gguf)?;
        let spec = TokenizerSpec::from_gguf(gguf)?;
        let file_bytes = gguf.tensors().map(|view| view.n_bytes() as u64).sum();
        let mut sent = |done| {
            loading.report(LoadPhase::Weights, done, file_bytes);
            loading.cancel.check()
        };
        sent(0)?;
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
        let weights = weights?;
        // With the norms, which are too small to be told of.
        sent(file_bytes)?;
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_string()
        };
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let source = chat_template
            .map_or_else(|| gguf.find("tokenizer.chat_template"), |source| Ok(Some(source)));
        let chat_template = ChatTemplate::unchecked(source, &bos, &eos);
        let path = std::path::absolute(gguf.path()).ok().filter(|path| path.is_file());
        let source = path.map_or(Source::Nowhere, Source::File);
        let base = Self {
            config,
            tokenizer,
            chat_template,
            fingerprint,
            file_bytes,
            source,
            grammars: OnceLock::new(),
        };
        Ok((base, weights))
    }

    /// Keeps the open file, if it has no name to be opened by again.
    pub(super) fn keep(&mut self, gguf: Gguf) {
        if let Source::Nowhere = self.source {
            self.source = Source::Open(gguf);
        }
    }

    /// Whether [`Base::read_again`] has something to read.
    pub(super) fn can_be_read_again(&self) -> bool {
        !matches!(self.source, Source::Nowhere)
    }

    /// Sends the weights to the device again.
    ///
    /// Errors: [`Error::BaseMismatch`] when the file is another by now; as [`Base::load`].
    pub(super) fn read_again(&self, gpu: &Gpu) -> Result<Weights> {
        match &self.source {
            Source::Open(gguf) => Weights::load(gpu, gguf, &self.config, &mut |_| Ok(())),
            Source::File(path) => {
                let gguf = Gguf::open(path)?;
                let config = ModelConfig::from_gguf(&gguf)?;
                config.check_tensors(&gguf)?;
                let spec = TokenizerSpec::from_gguf(&gguf)?;
                let got = fingerprint(&gguf, &config, &spec)?;
                fingerprint::check(&self.fingerprint, &got)?;
                Weights::load(gpu, &gguf, &config, &mut |_| Ok(()))
            }
            Source::Nowhere => {
                let reason = "it was opened from memory, which was not kept; open the engine again";
                Err(Error::DeviceLost(reason.into()))
            }
        }
    }

    /// The grammar of `format`, at its beginning.
    ///
    /// Errors: [`Error::InvalidArgument`] naming what is wrong with it; [`Error::Unsupported`] for
    /// a vocabulary in which nothing ends an answer.
    pub(super) fn grammar(&self, format: &ResponseFormat) -> Result<Grammar> {
        if self.grammars.get().is_none() {
            // Of two that make them at once, one's are kept.
            let made = Grammars::new(&self.tokenizer, self.config.vocab_size)?;
            let _ = self.grammars.set(made);
        }
        let grammars = self.grammars.get();
        grammars.ok_or(Error::Tokenizer("no grammars".into()))?.compile(format)
    }

    fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Open(_) | Source::Nowhere => None,
        }
    }
}

impl Base {
    /// What an adapter has to fit.
    pub fn adapter_shape(&self) -> BaseShape {
        self.config.base_shape()
    }

    /// As [`Self::adapter_shape`], and where the weights are.
    pub fn adapted(&self) -> AdaptedBase<'_> {
        let weights = self.path().map_or(BaseWeights::Unknown, BaseWeights::File);
        AdaptedBase { shape: self.adapter_shape(), weights }
    }
}
