//! One session's answer.

use std::sync::Arc;

use crate::EpiphyteError;
use crate::adapter::{AdapterChange, AdapterWeight, KvPolicy};
use crate::answer::Answer;
use crate::held::Slot;
use crate::options::{AnswerStats, FinishReason, GenerateOptions, Token};

/// A running answer, pulled a token at a time: the session holds what was handed out, no more.
/// Freeing the handle cancels it.
#[derive(uniffi::Object)]
pub struct Generation(Answer);

impl Generation {
    pub(crate) fn start(slot: Arc<Slot>, options: GenerateOptions) -> Result<Self, EpiphyteError> {
        Answer::start(vec![(slot, options.try_into()?)]).map(Self)
    }

    pub(crate) fn answer(&self) -> &Answer {
        &self.0
    }
}

#[uniffi::export]
impl Generation {
    /// The next token; none once the answer is over. One whose wait was cancelled is not lost: the
    /// next call gives it. `Background` does not end the answer: ask again in the foreground.
    pub async fn next(&self) -> Result<Option<Token>, EpiphyteError> {
        Ok(self.0.next().await?.map(|next| next.token.into()))
    }

    /// Ends the answer, also one that has not begun: no token comes once this has returned.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Changes the adapters between two tokens. With `Keep` the tokens under way (at most 3) still
    /// come from the old ones.
    pub async fn set_adapters(
        &self,
        adapters: Vec<AdapterWeight>,
        history: KvPolicy,
    ) -> Result<(), EpiphyteError> {
        self.0.set_adapters(0, AdapterChange { adapters, history }).await
    }

    /// What it took so far.
    pub fn stats(&self) -> AnswerStats {
        self.0.stats(0).unwrap_or_default()
    }

    /// Why it ended; none while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.stats().finish_reason
    }
}
