//! Hugging Face's checkpoints: a folder with `config.json`, the weights in safetensors, whole or in
//! shards, and the tokenizer. Read to be quantised ([`Checkpoint`]), written from a GGUF
//! ([`export_checkpoint`]).

mod config;
mod shards;
mod write;

use std::path::{Path, PathBuf};

use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::format;
use crate::tokenizer::TokenizerSpec;

pub(crate) use config::gguf_keys;
pub(crate) use shards::Shards;
pub use write::{CheckpointReport, export_checkpoint};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Where newer checkpoints keep the chat template.
const TEMPLATE: &str = "chat_template.jinja";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Far above the largest `tokenizer.json`.
const MOST_BYTES: u64 = 256 << 20;

/// An open checkpoint: its sizes and tokenizer, and where its tensors are. Weights are read when
/// they are asked for.
pub struct Checkpoint {
    /// The folder.
    pub(crate) path: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: TokenizerSpec,
    pub(crate) shards: Shards,
}

impl Checkpoint {
    /// Opens the folder of a llama. Every tensor that its `config.json` implies has to be there in
    /// its shape, and no other.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for files that are damaged or a shard that is
    /// missing; [`Error::InvalidMetadata`] naming the key; [`Error::MissingTensor`],
    /// [`Error::InvalidTensor`]; [`Error::Unsupported`] for another family, a key that would change
    /// the result, an extra tensor or type of numbers, and for tokenizers that are no byte-level
    /// BPE that is known here.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let config_text = text(&folder.join(CONFIG))?;
        let config = ModelConfig::from_json(&config_text)?;
        config::refuse_others(&config)?;
        let shards = Shards::open(folder, &config)?;
        let template = folder.join(TEMPLATE);
        let template = template.exists().then(|| text(&template)).transpose()?;
        let about = folder.join(TOKENIZER_CONFIG);
        let about = about.exists().then(|| text(&about)).transpose()?;
        let tokenizer = TokenizerSpec::from_tokenizer_json(
            &text(&folder.join(TOKENIZER))?,
            about.as_deref(),
            config.vocab_size,
        )?;
        let chat_template = template.or(tokenizer.chat_template);
        let keys: serde_json::Value = serde_json::from_str(&config_text).unwrap_or_default();
        let named = |key: &str| token_id(&keys[key], config.vocab_size);
        let bos = tokenizer.bos.or_else(|| named("bos_token_id"));
        let eos = tokenizer.eos.or_else(|| named("eos_token_id"));
        let tokenizer = TokenizerSpec { chat_template, bos, eos, ..tokenizer };
        Ok(Self { path: folder.into(), config, tokenizer, shards })
    }

    /// Whether a path looks like one: a folder with a `config.json`.
    pub fn is_one(path: impl AsRef<Path>) -> bool {
        path.as_ref().join(CONFIG).is_file()
    }

    /// Bytes of its weights.
    pub fn n_bytes(&self) -> u64 {
        self.shards.n_bytes()
    }

    /// What it holds, for errors: `FOLDER: N tensors`.
    fn told(&self) -> String {
        format!("{}, {} tensors", self.path.display(), self.shards.len())
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({})", self.told())
    }
}

/// The files that [`export_checkpoint`] may write to a folder.
pub fn checkpoint_files(folder: &Path) -> [PathBuf; 4] {
    [CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS].map(|name| folder.join(name))
}

/// A token that `config.json` names; the first of several.
fn token_id(value: &serde_json::Value, vocab_size: usize) -> Option<u32> {
    let id = match value {
        serde_json::Value::Array(several) => several.first()?.as_u64()?,
        one => one.as_u64()?,
    };
    u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size)
}

/// A file of UTF-8 of a reasonable size.
fn text(path: &Path) -> Result<String> {
    String::from_utf8(format::read(path, MOST_BYTES)?).map_err(|_| Error::InvalidFile {
        path: path.into(),
        reason: "it is not UTF-8; download it again".into(),
    })
}
