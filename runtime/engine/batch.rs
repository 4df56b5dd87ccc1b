//! Several sessions answering at once: an iterator over tokens, each of which belongs to its session
//! once it is handed out.

mod logits;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Tensor;
use crate::model::activations::LOGIT_ROWS;

use super::adapters::{Change, KvPolicy};
use super::lane::Lane;
use super::options::{AnswerStats, FinishReason, GenerateOptions, Token};
use super::pass::How;
use super::seat::Seat;
use super::steps::{DEPTH, Flight};
use super::working::MAX_BIASES;
use super::{Engine, Session};

pub use logits::next_logits;

/// One sequence of a batch.
pub struct Sequence<'s> {
    /// It goes on from what it holds.
    pub session: &'s mut Session,
    /// How to choose its tokens and when to stop.
    pub options: GenerateOptions,
}

/// A token of a batch, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchToken {
    /// Which sequence, from 0.
    pub index: usize,
    /// What was generated.
    pub token: Token,
}

/// Several sequences that are generated together. As an iterator, the tokens of all as they come;
/// dropping it leaves the sessions at the last token that was handed out.
pub struct Batch<'s> {
    pub(super) engine: Arc<Engine>,
    /// Of the rows as they were loaded.
    pub(super) id: u64,
    pub(super) lanes: Vec<Lane<'s>>,
    /// Unfinished lanes, in the order of the rows on the device.
    pub(super) active: Vec<usize>,
    pub(super) in_flight: VecDeque<Flight>,
    /// How a pass of the rows was run whose tokens are not chosen yet, since grammars decide.
    pub(super) undecided: Option<How>,
    /// What the only active lane says next, which one pass has found out.
    pub(super) verified: VecDeque<(u32, How)>,
    pub(super) next_slot: usize,
    pub(super) readbacks: Vec<Tensor>,
    /// Whose they are.
    pub(super) device: usize,
    pub(super) ready: VecDeque<BatchToken>,
    failed: bool,
}

impl<'s> Batch<'s> {
    /// Errors: [`Error::InvalidArgument`] for no sequence or too many, an empty session, sessions
    /// of two engines, or settings out of range; [`Error::OutOfMemory`].
    pub fn new(sequences: Vec<Sequence<'s>>) -> Result<Self> {
        let engine = match sequences.first() {
            Some(first) => Arc::clone(&first.session.engine),
            None => {
                return Err(Error::InvalidArgument {
                    name: "sequences",
                    reason: "none; give at least one".into(),
                });
            }
        };
        if sequences.len() > LOGIT_ROWS {
            let reason = format!("{} sequences; at most {LOGIT_ROWS} in a batch", sequences.len());
            return Err(Error::InvalidArgument { name: "sequences", reason });
        }
        let mut lanes = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            lanes.push(Lane::new(&engine, sequence)?);
        }
        let biases: usize = lanes.iter().map(|lane| lane.options.sampling.logit_bias.len()).sum();
        if biases > MAX_BIASES {
            let reason = format!("{biases} biases in the batch; at most {MAX_BIASES}");
            return Err(Error::InvalidArgument { name: "logit_bias", reason });
        }
        let id = engine.run_id();
        let active = (0..lanes.len()).filter(|&i| lanes[i].finished.is_none()).collect();
        let (in_flight, ready) =
            (VecDeque::with_capacity(DEPTH), VecDeque::with_capacity(LOGIT_ROWS));
        Ok(Self {
            engine,
            id,
            lanes,
            active,
            in_flight,
            undecided: None,
            verified: VecDeque::new(),
            next_slot: 0,
            readbacks: Vec::new(),
            device: 0,
            ready,
            failed: false,
        })
    }

    /// Why sequence `index` ended; `None` while it goes on.
    pub fn finish_reason(&self, index: usize) -> Option<FinishReason> {
        self.lanes.get(index)?.finished
    }

    /// Why sequence `index` is [`FinishReason::Failed`]; `None` where it isn't. The error of a sequence
    /// that has a batch to itself is the batch's.
    pub fn error(&self, index: usize) -> Option<&Error> {
        self.lanes.get(index)?.error.as_ref()
    }

    /// What the answer of sequence `index` took so far; `None` for a sequence that is not there.
    pub fn stats(&self, index: usize) -> Option<AnswerStats> {
        self.lanes.get(index).map(Lane::stats)
    }

    /// Why the sequences ended; `None` for those that go on.
    pub fn finish_reasons(&self) -> Vec<Option<FinishReason>> {
        self.lanes.iter().map(|lane| lane.finished).collect()
    }

    /// All sequences have ended, and each of their tokens was handed out.
    pub fn is_over(&self) -> bool {
        self.ready.is_empty() && (self.failed || self.active.is_empty())
    }

    /// The next token of any sequence; `None` when all have ended.
    ///
    /// Errors: as [`Session::prefill`]; the batch is then over, the sessions keep what was handed
    /// out. Only [`Error::Background`] does not end it: it goes on in the foreground.
    fn next_token(&mut self) -> Option<Result<BatchToken>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(Ok(ready));
            }
            if self.is_over() {
                return None;
            }
            let engine = Arc::clone(&self.engine);
            if let Err(error) = engine.surviving(|| self.advance()) {
                if matches!(error, Error::Background) {
                    // A step may have been half submitted: the rows are loaded anew.
                    self.id = engine.run_id();
                } else {
                    self.failed = true;
                    self.in_flight.clear();
                    self.verified.clear();
                }
                return Some(Err(error));
            }
        }
    }

    /// Changes the adapters of sequence `index` between two tokens. With [`KvPolicy::Keep`] the
    /// tokens that are under way (at most 8) still come from the old ones, and nothing waits; with
    /// [`KvPolicy::Recompute`] they are dropped.
    ///
    /// Errors: as [`Session::set_adapters`]; [`Error::InvalidArgument`] for a sequence that is not
    /// there.
    pub fn set_adapters(&mut self, index: usize, change: &Change<'_>) -> Result<()> {
        if index >= self.lanes.len() {
            let reason =
                format!("there is no sequence {index} in this batch of {}", self.lanes.len());
            return Err(Error::InvalidArgument { name: "index", reason });
        }
        if change.history == KvPolicy::Recompute {
            self.retire();
        }
        let session = &mut *self.lanes[index].session;
        session.set_adapters(change)?;
        let row = self.active.iter().position(|&i| i == index);
        if let (Seat::Taken(executor), Some(row)) = (&mut *self.engine.seat(), row)
            && executor.owner == self.id
        {
            executor.set_row_adapters(row, session.set);
        }
        Ok(())
    }
}

impl Drop for Batch<'_> {
    /// Takes back the tokens that nobody was handed.
    fn drop(&mut self) {
        for BatchToken { index, .. } in self.ready.drain(..) {
            let session = &mut *self.lanes[index].session;
            session.truncate(session.tokens().len() - 1);
        }
    }
}

impl Iterator for Batch<'_> {
    type Item = Result<BatchToken>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_token()
    }
}

/// Generates for several sessions of one engine at once, a step a token for all; `each` gets every
/// token with its sequence's index and may end everything. Gives the reasons by sequence; `None`
/// where `each` ended it. Of one that has [`FinishReason::Failed`], a [`Batch`] also has the error.
///
/// Errors: as [`Batch::new`] and [`Session::prefill`].
pub fn generate_batch(
    sequences: Vec<Sequence<'_>>,
    mut each: impl FnMut(usize, Token) -> ControlFlow<()>,
) -> Result<Vec<Option<FinishReason>>> {
    let mut batch = Batch::new(sequences)?;
    while let Some(next) = batch.next_token() {
        let BatchToken { index, token } = next?;
        if each(index, token).is_break() {
            break;
        }
    }
    Ok(batch.finish_reasons())
}
