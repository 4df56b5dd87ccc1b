//! A pass through the model, turn by turn: after each submission others may have theirs.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::gpu::{Commands, Tensor};
use crate::kernels::attention;
use crate::kernels::matvec::MAX_COLS;
use crate::model::attend::Run;
use crate::model::decoder::{Decoder, Part};
use crate::model::pages::Held;

use super::Engine;
use super::executor::{Chunk, Executor, Space, few_rows};
use super::inputs::Inputs;
use super::seat::Turn;
use super::turns;

/// A pass whose rows are in a space that the caller has claimed.
pub(super) struct Pass<'a> {
    pub(super) space: Space,
    /// Covers the rows, in order.
    pub(super) runs: &'a [Run],
    /// As [`How::of`] has it, or as it was when the rows were computed before.
    pub(super) how: How,
    /// Ends it between two submissions.
    pub(super) cancel: Option<&'a CancelToken>,
    /// Gets what goes into each group of linears; of a wide pass alone.
    pub(super) inputs: Option<&'a Inputs>,
}

impl Pass<'_> {
    pub(super) fn rows(&self) -> u32 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

/// What decides how a row's numbers are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Among many rows.
    Wide,
    /// Among few, whose attention came in so many parts.
    Narrow { parts: u32 },
}

impl How {
    /// That of a pass over so many rows, the longest of which sees so many positions.
    pub(super) fn of(rows: usize, positions: u32) -> Self {
        if rows > MAX_COLS as usize {
            return Self::Wide;
        }
        Self::Narrow { parts: attention::splits(positions) }
    }

    /// Positions that a run has to claim to be computed like this.
    fn positions(self) -> u32 {
        match self {
            Self::Wide => 0,
            Self::Narrow { parts } => (parts - 1) * attention::CHUNK + 1,
        }
    }
}

/// Rows of a prompt that have gone through the model; their activations are there.
pub(super) struct Computed<'a> {
    pass: &'a Pass<'a>,
    /// Index of the first row among the prompt's tokens.
    pub(super) first: usize,
    pub(super) count: u32,
}

impl Computed<'_> {
    pub(super) fn pass(&self) -> &Pass<'_> {
        self.pass
    }

    pub(super) fn how(&self) -> How {
        self.pass.how
    }
}

/// How far a prompt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefilled {
    /// To its end.
    Whole,
    /// Keys and values, or the adapters, have made room meanwhile.
    Gone,
}

/// Activations for so many rows.
struct Claim<'a> {
    space: Space,
    rows: usize,
    turn: turns::Turn<'a, ()>,
}

impl Engine {
    /// Runs a pass, of which the first turn has begun: submits `parts` and what `finish` records
    /// after them, and lets others have their turns in between.
    ///
    /// Errors: [`Error::Cancelled`]; [`Error::Background`]; [`Error::OutOfMemory`];
    /// [`Error::DeviceLost`]; as [`crate::gpu::Gpu::check`].
    pub(super) fn run<'e>(
        &'e self,
        mut turn: Turn<'e>,
        pass: &Pass<'_>,
        parts: impl Iterator<Item = Part>,
        finish: impl FnOnce(&Executor, &mut Commands<'_>),
    ) -> Result<wgpu::SubmissionIndex> {
        let (gpu, device) = (self.gpu(), self.device_number());
        let is_long = pass.space == Space::Prompts;
        let unit = if is_long { 0 } else { self.long_part.load(Ordering::Relaxed) };
        let mut commands = Commands::new(gpu)?.by_hand(unit);
        if let Some(cancel) = pass.cancel {
            commands.cancel_on(cancel);
        }
        turn.resume(gpu, pass.space)?;
        for part in parts {
            if commands.is_full() {
                commands.flush();
                drop(turn);
                commands.keep_pace()?;
                turn = self.executor()?;
                if self.device_number() != device {
                    return Err(Error::DeviceLost("in the middle of a pass".into()));
                }
                turn.resume(gpu, pass.space)?;
            }
            let before = commands.operations();
            turn.record(&mut commands, part, pass)?;
            if let Some(inputs) = pass.inputs {
                turn.copy_input(&mut commands, part, pass, inputs);
            }
            if is_long {
                let part = commands.operations().saturating_sub(before);
                self.long_part.fetch_max(part, Ordering::Relaxed);
            }
        }
        finish(&turn, &mut commands);
        let index = commands.submit();
        drop(turn);
        // Kernels are compiled on first use, and an app may be killed before it drops the engine.
        self.gpu().save_pipelines();
        Ok(index)
    }

    /// Runs the tokens of a prompt through the model, a pass of many after the other; `each` is
    /// called after each.
    ///
    /// Keys, values and adapters stay during a pass; between two they may have to make room.
    ///
    /// Errors: as [`Engine::run`]; those of `each`.
    pub(super) fn prefill(
        &self,
        prompt: Chunk<'_>,
        held: &mut Held,
        cancel: &CancelToken,
        mut each: impl FnMut(&Computed<'_>) -> Result<()>,
    ) -> Result<Prefilled> {
        let mut first = 0;
        while first < prompt.tokens.len() {
            cancel.check()?;
            let began = Instant::now();
            let left = prompt.tokens.len() - first;
            let Claim { space, rows, turn: claim } = match prompt.how {
                Some(How::Narrow { .. }) => self.claim_few(left.min(MAX_COLS as usize)),
                Some(How::Wide) | None => self.claim_rows(left),
            };
            let (position, count) = (prompt.position + first, rows as u32);
            let tokens = &prompt.tokens[first..first + rows];
            let mut turn = self.executor()?;
            let gpu = self.gpu();
            if !turn.holds(held, prompt.set) {
                return Ok(Prefilled::Gone);
            }
            turn.slide(gpu, held, position..position + rows, prompt.keys)?;
            turn.load_chunk(gpu, space, &Chunk { tokens, position, ..prompt }, held);
            let positions = position as u32 + count;
            let how = prompt.how.unwrap_or_else(|| How::of(rows, positions));
            let runs = [Run { row0: 0, count, positions: positions.max(how.positions()) }];
            let inputs = prompt.inputs;
            let pass = Pass { space, runs: &runs, how, cancel: Some(cancel), inputs };
            let parts = turn.parts();
            let index = self.run(turn, &pass, parts, |_, _| ())?;
            each(&Computed { pass: &pass, first, count })?;
            drop(claim);
            // Two chunks ahead of the device at most, and faults surface here.
            if gpu.caps().software {
                gpu.wait(Some(index))?;
            }
            self.lifecycle.rest(began);
            first += rows;
        }
        self.gpu().check()?;
        Ok(Prefilled::Whole)
    }

    /// Activations for the next rows of a prompt that has `left`. One that finds another's long
    /// pass on its way goes beside it, in short ones.
    fn claim_rows(&self, left: usize) -> Claim<'_> {
        let caps = self.gpu().caps();
        let (few, many) = (few_rows(caps), super::pass_rows(caps));
        if let Some(turn) = (left > few).then(|| self.prompts.try_take()).flatten() {
            return Claim { space: Space::Prompts, rows: left.min(many), turn };
        }
        // All about as many, so that none is so short that other kernels compute it.
        self.claim_few(left.div_ceil(left.div_ceil(few)))
    }

    fn claim_few(&self, rows: usize) -> Claim<'_> {
        Claim { space: Space::Steps, rows, turn: self.steps.take() }
    }

    /// Logits `[rows, V]` of `rows` rows from `x_row` of a pass, by way of `readback`.
    ///
    /// Errors: as [`Engine::run`].
    pub(super) fn read_logits(
        &self,
        computed: &Computed<'_>,
        x_row: u32,
        rows: u32,
        readback: &Tensor,
    ) -> Result<Vec<f32>> {
        let pass = computed.pass;
        let mut copied = None;
        for first in (0..rows).step_by(MAX_COLS as usize) {
            let count = MAX_COLS.min(rows - first);
            let parts = Decoder::head_parts(x_row + first, count);
            let index = self.run(self.executor()?, pass, parts, |executor, commands| {
                executor.copy_logits(commands, pass.space, count, readback, first);
            })?;
            copied = Some(index);
        }
        let mut logits = vec![0.0; rows as usize * self.base.config.vocab_size];
        if let Some(copied) = copied {
            self.gpu().take(readback, copied, &mut logits)?;
        }
        Ok(logits)
    }
}
