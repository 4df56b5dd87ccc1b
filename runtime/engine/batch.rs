//! Several sessions answering at once. The decode loop: one submission a token, sampling on the device, ids read back a few tokens
//! late.
//!
//! Nothing is allocated, compiled or bound per token. The host runs ahead of the device by `DEPTH`
//! steps; what was computed past a stop is dropped, and the session is left at the last token
//! handed out.

mod logits;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::gpu::Tensor;
use crate::model::activations::LOGIT_ROWS;
use crate::model::attend::Run;
use crate::model::decoder::Decoder;
use crate::model::pages::PAGE_LEN;

use super::adapters::{Change, KvPolicy};
use super::executor::{Choice, Row, Space};
use super::lane::Lane;
use super::options::{AnswerStats, FinishReason, GenerateOptions, Token};
use super::pass::{How, Pass};
use super::seat::{Seat, Turn};
use super::working::{MAX_BIASES, RING_SLOTS};
use super::{Engine, Session};

pub use logits::next_logits;

/// Steps submitted before the first one's tokens are awaited.
const DEPTH: usize = 3;
const _: () = assert!(DEPTH < RING_SLOTS, "a ring slot is reused only after it was read");

/// Tokens on their way to the host.
struct Flight {
    slot: usize,
    index: wgpu::SubmissionIndex,
    how: How,
}

/// The rows of a step, as many as there are active lanes.
struct Loaded {
    runs: [Run; LOGIT_ROWS],
    how: How,
}

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
    engine: Arc<Engine>,
    /// Of the rows as they were loaded.
    id: u64,
    lanes: Vec<Lane<'s>>,
    /// Unfinished lanes, in the order of the rows on the device.
    active: Vec<usize>,
    in_flight: VecDeque<Flight>,
    next_slot: usize,
    readbacks: Vec<Tensor>,
    /// Whose they are.
    device: usize,
    ready: VecDeque<BatchToken>,
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
                }
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
        let row = self.active.iter().position(|&i| i == index);
        if let (Seat::Taken(executor), Some(row)) = (&mut *self.engine.seat(), row)
            && executor.owner == self.id
        {
            executor.set_row_adapters(row, session.set);
        }
        Ok(())
    }

    /// Keeps the device busy, then takes the oldest step's tokens.
    fn advance(&mut self) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let began = Instant::now();
        self.renew_readbacks()?;
        // What may come after a token is known once it has come.
        let depth = if self.is_masked() { 1 } else { DEPTH };
        let (depth, mut kept) = (engine.lifecycle.depth(depth), None);
        while self.in_flight.len() < depth && self.may_submit() {
            let claim = engine.steps.take();
            let turn = engine.executor()?;
            if turn.owner == self.id {
                self.submit(turn)?;
                continue;
            }
            drop(turn);
            drop(claim);
            if !self.in_flight.is_empty() {
                break; // someone else was here: take our tokens first, then load anew
            }
            self.prepare()?;
            if self.active.is_empty() {
                return Ok(());
            }
            if !self.begin()? {
                // What had to make room is not taken a second time.
                kept.get_or_insert_with(|| engine.recoveries.enter_first());
            }
        }
        match self.in_flight.pop_front() {
            Some(flight) => self.take(flight)?,
            None => self.finish_full(),
        }
        engine.lifecycle.rest(began);
        Ok(())
    }

    /// Loads the rows and submits their first step; false if something of theirs has made room
    /// since it was prepared.
    fn begin(&mut self) -> Result<bool> {
        let engine = Arc::clone(&self.engine);
        let _claim = engine.steps.take();
        let Some(turn) = self.load(&engine)? else { return Ok(false) };
        self.submit(turn)?;
        Ok(true)
    }

    /// Loads the rows; `None` if something of theirs has made room since it was prepared.
    fn load<'e>(&self, engine: &'e Engine) -> Result<Option<Turn<'e>>> {
        let mut turn = engine.executor()?;
        let rows: Vec<Row<'_>> = self.active.iter().map(|&i| self.lanes[i].row()).collect();
        if !rows.iter().all(|row| turn.holds(row.pages, row.set)) {
            return Ok(None);
        }
        if engine.device_number() != self.device {
            return Err(Error::DeviceLost("before a step".into()));
        }
        turn.load_rows(engine.gpu(), self.id, &rows);
        Ok(Some(turn))
    }

    /// Makes the readbacks, again where the device is another one; what was on its way to the old
    /// ones is lost, and no session holds it.
    fn renew_readbacks(&mut self) -> Result<()> {
        let device = self.engine.device_number();
        if self.device == device && !self.readbacks.is_empty() {
            return Ok(());
        }
        self.in_flight.clear();
        let readback = |_| self.engine.gpu().readback("tokens", LOGIT_ROWS as u64 * 4);
        self.readbacks = (0..RING_SLOTS).map(readback).collect::<Result<_>>()?;
        self.device = device;
        Ok(())
    }

    /// Some sequence that goes on has a grammar.
    fn is_masked(&self) -> bool {
        self.active.iter().any(|&i| self.lanes[i].grammar.is_some())
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
                .all(|&i| self.lanes[i].session.tokens.len() + ahead < self.engine.context())
    }

    fn finish_full(&mut self) {
        let context = self.engine.context();
        for &i in &self.active {
            if self.lanes[i].session.tokens.len() >= context {
                self.lanes[i].finished = Some(FinishReason::ContextFull);
            }
        }
        self.retire();
    }

    /// Computes the active lanes' prompts; one that is cancelled before its first token ends here,
    /// alone.
    fn prepare(&mut self) -> Result<()> {
        for &i in &self.active {
            let lane = &mut self.lanes[i];
            match lane.prepare() {
                Err(Error::Cancelled) => lane.finished = Some(FinishReason::Cancelled),
                prepared => prepared?,
            }
        }
        self.active.retain(|&i| self.lanes[i].finished.is_none());
        Ok(())
    }

    /// Submits a step of the loaded lanes.
    fn submit(&mut self, mut turn: Turn<'_>) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let Loaded { runs, how } = self.make_room(&mut turn)?;
        let (slot, rows) = (self.next_slot, self.active.len());
        let samplers = self.active.iter().map(|&i| self.lanes[i].sampler);
        let (masked, readback) = (self.is_masked(), &self.readbacks[slot]);
        let choice = Choice { samplers, masked, slot, readback };
        let pass =
            Pass { space: Space::Steps, runs: &runs[..rows], how, cancel: None, inputs: None };
        let parts = turn.parts().chain(Decoder::head_parts(0, rows as u32));
        let index = engine.run(turn, &pass, parts, |executor, commands| {
            executor.record_choice(commands, rows as u32, choice);
        })?;
        self.next_slot = (slot + 1) % RING_SLOTS;
        self.in_flight.push_back(Flight { slot, index, how });
        Ok(())
    }

    /// Room for the next position of each loaded lane, and its mask.
    fn make_room(&mut self, turn: &mut Turn<'_>) -> Result<Loaded> {
        let (gpu, ahead) = (self.engine.gpu(), self.in_flight.len());
        let mut runs = [Run { row0: 0, count: 1, positions: 0 }; LOGIT_ROWS];
        for (m, &i) in self.active.iter().enumerate() {
            let session = &mut *self.lanes[i].session;
            let positions = session.kv_len + ahead + 1;
            if session.pages.all.len() * PAGE_LEN < positions {
                turn.next_page(gpu, m, &mut session.pages, session.kv_len)?;
            }
            runs[m] = Run { row0: m as u32, count: 1, positions: positions as u32 };
            if let Some(grammar) = &self.lanes[i].grammar {
                turn.write_mask(gpu, m, grammar.mask());
            }
        }
        let rows = self.active.len();
        let longest = runs[..rows].iter().map(|run| run.positions).max().unwrap_or(1);
        Ok(Loaded { runs, how: How::of(rows, longest) })
    }

    /// Waits for a step and hands its tokens to the lanes.
    fn take(&mut self, flight: Flight) -> Result<()> {
        let mut ids = [0_u32; LOGIT_ROWS];
        let ids = &mut ids[..self.active.len()];
        self.engine.gpu().take(&self.readbacks[flight.slot], flight.index, ids)?;
        for (&i, &mut id) in self.active.iter().zip(ids) {
            let token = Token { id, text: self.lanes[i].accept(id, flight.how)? };
            self.ready.push_back(BatchToken { index: i, token });
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
        self.in_flight.clear();
        self.active.retain(|&i| self.lanes[i].finished.is_none());
        self.id = self.engine.run_id();
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
/// where `each` ended it.
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
