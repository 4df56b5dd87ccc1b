//! Text to token ids and back, as the model's file prescribes.
//!
//! In: a [`TokenizerSpec`] (GGUF metadata) or a `tokenizer.json`. Out: ids for the model, bytes for
//! the user. Text is never logged and never part of an error.

mod bpe;
mod control;
mod convert;
mod json;
mod pattern;
mod said;
mod spec;
mod special;
mod spm;
mod stream;
mod table;

pub use spec::TokenizerSpec;
pub use stream::Detokenizer;

use crate::error::{Error, Result};
use special::SpecialTokens;
use table::TokenTable;

/// How to encode; the default is what the file asks, with control tokens taken as plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the beginning-of-sequence token first; `None`: as the file asks. A rendered chat
    /// template usually holds it already.
    pub add_bos: Option<bool>,
    /// Put the end-of-sequence token last; `None`: as the file asks.
    pub add_eos: Option<bool>,
    /// Recognise control tokens (`<|im_start|>`) in the text. Only for text that the program wrote:
    /// a user could otherwise forge a turn.
    pub parse_special: bool,
    /// The text goes on where another ended, in the middle of a line or word: nothing is put before
    /// it, neither the space of a `SentencePiece` vocabulary nor, unless [`Self::add_bos`] asks for
    /// it, BOS.
    pub continuation: bool,
}

/// How to decode; the default is a whole text without control tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Write control tokens out by name.
    pub show_special: bool,
    /// The ids continue a text, so a leading space stays. `SentencePiece` vocabularies write one
    /// before a text.
    pub continuation: bool,
}

/// Turns a text without special tokens into ids.
trait Encode: Send + Sync {
    /// Appends the ids of `text`, which starts the input, follows a special token, or is a
    /// `continuation`. Special tokens are already cut out, except for the one implementation that
    /// must do so itself.
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<u32>) -> Result<()>;
}

/// A model's tokenizer: immutable, shared by all sessions.
///
/// ```
/// use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
/// let tokens = ["a", "b", "ab"].map(String::from).to_vec();
/// let spec = TokenizerSpec { model: "gpt2".into(), tokens, merges: vec!["a b".into()], ..Default::default() };
/// let tokenizer = Tokenizer::from_spec(spec)?;
/// let ids = tokenizer.encode("aab", EncodeOptions::default())?;
/// assert_eq!(ids, [0, 2]);
/// assert_eq!(tokenizer.decode(&ids), "aab");
/// # Ok::<(), epiphyte::Error>(())
/// ```
pub struct Tokenizer {
    encoder: Box<dyn Encode>,
    special: SpecialTokens,
    table: TokenTable,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// The first word of a text carries a space that is not the user's.
    space_prefix: bool,
    /// Sorted.
    end_of_generation: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// Errors: [`Error::Unsupported`] for another tokenizer model or pre-tokeniser,
    /// [`Error::InvalidMetadata`] naming the key that is inconsistent.
    pub fn from_spec(spec: TokenizerSpec) -> Result<Self> {
        spec::build(spec)
    }

    /// Builds the tokenizer of a Hugging Face `tokenizer.json`, normaliser included.
    ///
    /// That file does not say which token ends a text: [`Self::eos`] is the first of the well-known
    /// names it has. Errors: [`Error::Tokenizer`] if it does not parse, [`Error::Unsupported`] for
    /// a model other than BPE or Unigram or a decoder whose tokens have no bytes of their own.
    pub fn from_tokenizer_json(bytes: &[u8]) -> Result<Self> {
        json::build(bytes)
    }

    /// The ids of `text`.
    ///
    /// What the vocabulary can't spell is lost: nothing in byte-level BPE, the unknown token in
    /// `SentencePiece`, as in llama.cpp. Errors: [`Error::InvalidArgument`] when BOS or EOS is
    /// asked for and the vocabulary has none.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        self.encode_parts(self.special.split(text, options.parse_special), options)
    }

    fn encode_parts(
        &self,
        parts: Vec<special::Part<'_>>,
        options: EncodeOptions,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        if options.add_bos.unwrap_or(self.add_bos && !options.continuation) {
            ids.push(self.bos.ok_or_else(|| no_token("add_bos", "beginning"))?);
        }
        let mut of_part = options;
        for part in parts {
            match part {
                special::Part::Token(id) => ids.push(id),
                special::Part::Text(text) => self.encoder.encode(text, of_part, &mut ids)?,
            }
            of_part.continuation = false;
        }
        if options.add_eos.unwrap_or(self.add_eos) {
            ids.push(self.eos.ok_or_else(|| no_token("add_eos", "end"))?);
        }
        Ok(ids)
    }

    /// The text of a whole sequence: no control tokens, U+FFFD for bytes that are not UTF-8,
    /// nothing for ids outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, DecodeOptions::default())
    }

    /// The text of `ids`; see [`Self::decode`].
    pub fn decode_with(&self, ids: &[u32], options: DecodeOptions) -> String {
        let shown = ids.iter().filter_map(|&id| self.shown_bytes(id, options));
        let bytes = shown.flatten().copied().collect::<Vec<_>>();
        let prefix = if self.space_prefix && !options.continuation { " " } else { "" };
        String::from_utf8_lossy(bytes.strip_prefix(prefix.as_bytes()).unwrap_or(&bytes))
            .into_owned()
    }

    /// A streaming [`Self::decode_with`]: one id in, whole characters out.
    pub fn detokenizer(&self, options: DecodeOptions) -> Detokenizer<&Self> {
        Detokenizer::new(self, options)
    }

    /// The bytes a token stands for (the name of a control token); `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.table.bytes(id)
    }

    /// [`Self::token_bytes`] when they are UTF-8: what a chat template calls `bos_token`.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.token_bytes(id)?).ok()
    }

    /// Number of ids, the rows of the embedding that have a meaning.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the file asks for a BOS before every text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether `id` is a control token: hidden from text, parsed only when asked.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_control(id)
    }

    /// Whether generation stops at `id`: EOS, end of turn, and control tokens known by name to end
    /// an answer.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// The bytes to show for `id`, if any.
    fn shown_bytes(&self, id: u32, options: DecodeOptions) -> Option<&[u8]> {
        self.table.bytes(id).filter(|_| options.show_special || !self.table.is_control(id))
    }
}

fn no_token(name: &'static str, what: &str) -> Error {
    Error::InvalidArgument {
        name,
        reason: format!("this vocabulary has no {what}-of-sequence token; pass false"),
    }
}
