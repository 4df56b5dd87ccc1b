//! Finds special tokens in a text before the rest of it is encoded.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};

use crate::error::{Error, Result};

/// A run of text, or a special token that was spelt in it.
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// One set of spellings with their ids.
#[derive(Default)]
struct Matcher {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(tokens: &[(&str, u32)]) -> Result<Self> {
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(text, _)| text))
            .map_err(|e| {
                Error::Tokenizer(format!("the special tokens are too many or too long: {e}"))
            })?;
        Ok(Self { automaton: Some(automaton), ids: tokens.iter().map(|(_, id)| *id).collect() })
    }
}

/// The tokens that are cut out of a text whole: user-defined ones always, control ones when asked.
#[derive(Default)]
pub(super) struct SpecialTokens {
    always: Matcher,
    /// User-defined tokens first.
    all: Matcher,
}

impl SpecialTokens {
    /// `user_defined` and `control`: the spelling and id of each; none is empty.
    pub(super) fn new(user_defined: &[(&str, u32)], control: &[(&str, u32)]) -> Result<Self> {
        Ok(Self {
            always: Matcher::new(user_defined)?,
            all: Matcher::new(&[user_defined, control].concat())?,
        })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.ids.is_empty()
    }

    /// The tokens in `text`, with the control tokens among them that `allow` allows.
    pub(super) fn matches(
        &self,
        text: &str,
        allow: impl Fn(&Range<usize>) -> bool,
    ) -> Vec<(Range<usize>, u32)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(next) =
            self.all.automaton.as_ref().and_then(|all| all.find(Input::new(text).range(at..)))
        {
            let pattern = next.pattern().as_usize();
            let is_control = pattern >= self.always.ids.len();
            if is_control && !allow(&next.range()) {
                at = next.start() + text[next.start()..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            found.extend(self.all.ids.get(pattern).map(|&id| (next.range(), id)));
            at = next.end();
        }
        found
    }

    /// The parts of `text` in order; no part is empty text.
    pub(super) fn split<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Part<'t>> {
        let matcher = if parse_special { &self.all } else { &self.always };
        let mut parts = Vec::new();
        let mut start = 0;
        for found in matcher.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            parts.extend(text.get(start..found.start()).filter(|t| !t.is_empty()).map(Part::Text));
            parts.extend(matcher.ids.get(found.pattern().as_usize()).copied().map(Part::Token));
            start = found.end();
        }
        parts.extend(text.get(start..).filter(|t| !t.is_empty()).map(Part::Text));
        parts
    }
}
