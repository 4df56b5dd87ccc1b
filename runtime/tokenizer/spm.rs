//! `SentencePiece` BPE (Kudo and Richardson 2018, arXiv:1808.06226): the pair of neighbours that
//! makes the token with the highest score is joined first; characters outside the vocabulary become
//! bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::spec::{TokenizerSpec, invalid};
use super::table::{Kind, TokenTable};
use super::{Encode, EncodeOptions};
use crate::error::Result;

/// How the vocabulary writes a space.
const SPACE: &str = "\u{2581}";

/// The encoder of `tokenizer.ggml.model = llama`.
pub(super) struct SentencePieceBpe {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    space_prefix: bool,
}

impl SentencePieceBpe {
    /// Takes the tokens of a checked `spec`, whose kinds are `kinds`.
    pub(super) fn new(spec: TokenizerSpec, kinds: &[Kind], space_prefix: bool) -> Result<Self> {
        let scores = spec
            .scores
            .ok_or_else(|| invalid("scores", "missing; convert the model again".into()))?;
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(invalid(
                "scores",
                format!("token {id} has no number; convert the model again"),
            ));
        }
        let mut ids = HashMap::with_capacity(spec.tokens.len());
        let mut bytes = [None; 256];
        for ((id, text), kind) in (0..).zip(spec.tokens).zip(kinds) {
            let repeated = match kind {
                Kind::Byte => {
                    byte_of(&text).and_then(|byte| bytes[usize::from(byte)].replace(id)).is_some()
                }
                Kind::Normal | Kind::UserDefined if !text.is_empty() => {
                    ids.insert(text, id).is_some()
                }
                _ => false,
            };
            if repeated {
                return Err(invalid(
                    "tokens",
                    format!("token {id} repeats an earlier one; convert the model again"),
                ));
            }
        }
        Ok(Self { ids, scores, bytes, unk: spec.unk, space_prefix })
    }

    /// The token made of `text[start..end]`, if there is one.
    fn find(&self, text: &str, start: usize, end: usize) -> Option<u32> {
        self.ids.get(text.get(start..end)?).copied()
    }

    /// The pair that starts with symbol `left`, if its text is a token.
    fn pair(&self, text: &str, symbols: &[Symbol], left: usize) -> Option<Pair> {
        let Symbol { start, next, .. } = *symbols.get(left)?;
        let end = symbols.get(next)?.end;
        let score = *self.scores.get(self.find(text, start, end)? as usize)?;
        Some(Pair { score, left, end })
    }

    /// The symbols of `text` after all merges, as byte ranges.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = characters(text);
        let mut queue: BinaryHeap<_> =
            (0..symbols.len()).filter_map(|i| self.pair(text, &symbols, i)).collect();
        while let Some(Pair { left, end, .. }) = queue.pop() {
            let Symbol { start, next, previous, .. } = symbols[left];
            // Either side has been joined with something else since.
            if start == symbols[left].end || symbols.get(next).is_none_or(|right| right.end != end)
            {
                continue;
            }
            let after = symbols[next].next;
            symbols[next].start = end;
            symbols[left] = Symbol { start, end, previous, next: after };
            if let Some(after) = symbols.get_mut(after) {
                after.previous = left;
            }
            queue.extend(self.pair(text, &symbols, previous));
            queue.extend(self.pair(text, &symbols, left));
        }
        symbols.retain(|symbol| symbol.start != symbol.end);
        symbols
    }
}

impl Encode for SentencePieceBpe {
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<u32>) -> Result<()> {
        let prefix = if self.space_prefix && !options.continuation { SPACE } else { "" };
        let text = prefix.to_owned() + &text.replace(' ', SPACE);
        for Symbol { start, end, .. } in self.merge(&text) {
            if let Some(id) = self.find(&text, start, end) {
                ids.push(id);
                continue;
            }
            let bytes = text[start..end].bytes().map(|byte| self.bytes[usize::from(byte)]);
            match bytes.collect::<Option<Vec<_>>>() {
                Some(bytes) => ids.extend(bytes),
                None => ids.extend(self.unk),
            }
        }
        Ok(())
    }
}

/// A run of the text in a list linked by index; `usize::MAX` ends it. A joined right side is left
/// empty.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
}

/// One symbol a character.
fn characters(text: &str) -> Vec<Symbol> {
    let symbol = |(i, (start, c)): (usize, (usize, char))| {
        let end = start + c.len_utf8();
        let next = if end == text.len() { usize::MAX } else { i + 1 };
        Symbol { start, end, previous: i.wrapping_sub(1), next }
    };
    text.char_indices().enumerate().map(symbol).collect()
}

/// Two neighbours that may be joined, ordered by score, then from the left. `end` tells a pair that
/// has changed.
struct Pair {
    score: f32,
    left: usize,
    end: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        by_score.then_with(|| other.left.cmp(&self.left)).then_with(|| self.end.cmp(&other.end))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

/// The byte that `<0xXX>` names.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && !hex.starts_with('+')).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Appends the bytes that the token `text` spells.
pub(super) fn token_bytes(text: &str, kind: Kind, table: &mut TokenTable) {
    match byte_of(text).filter(|_| kind == Kind::Byte) {
        Some(byte) => table.push([byte], kind),
        None => table.push(text.replace(SPACE, " ").into_bytes(), kind),
    }
}
