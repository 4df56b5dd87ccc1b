//! Byte-level BPE (Radford et al. 2019, GPT-2): text is cut by regular expressions, then the bytes
//! of each piece are merged pair by pair.

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::utils::SysRegex;

use super::pattern;
use super::spec::{TokenizerSpec, invalid};
use super::table::{Kind, TokenTable};
use super::{Encode, EncodeOptions};
use crate::error::{Error, Result};

/// The regular expressions of a pre-tokeniser, applied one after the other to the pieces of the one
/// before: what matches is a piece, and so is what lies between matches.
pub(super) fn patterns(pre: &str) -> Result<&'static [&'static str]> {
    Ok(match pre {
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            &[r"\p{N}", pattern::GPT2]
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "smaug-bpe" | "dbrx" | "glm4"
        | "chatglm-bpe" => &[pattern::LLAMA3],
        "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" => &[pattern::QWEN2],
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" | "mellum" => &[pattern::GPT2],
        "tekken" => &[pattern::TEKKEN],
        "gpt-4o" => &[pattern::GPT4O],
        "falcon" => &[r"[\p{P}\$\+<=>\^~\|`]+", pattern::GPT2, "[0-9][0-9][0-9]"],
        "deepseek-llm" => &[
            r"[\r\n]",
            pattern::DEEPSEEK_LETTERS,
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            pattern::DEEPSEEK_CJK,
            r"\p{N}+",
        ],
        "deepseek-coder" => {
            &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", pattern::DEEPSEEK_CJK, r"\p{N}"]
        }
        "deepseek-v3" => &[
            r"\p{N}{1,3}",
            r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
            pattern::DEEPSEEK3,
        ],
        // What llama.cpp does for a file that names none.
        "default" => &[r"[\p{P}\$\+<=>\^~\|]+", pattern::GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        other => {
            let name: String = other.chars().take(64).collect();
            return Err(Error::Unsupported {
                what: format!("pre-tokeniser `{name}`"),
                hint: "those of llama, qwen2, smollm, gpt-2, falcon, mistral (tekken) and \
                    deepseek are, and default"
                    .into(),
            });
        }
    })
}

/// Whether texts of this pre-tokeniser start with BOS unless the file says otherwise; such
/// vocabularies also take a whole piece as it is when it is a token, whatever the merges say.
pub(super) fn starts_with_bos(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "tekken")
}

/// The encoder of `tokenizer.ggml.model = gpt2`.
pub(super) struct ByteLevelBpe {
    patterns: Vec<SysRegex>,
    bpe: BPE,
}

impl ByteLevelBpe {
    /// Takes the tokens and merges of a checked `spec`.
    pub(super) fn new(spec: TokenizerSpec) -> Result<Self> {
        let pre = spec.pre.as_deref().unwrap_or("default");
        let patterns = patterns(pre)?.iter().map(|pattern| {
            SysRegex::new(pattern).map_err(|e| {
                Error::Tokenizer(format!("the pattern of `{pre}` does not compile: {e}"))
            })
        });
        let patterns = patterns.collect::<Result<_>>()?;
        let mut vocab = Vocab::with_capacity(spec.tokens.len());
        for (id, text) in (0..).zip(spec.tokens) {
            // Some converters leave gaps empty.
            if !text.is_empty() && vocab.insert(text, id).is_some() {
                return Err(invalid(
                    "tokens",
                    format!("token {id} repeats an earlier one; convert the model again"),
                ));
            }
        }
        let merges = spec.merges.iter().enumerate().map(|(rank, merge)| split_merge(rank, merge));
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges.collect::<Result<_>>()?)
            .ignore_merges(starts_with_bos(pre))
            .build()
            .map_err(|_| {
                invalid(
                    "merges",
                    "one joins or makes a token that the vocabulary lacks; convert the model again"
                        .into(),
                )
            })?;
        Ok(Self { patterns, bpe })
    }

    /// The pieces of `text` in order.
    fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for pattern in &self.patterns {
            pieces = pieces.into_iter().flat_map(|piece| split(pattern, piece)).collect();
        }
        pieces
    }
}

impl Encode for ByteLevelBpe {
    fn encode(&self, text: &str, _options: EncodeOptions, ids: &mut Vec<u32>) -> Result<()> {
        let mut spelling = String::new();
        for piece in self.pieces(text) {
            spelling.clear();
            spelling.extend(piece.bytes().map(char_of_byte));
            let tokens =
                self.bpe.tokenize(&spelling).map_err(|e| Error::Tokenizer(e.to_string()))?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }
}

/// The matches of `pattern` and what lies between them.
fn split<'t>(pattern: &SysRegex, text: &'t str) -> Vec<&'t str> {
    let mut pieces = Vec::new();
    let mut end = 0;
    for (start, stop) in pattern.find_iter(text) {
        pieces.extend([&text[end..start], &text[start..stop]]);
        end = stop;
    }
    pieces.push(&text[end..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// `"left right"` at the first space that is not the first character (a token may start with one).
fn split_merge(rank: usize, merge: &str) -> Result<(String, String)> {
    let space = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
    let pair = space.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
    pair.ok_or_else(|| {
        invalid("merges", format!("merge {rank} is not two tokens with a space between them"))
    })
}

/// Bytes that GPT-2's vocabulary writes as the character of the same number; the other 68 follow
/// from U+0100 on.
const fn is_visible(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

const BYTE_TO_CHAR: [char; 256] = {
    let mut table = ['\0'; 256];
    let mut next = 0x100;
    let mut byte = 0;
    while byte < 256 {
        let visible = is_visible(byte as u8);
        let code = if visible { byte } else { next };
        table[byte as usize] = char::from_u32(code).expect("below U+0144, no surrogate");
        next += !visible as u32;
        byte += 1;
    }
    table
};

const CHAR_TO_BYTE: [Option<u8>; 0x144] = {
    let mut table = [None; 0x144];
    let mut byte = 0;
    while byte < 256 {
        table[BYTE_TO_CHAR[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    table
};

fn char_of_byte(byte: u8) -> char {
    BYTE_TO_CHAR[usize::from(byte)]
}

/// Appends the bytes that the token `text` spells; a text with a character of no byte stands for
/// itself.
pub(super) fn token_bytes(text: &str, kind: Kind, table: &mut TokenTable) {
    let byte = |c: char| CHAR_TO_BYTE.get(c as usize).copied().flatten();
    if text.chars().all(|c| byte(c).is_some()) {
        table.push(text.chars().filter_map(byte), kind);
    } else {
        table.push(text.bytes(), kind);
    }
}
