//! A pass through the model, turn by turn: after each submission others may have theirs.

use std::sync::atomic::Ordering;

use crate::cancel::CancelToken;
use crate::error::Result;
use crate::gpu::{Commands, Tensor};
use crate::kernels::matvec::MAX_COLS;
use crate::model::attend::Run;
use crate::model::decoder::{Decoder, Part};
use crate::model::kv_cache::Held;

use super::Engine;
use super::executor::{Chunk, Executor, Space, few_rows};
use super::turns::Turn;

/// A pass whose rows are in a space that the caller has claimed.
pub(super) struct Pass<'a> {
    pub(super) space: Space,
    /// Covers the rows, in order.
    pub(super) runs: &'a [Run],
    /// Ends it between two submissions.
    pub(super) cancel: Option<&'a CancelToken>,
}

/// Rows of a prompt that have gone through the model; their activations are there.
pub(super) struct Computed<'a> {
    pass: &'a Pass<'a>,
    /// Index of the first row among the prompt's tokens.
    pub(super) first: usize,
    pub(super) count: u32,
}

/// Activations for so many rows.
struct Claim<'a> {
    space: Space,
    rows: usize,
    turn: Turn<'a, ()>,
}

impl Engine {
    /// Runs a pass, of which the first turn has begun: submits `parts` and what `finish` records
    /// after them, and lets others have their turns in between.
    ///
    /// Errors: [`crate::Error::Cancelled`]; [`crate::Error::OutOfMemory`]; as [`crate::gpu::Gpu::check`].
    pub(super) fn run<'e>(
        &'e self,
        mut turn: Turn<'e, Executor>,
        pass: &Pass<'_>,
        parts: impl Iterator<Item = Part>,
        finish: impl FnOnce(&Executor, &mut Commands<'_>),
    ) -> Result<wgpu::SubmissionIndex> {
        let is_long = pass.space == Space::Prompts;
        let unit = if is_long { 0 } else { self.long_part.load(Ordering::Relaxed) };
        let mut commands = Commands::new(&self.gpu)?.by_hand(unit);
        if let Some(cancel) = pass.cancel {
            commands.cancel_on(cancel);
        }
        turn.resume(&self.gpu, pass.space)?;
        for part in parts {
            if commands.is_full() {
                commands.flush();
                drop(turn);
                commands.keep_pace()?;
                turn = self.executor();
                turn.resume(&self.gpu, pass.space)?;
            }
            let before = commands.operations();
            turn.record(&mut commands, pass.space, part, pass.runs)?;
            if is_long {
                let part = commands.operations().saturating_sub(before);
                self.long_part.fetch_max(part, Ordering::Relaxed);
            }
        }
        finish(&turn, &mut commands);
        Ok(commands.submit())
    }

    /// Runs the tokens of a prompt through the model, a pass of many after the other; `each` is
    /// called after each.
    ///
    /// Errors: as [`Engine::run`]; those of `each`.
    pub(super) fn prefill(
        &self,
        prompt: Chunk<'_>,
        held: &mut Held,
        cancel: &CancelToken,
        mut each: impl FnMut(&Computed<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        while first < prompt.tokens.len() {
            cancel.check()?;
            let Claim { space, rows, turn: claim } = self.claim_rows(prompt.tokens.len() - first);
            let (position, count) = (prompt.position + first, rows as u32);
            let tokens = &prompt.tokens[first..first + rows];
            let mut turn = self.executor();
            turn.slide(&self.gpu, held, (position, position + rows), prompt.keys)?;
            turn.load_chunk(&self.gpu, space, &Chunk { tokens, position, ..prompt }, held);
            let runs = [Run { row0: 0, count, positions: position as u32 + count }];
            let pass = Pass { space, runs: &runs, cancel: Some(cancel) };
            let parts = turn.parts();
            let index = self.run(turn, &pass, parts, |_, _| ())?;
            each(&Computed { pass: &pass, first, count })?;
            drop(claim);
            // Two chunks ahead of the device at most, and faults surface here.
            if self.gpu.caps().software {
                self.gpu.wait(Some(index))?;
            }
            first += rows;
        }
        self.gpu.check()
    }

    /// Activations for the next rows of a prompt that has `left`. One that finds another's long
    /// pass on its way goes beside it, in short ones.
    fn claim_rows(&self, left: usize) -> Claim<'_> {
        let caps = self.gpu.caps();
        let (few, many) = (few_rows(caps), super::pass_rows(caps));
        if let Some(turn) = (left > few).then(|| self.prompts.try_take()).flatten() {
            return Claim { space: Space::Prompts, rows: left.min(many), turn };
        }
        // All about as many, so that none is so short that other kernels compute it.
        let rows = left.div_ceil(left.div_ceil(few));
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
            let index = self.run(self.executor(), pass, parts, |executor, commands| {
                executor.copy_logits(commands, pass.space, count, readback, first);
            })?;
            copied = Some(index);
        }
        let mut logits = vec![0.0; rows as usize * self.base.config.vocab_size];
        if let Some(copied) = copied {
            self.gpu.take(readback, copied, &mut logits)?;
        }
        Ok(logits)
    }
}
