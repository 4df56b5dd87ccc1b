//! The decode loop: one submission a token, sampling on the device, ids read back a few tokens late.
//!
//! Nothing is allocated, compiled or bound per token. The host runs ahead of the device by `DEPTH`
//! steps; what was computed past a stop is dropped, and the session is left at the last token
//! handed out. Where tokens can be looked up (`lookup`), several are judged in one submission.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::kernels::sample::Sampler;
use crate::model::activations::LOGIT_ROWS;
use crate::model::attend::Run;
use crate::model::decoder::{Decoder, Part};
use crate::model::pages::PAGE_LEN;

use super::Engine;
use super::batch::{Batch, BatchToken};
use super::executor::{Choice, Row, Space};
use super::options::FinishReason;
use super::pass::{How, Pass};
use super::seat::Turn;
use super::working::RING_SLOTS;

/// Steps submitted before the first one's tokens are awaited.
pub(super) const DEPTH: usize = 3;
const _: () = assert!(DEPTH < RING_SLOTS, "a ring slot is reused only after it was read");

/// Tokens on their way to the host.
pub(super) struct Flight {
    pub(super) slot: usize,
    pub(super) index: wgpu::SubmissionIndex,
    pub(super) how: How,
}

/// How a step of these rows is computed.
pub(super) fn how(runs: &[Run]) -> How {
    How::of(runs.len(), runs.iter().map(|run| run.positions).max().unwrap_or(1))
}

impl Batch<'_> {
    /// Takes the next tokens: what was found out before; what can be looked up; else those of the
    /// oldest step, while the device is kept busy with the next ones.
    pub(super) fn advance(&mut self) -> Result<()> {
        if let Some((id, how)) = self.verified.pop_front() {
            return self.hand_out(&[id], how);
        }
        let engine = Arc::clone(&self.engine);
        let began = Instant::now();
        self.renew_readbacks()?;
        let draft = self.draft();
        let drains = !draft.is_empty() && !self.in_flight.is_empty();
        if draft.is_empty() || drains || !self.verify(draft)? {
            self.step(began, drains)?;
        }
        engine.lifecycle.rest(began);
        Ok(())
    }

    /// Keeps the device busy, unless it `drains`, then takes the oldest step's tokens.
    fn step(&mut self, began: Instant, drains: bool) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        // What may come after a token is known once it has come.
        let most = if self.is_masked() { 1 } else { DEPTH };
        let (depth, mut kept, mut is_anew) = (engine.lifecycle.depth(most), None, false);
        while !drains && self.in_flight.len() < depth && self.may_submit() {
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
            is_anew = true;
            if !self.begin()? {
                // What had to make room is not taken a second time.
                kept.get_or_insert_with(|| engine.recoveries.enter_first());
            }
        }
        if self.is_masked() && self.in_flight.len() < engine.lifecycle.depth(DEPTH) {
            self.run_ahead()?;
        }
        match self.in_flight.pop_front() {
            Some(flight) => {
                self.take(flight)?;
                self.note_step(began.elapsed(), is_anew);
            }
            None => self.finish_full(),
        }
        Ok(())
    }

    /// Loads the rows and submits their first step; false if something of theirs has made room
    /// since it was prepared.
    fn begin(&mut self) -> Result<bool> {
        let engine = Arc::clone(&self.engine);
        let _claim = engine.steps.take();
        let Some(turn) = self.load(&engine)? else { return Ok(false) };
        self.undecided = None;
        self.submit(turn)?;
        Ok(true)
    }

    /// Loads the rows; `None` if something of theirs has made room since it was prepared.
    pub(super) fn load<'e>(&self, engine: &'e Engine) -> Result<Option<Turn<'e>>> {
        let Some(mut turn) = self.turn(engine)? else { return Ok(None) };
        let rows: Vec<Row<'_>> = self.active.iter().map(|&i| self.lanes[i].row()).collect();
        turn.load_rows(engine.gpu(), self.id, &rows);
        Ok(Some(turn))
    }

    /// A turn in which the active lanes can be loaded; `None` if something of theirs has made room
    /// since it was prepared.
    pub(super) fn turn<'e>(&self, engine: &'e Engine) -> Result<Option<Turn<'e>>> {
        let turn = engine.executor()?;
        let mut sessions = self.active.iter().map(|&i| &self.lanes[i].session);
        if !sessions.all(|session| turn.holds(&session.pages, session.set)) {
            return Ok(None);
        }
        if engine.device_number() != self.device {
            return Err(Error::DeviceLost("before a step".into()));
        }
        Ok(Some(turn))
    }

    /// Makes the readbacks, again where the device is another one; what was on its way to the old
    /// ones is lost, and no session holds it.
    pub(super) fn renew_readbacks(&mut self) -> Result<()> {
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
    pub(super) fn prepare(&mut self) -> Result<()> {
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

    /// Submits a step of the loaded lanes, or what is left of it.
    fn submit(&mut self, mut turn: Turn<'_>) -> Result<()> {
        let mut samplers = [Sampler::default(); LOGIT_ROWS];
        for (m, &i) in self.active.iter().enumerate() {
            samplers[m] = self.lanes[i].sampler;
            if let Some(grammar) = &self.lanes[i].grammar {
                turn.write_mask(self.engine.gpu(), m, grammar.mask());
            }
        }
        let samplers = &samplers[..self.active.len()];
        let flight = match self.undecided.take() {
            Some(how) => self.choose(turn, how, samplers)?,
            None => {
                let runs = self.make_room(&mut turn)?;
                self.run_step(turn, &runs[..samplers.len()], samplers)?
            }
        };
        self.in_flight.push_back(flight);
        Ok(())
    }

    /// Submits the next pass of rows that have grammars, up to the logits: the device computes them
    /// while the host finds out what may follow the token that is on its way.
    fn run_ahead(&mut self) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        if self.undecided.is_some() || self.in_flight.is_empty() || !self.may_submit() {
            return Ok(());
        }
        let _claim = engine.steps.take();
        let mut turn = engine.executor()?;
        if turn.owner != self.id {
            return Ok(());
        }
        let rows = self.active.len();
        let runs = &self.make_room(&mut turn)?[..rows];
        let how = how(runs);
        let pass = Pass { space: Space::Steps, runs, how, cancel: None, inputs: None };
        let parts = turn.parts().chain(Decoder::head_parts(0, rows as u32));
        engine.run(turn, &pass, parts, |_, _| ())?;
        self.undecided = Some(how);
        Ok(())
    }

    /// Submits the choice of a token after each row of a pass that was run ahead.
    fn choose(&mut self, turn: Turn<'_>, how: How, samplers: &[Sampler]) -> Result<Flight> {
        let pass = Pass { space: Space::Steps, runs: &[], how, cancel: None, inputs: None };
        self.run_to_choice(turn, &pass, std::iter::empty(), samplers)
    }

    /// Room for the next position of each loaded lane: the rows of a step, of which there are as
    /// many as active lanes.
    pub(super) fn make_room(&mut self, turn: &mut Turn<'_>) -> Result<[Run; LOGIT_ROWS]> {
        let (gpu, ahead) = (self.engine.gpu(), self.in_flight.len());
        let mut runs = [Run { row0: 0, count: 1, positions: 0 }; LOGIT_ROWS];
        for (m, &i) in self.active.iter().enumerate() {
            let session = &mut *self.lanes[i].session;
            let positions = session.kv_len + ahead + 1;
            if session.pages.all.len() * PAGE_LEN < positions {
                turn.next_page(gpu, m, &mut session.pages, session.kv_len)?;
            }
            runs[m] = Run { row0: m as u32, count: 1, positions: positions as u32 };
        }
        Ok(runs)
    }

    /// Submits a pass over the rows that are loaded, and the choice of a token after each.
    pub(super) fn run_step(
        &mut self,
        turn: Turn<'_>,
        runs: &[Run],
        samplers: &[Sampler],
    ) -> Result<Flight> {
        let how = how(runs);
        let pass = Pass { space: Space::Steps, runs, how, cancel: None, inputs: None };
        let parts = turn.parts().chain(Decoder::head_parts(0, runs.len() as u32));
        self.run_to_choice(turn, &pass, parts, samplers)
    }

    /// Submits `parts` of a pass, and the choice of a token after each row.
    fn run_to_choice(
        &mut self,
        turn: Turn<'_>,
        pass: &Pass<'_>,
        parts: impl Iterator<Item = Part>,
        samplers: &[Sampler],
    ) -> Result<Flight> {
        let engine = Arc::clone(&self.engine);
        let (slot, rows) = (self.next_slot, samplers.len() as u32);
        let (masked, readback) = (self.is_masked(), &self.readbacks[slot]);
        let choice = Choice { samplers, masked, slot, readback };
        let index = engine.run(turn, pass, parts, |executor, commands| {
            executor.record_choice(commands, rows, choice);
        })?;
        self.next_slot = (slot + 1) % RING_SLOTS;
        Ok(Flight { slot, index, how: pass.how })
    }

    /// Waits for a step and hands its tokens to the lanes.
    fn take(&mut self, flight: Flight) -> Result<()> {
        let mut ids = [0_u32; LOGIT_ROWS];
        let ids = &mut ids[..self.active.len()];
        self.engine.gpu().take(&self.readbacks[flight.slot], flight.index, ids)?;
        self.hand_out(ids, flight.how)
    }

    /// Gives each active lane its next token. A lane that can't go on ends alone; where one goes on
    /// from elsewhere than the device does, all are loaded anew.
    fn hand_out(&mut self, drawn: &[u32], how: How) -> Result<()> {
        let (is_alone, mut all_follow) = (self.lanes.len() == 1, true);
        for (&index, &drawn) in self.active.iter().zip(drawn) {
            let lane = &mut self.lanes[index];
            match lane.accept(drawn, how) {
                Ok(token) => self.ready.push_back(BatchToken { index, token }),
                Err(error) if is_alone => return Err(error),
                Err(error) => lane.fail(error),
            }
            all_follow &= lane.finished.is_none() && lane.follows(drawn);
        }
        if !all_follow {
            self.retire();
        }
        Ok(())
    }

    /// Drops the finished lanes and what was computed ahead; the others are loaded anew.
    pub(super) fn retire(&mut self) {
        // The device finishes them before whatever is submitted next, so there is nothing to wait
        // for.
        self.in_flight.clear();
        self.verified.clear();
        self.active.retain(|&i| self.lanes[i].finished.is_none());
        self.id = self.engine.run_id();
    }
}
