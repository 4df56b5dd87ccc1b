//! The decode loop: one submission a token, sampling on the device, ids read back a few tokens
//! late.
//!
//! Nothing is allocated, compiled or bound per token. The host runs ahead of the device by `DEPTH`
//! steps; what was computed past a stop is dropped, and the session is left at the last token
//! handed out.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::Tensor;
use crate::gpu::tensor::mapped;
use crate::model::activations::LOGIT_ROWS;
use crate::model::attend::Run;
use crate::model::kv_cache::PAGE_LEN;

use super::adapters::{Change, KvPolicy};
use super::executor::{Executor, Row};
use super::lane::Lane;
use super::options::{AnswerStats, FinishReason, GenerateOptions, Token};
use super::working::{MAX_BIASES, RING_SLOTS};
use super::{Engine, Session};

/// Steps submitted before the first one's tokens are awaited.
const DEPTH: usize = 3;
const _: () = assert!(DEPTH < RING_SLOTS, "a ring slot is reused only after it was read");

/// Tokens on their way to the host.
struct Flight {
    slot: usize,
    index: wgpu::SubmissionIndex,
}

/// A running generation. As an iterator, the tokens of its first session; dropping it leaves the
/// sessions at the last token that was handed out.
pub struct Generation<'s> {
    engine: Arc<Engine>,
    id: u64,
    lanes: Vec<Lane<'s>>,
    /// Unfinished lanes, in the order of the rows on the device.
    active: Vec<usize>,
    in_flight: VecDeque<Flight>,
    next_slot: usize,
    readbacks: Vec<Tensor>,
    ready: VecDeque<(usize, Token)>,
    failed: bool,
}

impl<'s> Generation<'s> {
    pub(super) fn new(sequences: Vec<(&'s mut Session, GenerateOptions)>) -> Result<Self> {
        let engine = match sequences.first() {
            Some((session, _)) => Arc::clone(&session.engine),
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
        for (session, options) in sequences {
            lanes.push(Lane::new(&engine, session, options)?);
        }
        let biases: usize = lanes.iter().map(|lane| lane.options.sampling.logit_bias.len()).sum();
        if biases > MAX_BIASES {
            let reason = format!("{biases} biases in the batch; at most {MAX_BIASES}");
            return Err(Error::InvalidArgument { name: "logit_bias", reason });
        }
        let readbacks = (0..RING_SLOTS)
            .map(|_| engine.gpu.readback("tokens", LOGIT_ROWS as u64 * 4))
            .collect::<Result<Vec<_>>>()?;
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
            next_slot: 0,
            readbacks,
            ready,
            failed: false,
        })
    }

    /// Why sequence `index` ended; `None` while it goes on.
    pub fn finish_reason(&self, index: usize) -> Option<FinishReason> {
        self.lanes.get(index)?.finished
    }

    /// What the answer of sequence `index` took so far; `None` for a sequence that is not there.
    pub fn stats(&self, index: usize) -> Option<AnswerStats> {
        self.lanes.get(index).map(Lane::stats)
    }

    /// The next token of any sequence, with the sequence's index; `None` when all have ended.
    ///
    /// Errors: as [`crate::gpu::Gpu::check`]; the generation is then over, the sessions keep what
    /// was handed out.
    pub fn next_token(&mut self) -> Option<Result<(usize, Token)>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(Ok(ready));
            }
            if self.failed || self.active.is_empty() {
                return None;
            }
            if let Err(error) = self.advance() {
                self.failed = true;
                self.in_flight.clear();
                return Some(Err(error));
            }
        }
    }

    /// Changes the adapters of sequence `index` between two tokens. With [`KvPolicy::Keep`] the
    /// tokens that are under way (at most 3) still come from the old ones, and nothing waits; with
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
        let mut executor = self.engine.executor();
        if let Some(row) =
            self.active.iter().position(|&i| i == index).filter(|_| executor.owner == self.id)
        {
            executor.set_row_adapters(&self.engine.gpu, row, session.set)?;
        }
        Ok(())
    }

    /// Keeps the device busy, then takes the oldest step's tokens.
    fn advance(&mut self) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        while self.in_flight.len() < DEPTH && self.may_submit() {
            let mut executor = engine.executor();
            if executor.owner != self.id {
                if !self.in_flight.is_empty() {
                    break; // someone else took a turn: take our tokens first, then load anew
                }
                self.load(&mut executor)?;
                if self.active.is_empty() {
                    return Ok(());
                }
            }
            self.submit(&mut executor)?;
        }
        match self.in_flight.pop_front() {
            Some(flight) => self.take(flight),
            None => {
                self.finish_full();
                Ok(())
            }
        }
    }

    /// Steps ahead of the host's knowledge: every lane still has room and may need the token.
    fn may_submit(&self) -> bool {
        let ahead = self.in_flight.len();
        let wanted = self
            .active
            .iter()
            .any(|&i| self.lanes[i].generated + ahead < self.lanes[i].options.max_tokens);
        wanted
            && self
                .active
                .iter()
                .all(|&i| self.lanes[i].session.tokens.len() + ahead < self.engine.context)
    }

    fn finish_full(&mut self) {
        let context = self.engine.context;
        for &i in &self.active {
            if self.lanes[i].session.tokens.len() >= context {
                self.lanes[i].finished = Some(FinishReason::ContextFull);
            }
        }
        self.retire();
    }

    /// Puts the active lanes on the device; one that is cancelled before its first token ends here,
    /// alone.
    fn load(&mut self, executor: &mut Executor) -> Result<()> {
        for &i in &self.active {
            let lane = &mut self.lanes[i];
            match lane.prepare(executor) {
                Err(Error::Cancelled) => lane.finished = Some(FinishReason::Cancelled),
                prepared => prepared?,
            }
        }
        self.active.retain(|&i| self.lanes[i].finished.is_none());
        let rows: Vec<Row<'_>> = self.active.iter().map(|&i| self.lanes[i].row()).collect();
        executor.load_rows(&self.engine.gpu, self.id, &rows)
    }

    fn submit(&mut self, executor: &mut Executor) -> Result<()> {
        let gpu = &self.engine.gpu;
        let ahead = self.in_flight.len();
        let mut runs = [Run { row0: 0, count: 1, positions: 0 }; LOGIT_ROWS];
        for (m, &i) in self.active.iter().enumerate() {
            let session = &mut *self.lanes[i].session;
            let positions = session.kv_len + ahead + 1;
            if session.pages.len() * PAGE_LEN < positions {
                let page = executor.allocate_page(gpu)?;
                executor.set_page(gpu, m, session.pages.len(), page);
                session.pages.push(page);
            }
            runs[m] = Run { row0: m as u32, count: 1, positions: positions as u32 };
        }
        let slot = self.next_slot;
        let samplers = self.active.iter().map(|&i| self.lanes[i].sampler);
        let runs = &runs[..self.active.len()];
        let index = executor.step(gpu, runs, samplers, slot, &self.readbacks[slot])?;
        self.readbacks[slot].buffer.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        self.next_slot = (slot + 1) % RING_SLOTS;
        self.in_flight.push_back(Flight { slot, index });
        Ok(())
    }

    /// Waits for a step and hands its tokens to the lanes.
    fn take(&mut self, flight: Flight) -> Result<()> {
        self.engine.gpu.wait(Some(flight.index))?;
        let readback = &self.readbacks[flight.slot];
        let mut ids = [0_u32; LOGIT_ROWS];
        let taken = mapped(readback, &mut ids[..self.active.len()]);
        readback.buffer.unmap();
        taken?;
        for (&i, &id) in self.active.iter().zip(&ids) {
            let text = self.lanes[i].accept(id);
            self.ready.push_back((i, Token { id, text }));
        }
        if self.active.iter().any(|&i| self.lanes[i].finished.is_some()) {
            self.retire();
        }
        Ok(())
    }

    /// Drops the finished lanes and what was computed ahead; the others are loaded anew.
    fn retire(&mut self) {
        // The device finishes them before whatever is submitted next, so there is nothing to wait
        // for.
        for flight in self.in_flight.drain(..) {
            self.readbacks[flight.slot].buffer.unmap();
        }
        self.active.retain(|&i| self.lanes[i].finished.is_none());
        let mut executor = self.engine.executor();
        if executor.owner == self.id {
            executor.owner = 0;
        }
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        self.retire();
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        self.next_token().map(|result| result.map(|(_, token)| token))
    }
}

/// Generates for several sessions of one engine at once, a step a token for all; `each` gets every
/// token with its sequence's index and may end everything. Gives the reasons by sequence; `None`
/// where `each` ended it.
///
/// Errors: as [`Session::generate`] and [`Generation::next_token`].
pub fn generate_batch(
    sequences: Vec<(&mut Session, GenerateOptions)>,
    mut each: impl FnMut(usize, Token) -> ControlFlow<()>,
) -> Result<Vec<Option<FinishReason>>> {
    let mut generation = Generation::new(sequences)?;
    while let Some(next) = generation.next_token() {
        let (index, token) = next?;
        if each(index, token).is_break() {
            break;
        }
    }
    Ok(generation.lanes.iter().map(|lane| lane.finished).collect())
}
