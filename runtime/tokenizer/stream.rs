//! Streaming detokenisation: whole characters only, whatever the tokens cut.

use std::ops::Deref;

use super::{DecodeOptions, Tokenizer};

/// Turns ids into text one at a time; all it returned, put together, is what
/// [`Tokenizer::decode_with`] gives. It holds the tokenizer by reference or by `Arc`.
#[derive(Debug)]
pub struct Detokenizer<T: Deref<Target = Tokenizer>> {
    tokenizer: T,
    options: DecodeOptions,
    /// Bytes of a character that is not complete yet: at most 3 between calls.
    pending: Vec<u8>,
    strip_space: bool,
}

impl<T: Deref<Target = Tokenizer>> Detokenizer<T> {
    /// At the beginning of a text.
    pub fn new(tokenizer: T, options: DecodeOptions) -> Self {
        let strip_space = tokenizer.space_prefix && !options.continuation;
        Self { tokenizer, options, pending: Vec::new(), strip_space }
    }

    /// The text that is certain after `id`; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        let mut bytes = self.tokenizer.shown_bytes(id, self.options).unwrap_or_default();
        if self.strip_space && !bytes.is_empty() {
            self.strip_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// The rest: U+FFFD if the last character never became complete. A new text may follow.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        self.strip_space = self.tokenizer.space_prefix && !self.options.continuation;
        rest
    }

    /// Takes all bytes but an unfinished character at the end.
    fn take_complete(&mut self) -> String {
        let unfinished = match self.pending.utf8_chunks().last() {
            Some(last) if is_unfinished(last.invalid()) => last.invalid().len(),
            _ => 0,
        };
        let complete = self.pending.len() - unfinished;
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }
}

/// Whether more bytes could make `bytes`, all of an ill-formed run, a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
