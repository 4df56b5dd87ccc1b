//! What a GGUF file says about its tokenizer, and the checks on it.

use super::bpe::ByteLevelBpe;
use super::special::SpecialTokens;
use super::spm::SentencePieceBpe;
use super::table::{Kind, TokenTable};
use super::{Encode, Tokenizer, bpe, control, spm};
use crate::error::{Error, Result};
use crate::format::gguf::{Array, Gguf};

/// The metadata `tokenizer.ggml.*` of a GGUF file; each field is named for the key it comes from.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (`SentencePiece` BPE).
    pub model: String,
    /// `pre`: how text is cut before BPE; absent means `default`.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `merges`: `"left right"`, most important first.
    pub merges: Vec<String>,
    /// `scores`, by id; needed by `llama`.
    pub scores: Option<Vec<f32>>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `padding_token_id`; one outside the vocabulary is none.
    pub pad: Option<u32>,
    /// `eot_token_id`, the end of a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`, the end of a message.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `add_bos_token`; the default depends on the model.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: `llama` only, where the default is true.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`, or the template that is used instead: control tokens in it count
    /// as such, however they are typed.
    pub chat_template: Option<String>,
}

/// Keys that would change the ids and are not honoured, with the value that leaves them alone.
const NEUTRAL: [(&str, bool); 5] = [
    ("remove_extra_whitespaces", false),
    ("treat_whitespace_as_suffix", false),
    ("escape_whitespaces", true),
    ("add_sep_token", false),
    ("normalizer.lowercase", false),
];

impl TokenizerSpec {
    /// Reads the keys `tokenizer.ggml.*`. What the vocabulary's kind has no use for may be
    /// anything.
    ///
    /// Errors: [`Error::InvalidMetadata`] when one is missing or of another type;
    /// [`Error::Unsupported`] for one that asks for other ids than are made here.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let key = |name| format!("tokenizer.ggml.{name}");
        let model: &str = file.get(&key("model"))?;
        let sentence_piece = model == "llama";
        refuse_others(file, sentence_piece)?;
        let id = |name| file.find::<u32>(&key(name));
        let texts = |name| {
            Ok::<_, Error>(
                file.find::<Vec<&str>>(&key(name))?.into_iter().flatten().map(String::from),
            )
        };
        Ok(Self {
            model: model.to_owned(),
            pre: if sentence_piece {
                None
            } else {
                file.find::<&str>(&key("pre"))?.map(String::from)
            },
            tokens: texts("tokens")?.collect(),
            merges: if sentence_piece { Vec::new() } else { texts("merges")?.collect() },
            scores: if sentence_piece { file.find(&key("scores"))? } else { None },
            token_types: file.find(&key("token_type"))?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            pad: file.find_note(&key("padding_token_id")),
            eot: id("eot_token_id")?,
            eom: id("eom_token_id")?,
            unk: if sentence_piece { id("unknown_token_id")? } else { None },
            add_bos: file.find(&key("add_bos_token"))?,
            add_eos: file.find(&key("add_eos_token"))?,
            add_space_prefix: if sentence_piece {
                file.find(&key("add_space_prefix"))?
            } else {
                None
            },
            chat_template: file.find_note::<&str>("tokenizer.chat_template").map(String::from),
        })
    }

    /// Whether it is `SentencePiece`.
    fn is_sentence_piece(&self) -> bool {
        self.model == "llama"
    }

    /// Whether a text begins with `bos`.
    pub(crate) fn adds_bos(&self) -> bool {
        let by_kind =
            self.is_sentence_piece() || self.pre.as_deref().is_some_and(bpe::starts_with_bos);
        self.add_bos.unwrap_or(by_kind && self.bos.is_some())
    }

    /// Whether a text ends with `eos`.
    pub(crate) fn adds_eos(&self) -> bool {
        self.add_eos.unwrap_or(false)
    }

    /// Whether a text gets a space before its first word.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.is_sentence_piece() && self.add_space_prefix.unwrap_or(true)
    }

    /// The ids that have a role, with their keys.
    fn roles(&self) -> [(&'static str, Option<u32>); 5] {
        [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("eom_token_id", self.eom),
            ("unknown_token_id", self.unk),
        ]
    }

    /// Whether `id` begins a text, or ends a text, turn or message.
    fn is_boundary(&self, id: u32) -> bool {
        [self.bos, self.eos, self.eot, self.eom].contains(&Some(id))
    }

    /// Checks lengths and ids, so that later code may rely on them.
    fn check(&self) -> Result<()> {
        let vocab_size = self.tokens.len();
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(invalid(
                "tokens",
                format!("{vocab_size} tokens is not a vocabulary; convert the model again"),
            ));
        }
        let lengths = [
            ("scores", self.scores.as_ref().map(Vec::len)),
            ("token_type", self.token_types.as_ref().map(Vec::len)),
        ];
        for (key, len) in lengths {
            if let Some(len) = len.filter(|&len| len != vocab_size) {
                return Err(invalid(
                    key,
                    format!("{len} entries for {vocab_size} tokens; convert the model again"),
                ));
            }
        }
        for (key, id) in self.roles() {
            if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
                return Err(invalid(
                    key,
                    format!("{id} is outside the vocabulary of {vocab_size}"),
                ));
            }
        }
        for (key, asked, id) in
            [("add_bos_token", self.add_bos, self.bos), ("add_eos_token", self.add_eos, self.eos)]
        {
            if asked == Some(true) && id.is_none() {
                return Err(invalid(key, "true, but the file names no such token".into()));
            }
        }
        Ok(())
    }

    /// The kind of every token: as typed, but for control tokens that are known by name.
    fn kinds(&self) -> Result<Vec<Kind>> {
        let mut kinds = self.typed()?;
        for ((id, text), kind) in (0..).zip(&self.tokens).zip(&mut kinds) {
            *kind = control::kind(text, *kind, self.chat_template.as_deref(), self.is_boundary(id));
        }
        Ok(kinds)
    }

    /// The kinds that the file gives. Without types it still has its special tokens by role.
    fn typed(&self) -> Result<Vec<Kind>> {
        let Some(types) = &self.token_types else {
            let byte = |text: &String| self.model == "llama" && spm::byte_of(text).is_some();
            let kind = |text| if byte(text) { Kind::Byte } else { Kind::Normal };
            let mut kinds = self.tokens.iter().map(kind).collect::<Vec<_>>();
            for id in self.roles().into_iter().filter_map(|(_, id)| id).chain(self.pad) {
                kinds.get_mut(id as usize).into_iter().for_each(|kind| *kind = Kind::Control);
            }
            return Ok(kinds);
        };
        let kind = |(id, &kind)| {
            Kind::from_ggml(kind)
                .ok_or_else(|| invalid("token_type", format!("token {id} has unknown type {kind}")))
        };
        types.iter().enumerate().map(kind).collect()
    }
}

/// Refuses what would make other ids, by name.
fn refuse_others(file: &Gguf, sentence_piece: bool) -> Result<()> {
    let unsupported = |key: &str, what: &str| {
        let what = format!("a tokenizer with `tokenizer.ggml.{key}` {what}");
        Err(Error::Unsupported { what, hint: "vocabularies of llama models are".into() })
    };
    for (key, neutral) in NEUTRAL.into_iter().filter(|_| sentence_piece) {
        if file
            .find::<bool>(&format!("tokenizer.ggml.{key}"))?
            .is_some_and(|value| value != neutral)
        {
            return unsupported(key, if neutral { "= false" } else { "= true" });
        }
    }
    let map = file.find::<Array<'_>>("tokenizer.ggml.precompiled_charsmap");
    match map {
        Ok(None) => Ok(()),
        Ok(Some(map)) if map.is_empty() => Ok(()),
        _ if !sentence_piece => Ok(()),
        _ => unsupported("precompiled_charsmap", "(a normalisation of texts)"),
    }
}

/// An error about `tokenizer.ggml.<key>`.
pub(super) fn invalid(key: &str, reason: String) -> Error {
    Error::InvalidMetadata { key: format!("tokenizer.ggml.{key}"), reason }
}

/// Builds the tokenizer of `spec`.
pub(super) fn build(spec: TokenizerSpec) -> Result<Tokenizer> {
    spec.check()?;
    let kinds = spec.kinds()?;
    let sentence_piece = match spec.model.as_str() {
        "gpt2" => false,
        "llama" => true,
        other => {
            return Err(Error::Unsupported {
                what: format!("tokenizer model `{other}`"),
                hint: "byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`) are".into(),
            });
        }
    };
    let mut table = TokenTable::with_capacity(spec.tokens.len());
    for (text, &kind) in spec.tokens.iter().zip(&kinds) {
        match kind {
            Kind::Normal | Kind::Byte | Kind::Unused if sentence_piece => {
                spm::token_bytes(text, kind, &mut table)
            }
            Kind::Normal | Kind::Byte | Kind::Unused => bpe::token_bytes(text, kind, &mut table),
            _ => table.push(text.bytes(), kind),
        }
    }
    let special = special_tokens(&spec.tokens, &kinds)?;
    let end_of_generation = end_of_generation(&spec, &kinds);
    let (space_prefix, add_bos) = (spec.adds_space_prefix(), spec.adds_bos());
    let (bos, eos, add_eos) = (spec.bos, spec.eos, spec.adds_eos());
    let encoder: Box<dyn Encode> = if sentence_piece {
        Box::new(SentencePieceBpe::new(spec, &kinds, space_prefix)?)
    } else {
        Box::new(ByteLevelBpe::new(spec)?)
    };
    Ok(Tokenizer {
        encoder,
        special,
        table,
        bos,
        eos,
        add_bos,
        add_eos,
        space_prefix,
        end_of_generation,
    })
}

fn special_tokens(tokens: &[String], kinds: &[Kind]) -> Result<SpecialTokens> {
    let of_kind = |wanted: fn(Kind) -> bool| {
        let tokens = (0..).zip(tokens).zip(kinds);
        let chosen = tokens.filter(|((_, text), kind)| wanted(**kind) && !text.is_empty());
        chosen.map(|((id, text), _)| (text.as_str(), id)).collect::<Vec<_>>()
    };
    SpecialTokens::new(&of_kind(|kind| kind == Kind::UserDefined), &of_kind(Kind::is_control))
}

/// Sorted ids: EOS, end of turn and of message, and special tokens by name.
fn end_of_generation(spec: &TokenizerSpec, kinds: &[Kind]) -> Vec<u32> {
    let special = |kind: &Kind| matches!(kind, Kind::Control | Kind::UserDefined);
    let named = (0..).zip(&spec.tokens).zip(kinds);
    let named = named.filter(|((_, text), kind)| {
        special(kind) && control::end_names().any(|name| name == *text)
    });
    let mut ids = [spec.eos, spec.eot, spec.eom]
        .into_iter()
        .flatten()
        .chain(named.map(|((id, _), _)| id))
        .collect::<Vec<_>>();
    ids.sort_unstable();
    ids.dedup();
    ids
}
