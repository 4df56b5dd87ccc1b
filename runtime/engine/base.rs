//! The frozen base: everything that is read from a model file, immutable once loaded.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapter::{AdaptedBase, BaseShape, BaseWeights};
use crate::base::ModelConfig;
use crate::chat::ChatTemplate;
use crate::error::Result;
use crate::format::TensorView;
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
    /// Names this base; see [`fingerprint`].
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
        let (tokenizer, weights) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::from_spec(spec));
            let weights = Weights::load(gpu, gguf, &config, &mut sent);
            (tokenizer.join(), weights)
        });
        let tokenizer = match tokenizer {
            Ok(tokenizer) => Arc::new(tokenizer?),
            Err(panic) => std::panic::resume_unwind(panic),
        };
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
        let fingerprint = fingerprint(gguf, &config, template_of(gguf));
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

/// The chat template of a file, if there is one that is a text.
pub fn template_of(gguf: &Gguf) -> Option<&str> {
    gguf.find("tokenizer.chat_template").ok().flatten()
}

/// Bytes sampled at each end and in the middle of a tensor.
const SAMPLE: usize = 1024;
/// Bytes hashed between two reports of progress, about.
const PIECE: usize = 4 << 20;

/// A hash over architecture, shapes, types, sampled weights, vocabulary and template: 32 hex
/// digits.
///
/// Sampled, so that it costs milliseconds: it tells models apart, it does not prove that none of
/// the weights changed.
pub fn fingerprint(gguf: &Gguf, config: &ModelConfig, template: Option<&str>) -> String {
    digest(gguf, config, template, &mut |view, hasher| {
        let rows = view.n_rows();
        for row in [0, rows / 2, rows - 1] {
            let bytes = view.rows(row, 1);
            field(hasher, &bytes[..bytes.len().min(SAMPLE)]);
        }
    })
}

/// As [`fingerprint`] over every byte of the weights, which it reads: equal for equal models only.
/// 32 hex digits, others than the fingerprint's. `progress` gets bytes done.
pub fn full_hash(
    gguf: &Gguf,
    config: &ModelConfig,
    template: Option<&str>,
    progress: &mut dyn FnMut(u64),
) -> String {
    let mut done = 0;
    digest(gguf, config, template, &mut |view, hasher| {
        hasher.update(&(view.n_bytes() as u64).to_le_bytes());
        let (rows, at_once) = (view.n_rows(), (PIECE / view.row_bytes()).max(1));
        for row in (0..rows).step_by(at_once) {
            let bytes = view.rows(row, at_once.min(rows - row));
            hasher.update(&bytes);
            done += bytes.len() as u64;
            progress(done);
        }
    })
}

/// Bytes after their length, so that no two sequences of fields hash alike.
fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Hashes everything that makes a model, the weights as `weights` does.
fn digest(
    gguf: &Gguf,
    config: &ModelConfig,
    template: Option<&str>,
    weights: &mut dyn FnMut(&TensorView<'_>, &mut blake3::Hasher),
) -> String {
    let mut hasher = blake3::Hasher::new();
    field(&mut hasher, format!("{config:?}").as_bytes());
    for view in gguf.tensors() {
        field(
            &mut hasher,
            format!("{} {} {:?}", view.name, view.dtype.name(), view.shape).as_bytes(),
        );
        weights(&view, &mut hasher);
    }
    for (key, value) in gguf.metadata().filter(|(key, _)| key.starts_with("tokenizer.ggml.")) {
        field(&mut hasher, key.as_bytes());
        value.digest(&mut |bytes| field(&mut hasher, bytes));
    }
    field(&mut hasher, template.unwrap_or_default().as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}
