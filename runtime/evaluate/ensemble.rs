//! Several adapters that answer together: what merging them replaces.

use std::sync::Arc;

use serde::Serialize;

use super::question::{Question, answers};
use super::{
    BATCH, EvaluateOptions, EvaluateProgress, Evaluation, Examples, Loss, Subject, check_empty,
    measure,
};
use crate::engine::batch::next_logits;
use crate::engine::{Engine, Session};
use crate::error::{Error, Result};
use crate::tokenizer::{DecodeOptions, Detokenizer, Tokenizer};
use crate::train::data::Example;

/// Positions of which the members' logits are kept on the host at once.
const CHUNK: usize = 32;

/// How the members of an ensemble become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Each token is the best by the mean of the members' logits; so is the loss.
    #[default]
    Logits,
    /// Each member answers; what most say, but for space around it, is the answer, of equally many
    /// the one whose first member comes first. There is no loss.
    Majority,
}

/// As [`super::evaluate`], of several members together: empty sessions of one engine, with the
/// adapters of each. A question goes through the model once for all members, in one batch.
///
/// Errors: [`Error::InvalidArgument`] without members; as [`super::evaluate`].
pub fn evaluate_ensemble(
    members: &[Session],
    combine: Combine,
    examples: &Examples,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(EvaluateProgress),
) -> Result<Evaluation> {
    let [first, ..] = members else {
        let reason = "none; give at least one".to_string();
        return Err(Error::InvalidArgument { name: "members", reason });
    };
    members.iter().try_for_each(check_empty)?;
    let ensemble = Ensemble { members, combine, engine: first.engine() };
    measure(&ensemble, examples, options, progress)
}

struct Ensemble<'a> {
    members: &'a [Session],
    combine: Combine,
    engine: &'a Engine,
}

impl Subject for Ensemble<'_> {
    fn at_once(&self) -> usize {
        (BATCH / self.members.len()).max(1)
    }

    fn answer(&self, batch: &[Question<'_>], options: &EvaluateOptions) -> Result<Vec<String>> {
        if self.combine == Combine::Logits {
            return self.answer_by_logits(batch, options);
        }
        let members: Vec<&Session> = self.members.iter().collect();
        let votes = answers(batch, &members, options)?;
        Ok(votes.into_iter().map(|votes| majority(&votes)).collect())
    }

    fn add_loss(&self, loss: &mut Loss, example: &Example) -> Result<()> {
        if self.combine == Combine::Majority {
            return Ok(());
        }
        let mut sessions: Vec<Session> = self.members.iter().map(Session::fork).collect();
        // The last token is predicted, it predicts none.
        let ids = &example.ids[..example.ids.len() - 1];
        for (chunk, start) in ids.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            let mut sums = vec![Vec::new(); chunk.len()];
            for session in &mut sessions {
                session.push_tokens(chunk)?;
                session.logits(start, |index, logits| {
                    if Loss::weight(example, index) > 0.0 {
                        add(&mut sums[index - start], logits);
                    }
                })?;
            }
            for (sum, index) in sums.into_iter().zip(start..) {
                if !sum.is_empty() {
                    loss.add_token(example, index, &self.mean(sum));
                }
            }
        }
        Ok(())
    }
}

impl Ensemble<'_> {
    /// Greedy answers by the mean of the members' logits, a token at a time for all questions.
    fn answer_by_logits(
        &self,
        batch: &[Question<'_>],
        options: &EvaluateOptions,
    ) -> Result<Vec<String>> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut sessions = Vec::with_capacity(batch.len() * self.members.len());
        for question in batch {
            answers.push(self.begin(question.max_tokens(self.engine, options)?));
            for member in self.members {
                sessions.push(question.ask(member)?);
            }
        }
        let tokenizer = &self.engine.base().tokenizer;
        let mut open: Vec<usize> =
            (0..batch.len()).filter(|&i| answers[i].max_tokens > 0).collect();
        while !open.is_empty() && !options.cancel.is_cancelled() {
            let logits = next_logits(&mut sessions)?;
            let mut going = Vec::with_capacity(open.len());
            let mut kept = Vec::with_capacity(sessions.len());
            let members = self.members.len();
            let mut of_question = sessions.into_iter();
            for (&i, logits) in open.iter().zip(logits.chunks(members)) {
                let token = best(&self.joined(logits));
                let mut mine: Vec<Session> = of_question.by_ref().take(members).collect();
                let is_full = mine[0].tokens().len() + 1 >= self.engine.context();
                if tokenizer.is_end_of_generation(token) || !answers[i].push(token) || is_full {
                    continue;
                }
                mine.iter_mut().try_for_each(|session| session.push_tokens(&[token]))?;
                going.push(i);
                kept.extend(mine);
            }
            (open, sessions) = (going, kept);
        }
        Ok(answers.into_iter().map(Said::finish).collect())
    }

    fn begin(&self, max_tokens: usize) -> Said {
        let continuation = DecodeOptions { continuation: true, ..DecodeOptions::default() };
        let tokenizer = Arc::clone(&self.engine.base().tokenizer);
        Said {
            text: String::new(),
            tokens: 0,
            max_tokens,
            detokenizer: Detokenizer::new(tokenizer, continuation),
        }
    }

    /// The mean of the members' logits.
    fn joined(&self, logits: &[Vec<f32>]) -> Vec<f32> {
        let mut sum = Vec::new();
        logits.iter().for_each(|logits| add(&mut sum, logits));
        self.mean(sum)
    }

    fn mean(&self, mut sum: Vec<f32>) -> Vec<f32> {
        let members = self.members.len() as f32;
        sum.iter_mut().for_each(|logit| *logit /= members);
        sum
    }
}

/// An answer in the making.
struct Said {
    text: String,
    tokens: usize,
    max_tokens: usize,
    detokenizer: Detokenizer<Arc<Tokenizer>>,
}

impl Said {
    /// Adds a token; whether another one may follow.
    fn push(&mut self, token: u32) -> bool {
        self.text.push_str(&self.detokenizer.push(token));
        self.tokens += 1;
        self.tokens < self.max_tokens
    }

    fn finish(mut self) -> String {
        self.text.push_str(&self.detokenizer.finish());
        self.text
    }
}

/// Adds logits to a sum; an empty one is zeros.
fn add(sum: &mut Vec<f32>, logits: &[f32]) {
    sum.resize(logits.len(), 0.0);
    sum.iter_mut().zip(logits).for_each(|(sum, logit)| *sum += logit);
}

/// The token with the largest logit; of equal ones the lowest.
fn best(logits: &[f32]) -> u32 {
    let larger = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, larger) as u32
}

/// What most say, but for space around it; of equally many what the first of them says.
fn majority(votes: &[String]) -> String {
    let count = |of: &String| votes.iter().filter(|vote| vote.trim() == of.trim()).count();
    // The last of several maxima is taken.
    votes.iter().rev().max_by_key(|vote| count(vote)).cloned().unwrap_or_default()
}
