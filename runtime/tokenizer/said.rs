//! Text of which a part was said by a user: no control token begins there.

use std::ops::Range;

use super::special::{Part, SpecialTokens};
use super::{EncodeOptions, Tokenizer};
use crate::error::Result;

impl Tokenizer {
    /// The spellings of all control tokens.
    pub fn control_tokens(&self) -> impl Iterator<Item = &str> {
        (0..)
            .take(self.vocab_size())
            .filter(|&id| self.is_special(id))
            .filter_map(|id| self.token_text(id))
    }

    /// As [`Self::encode`], but with `parse_special` no control token is recognised where one of
    /// the bytes at `said` (offsets in `text`, ascending) would be part of it.
    ///
    /// Errors: as [`Self::encode`].
    pub fn encode_said(
        &self,
        text: &str,
        said: &[usize],
        options: EncodeOptions,
    ) -> Result<Vec<u32>> {
        if said.is_empty() || !options.parse_special {
            return self.encode(text, options);
        }
        if !self.special.is_empty() {
            return self.encode_parts(self.special.split_said(text, said), options);
        }
        // The encoder cuts control tokens out by itself: what is spelt is given to it apart.
        let mut ids = Vec::new();
        let mut start = 0;
        for forged in self.forged(text, said)? {
            ids.extend(self.encode_piece(
                &text[start..forged.start],
                start,
                text.len(),
                options,
            )?);
            let plain = EncodeOptions { parse_special: false, ..options };
            ids.extend(self.encode_piece(
                &text[forged.clone()],
                forged.start,
                text.len(),
                plain,
            )?);
            start = forged.end;
        }
        ids.extend(self.encode_piece(&text[start..], start, text.len(), options)?);
        Ok(ids)
    }

    /// The ids of `piece`, which begins at byte `start` of a text of `len` bytes.
    fn encode_piece(
        &self,
        piece: &str,
        start: usize,
        len: usize,
        options: EncodeOptions,
    ) -> Result<Vec<u32>> {
        let mut options = options;
        if start > 0 {
            (options.add_bos, options.continuation) = (Some(false), true);
        }
        if start + piece.len() < len {
            options.add_eos = Some(false);
        }
        self.encode(piece, options)
    }

    /// Where control tokens are spelt by bytes that were said.
    fn forged(&self, text: &str, said: &[usize]) -> Result<Vec<Range<usize>>> {
        let control =
            (0..).zip(self.control_tokens()).map(|(index, text)| (text, index)).collect::<Vec<_>>();
        let control = control.into_iter().filter(|(text, _)| !text.is_empty()).collect::<Vec<_>>();
        Ok(SpecialTokens::new(&[], &control)?.forged(text, said))
    }
}

/// Whether `range` has one of the offsets `said`, which ascend.
fn holds(range: &Range<usize>, said: &[usize]) -> bool {
    said.get(said.partition_point(|&at| at < range.start)).is_some_and(|&at| at < range.end)
}

impl SpecialTokens {
    /// As [`Self::split`] for all tokens, but no control token holds one of the bytes `said`.
    fn split_said<'t>(&self, text: &'t str, said: &[usize]) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut start = 0;
        for (range, id) in self.matches(text, |range| !holds(range, said)) {
            // User-defined tokens count in what was said, too.
            parts.extend(self.split(&text[start..range.start], false));
            parts.push(Part::Token(id));
            start = range.end;
        }
        parts.extend(self.split(&text[start..], false));
        parts
    }

    /// Control tokens that hold one of the bytes `said`.
    fn forged(&self, text: &str, said: &[usize]) -> Vec<Range<usize>> {
        self.matches(text, |range| holds(range, said)).into_iter().map(|(range, _)| range).collect()
    }
}
