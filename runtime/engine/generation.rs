//! One session's answer.

use crate::error::Result;

use super::Session;
use super::adapters::Change;
use super::batch::{Batch, BatchToken, Sequence};
use super::options::{AnswerStats, FinishReason, GenerateOptions, Token};

/// A running answer: an iterator over its tokens. Dropping it leaves the session at the last token
/// that was handed out.
pub struct Generation<'s>(Batch<'s>);

impl<'s> Generation<'s> {
    pub(super) fn new(session: &'s mut Session, options: GenerateOptions) -> Result<Self> {
        Batch::new(vec![Sequence { session, options }]).map(Self)
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.0.finish_reason(0)
    }

    /// What it took so far.
    pub fn stats(&self) -> AnswerStats {
        self.0.stats(0).unwrap_or_default()
    }

    /// Changes the adapters between two tokens, as [`Batch::set_adapters`].
    ///
    /// Errors: as [`Session::set_adapters`].
    pub fn set_adapters(&mut self, change: &Change<'_>) -> Result<()> {
        self.0.set_adapters(0, change)
    }
}

impl Iterator for Generation<'_> {
    /// Errors: as [`Session::prefill`]; the answer is then over, the session keeps what was handed
    /// out.
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|next| next.map(|BatchToken { token, .. }| token))
    }
}
