//! Several sessions' answers, computed together.

use std::sync::Arc;

use crate::adapter::{AdapterChange, AdapterWeight, KvPolicy};
use crate::answer::Answer;
use crate::error::{count, number};
use crate::options::{AnswerStats, GenerateOptions, Token};
use crate::{EpiphyteError, Session};

/// One sequence of a batch.
#[derive(Clone, uniffi::Record)]
pub struct BatchSequence {
    /// It goes on from what it holds.
    pub session: Arc<Session>,
    /// How to choose its tokens and when to stop.
    pub options: GenerateOptions,
}

/// A token of a batch, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct BatchToken {
    /// Which sequence, from 0.
    pub index: i32,
    /// What was generated.
    pub token: Token,
}

/// Running answers of several sessions, pulled a token at a time. Freeing the handle cancels them.
#[derive(uniffi::Object)]
pub struct BatchGeneration(Answer);

impl BatchGeneration {
    pub(crate) fn start(sequences: Vec<BatchSequence>) -> Result<Self, EpiphyteError> {
        let sequence = |BatchSequence { session, options }: BatchSequence| {
            Ok((Arc::clone(session.slot()), options.try_into()?))
        };
        Answer::start(sequences.into_iter().map(sequence).collect::<Result<_, EpiphyteError>>()?)
            .map(Self)
    }

    pub(crate) fn answer(&self) -> &Answer {
        &self.0
    }
}

#[uniffi::export]
impl BatchGeneration {
    /// The next token of any sequence; none once all have ended. `Background` does not end them.
    pub async fn next(&self) -> Result<Option<BatchToken>, EpiphyteError> {
        let next = self.0.next().await?;
        Ok(next.map(|next| BatchToken { index: number(next.index), token: next.token.into() }))
    }

    /// Ends all answers: no token comes once this has returned.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Ends the answer of one sequence; the others go on.
    pub fn cancel_sequence(&self, index: i32) -> Result<(), EpiphyteError> {
        self.0.cancel_one(count("index", index)?);
        Ok(())
    }

    /// Changes the adapters of one sequence between two tokens.
    pub async fn set_adapters(
        &self,
        index: i32,
        adapters: Vec<AdapterWeight>,
        history: KvPolicy,
    ) -> Result<(), EpiphyteError> {
        self.0.set_adapters(count("index", index)?, AdapterChange { adapters, history }).await
    }

    /// What the answer of a sequence took so far, and why it ended; none for one that is not there.
    pub fn stats(&self, index: i32) -> Option<AnswerStats> {
        self.0.stats(usize::try_from(index).ok()?)
    }
}
