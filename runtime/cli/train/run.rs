//! A run from its first step, or its last checkpoint, to its end.

use std::sync::Arc;

use serde::Serialize;

use super::args::RunArgs;
use super::folder::Folder;
use super::setup::{Data, Setup};
use super::view::View;
use crate::cli::output;
use crate::engine::CancelToken;
use crate::error::{Error, Result};
use crate::train::Trainer;
use crate::train::data::MicroBatch;
use crate::train::data::batch::in_order;
use crate::train::signals::{EarlyStop, History, StepLog, StepRecord, Verdict, warnings};

/// Validations of a run, unless the user says how often.
const VALIDATIONS: u64 = 10;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// All steps are done.
    Finished,
    /// The validation loss improved no more.
    EarlyStop,
    /// Ctrl-C.
    Interrupted,
}

pub(super) struct Run<'a> {
    args: &'a RunArgs,
    folder: &'a Folder,
    pub(super) trainer: Trainer,
    pub(super) history: History,
    pub(super) view: View,
    /// The step of the checkpoint that it goes on from.
    pub(super) resumed_from: Option<u64>,
    pub(super) peak_bytes: u64,
    validation: Vec<MicroBatch>,
    evaluate_every: u64,
    patience: Option<u32>,
    early: EarlyStop,
    verdict: Verdict,
    log: StepLog,
    /// Any batch: an adapter is good if its loss on it is a number.
    probe: Vec<MicroBatch>,
    saved: Option<u64>,
}

impl<'a> Run<'a> {
    /// Begins, or goes on where the last checkpoint stands.
    ///
    /// Errors: as [`Trainer::new`], [`Trainer::resume`], [`History::read`] and [`StepLog::open`].
    pub(super) fn start(args: &'a RunArgs, folder: &'a Folder, setup: Setup, data: Data) -> Result<Self> {
        let Setup { engine, options, init, .. } = setup;
        let tokens = options.micro_batch * options.seq_len;
        let batches = |data| in_order(data, tokens);
        let validation = data.validation.as_ref().map(batches).unwrap_or_default();
        let probe = batches(&data.train).into_iter().find(|batch| batch.weight() > 0.0).into_iter().collect();
        let checkpoint = folder.checkpoints()?.pop().filter(|_| folder.resume);
        let train = Arc::new(data.train);
        let trainer = match &checkpoint {
            Some((_, path)) => Trainer::resume(&engine, train, options, path)?,
            None => Trainer::new(&engine, train, options, init.as_ref())?,
        };
        folder.create()?;
        let step = trainer.cursor().step;
        let log = args.log.clone().unwrap_or_else(|| folder.log());
        let mut history = if step > 0 && log.exists() { History::read(&log)? } else { History::default() };
        if step > 0 && history.training.is_empty() {
            output::note("warning: the log of the steps so far is gone, and with it what the best validation was");
        }
        history.truncate(step);
        let total = trainer.total_steps();
        let mut run = Self {
            args,
            folder,
            view: View::new(total, step),
            resumed_from: checkpoint.as_ref().map(|(step, _)| *step),
            peak_bytes: engine.gpu().allocated_bytes(),
            validation,
            evaluate_every: args.evaluate_every.unwrap_or((total / VALIDATIONS).max(1)),
            patience: data.patience,
            early: EarlyStop::new(data.patience.unwrap_or(0), 0.0),
            verdict: Verdict::Continue,
            log: StepLog::open(log)?,
            probe,
            saved: checkpoint.as_ref().map(|(step, _)| *step),
            history,
            trainer,
        };
        run.history.validation.iter().for_each(|(_, loss)| run.verdict = run.early.observe(*loss));
        match run.resumed_from {
            None => run.save()?,
            Some(step) => output::note(&format!("goes on after step {step} of {total}")),
        }
        Ok(run)
    }

    /// Trains to the end, and leaves the adapter in the folder.
    ///
    /// Errors: [`Error::Training`] when the loss is no number, and the last good adapter is in the folder; as
    /// [`Trainer::step`] and [`Trainer::save`], and the checkpoints so far are.
    pub(super) fn train(&mut self, cancel: &CancelToken) -> Result<End> {
        self.trainer.cancel = cancel.clone();
        let end = self.steps();
        self.view.end();
        match end {
            Ok(end) => {
                if self.saved != Some(self.trainer.cursor().step) {
                    self.save()?;
                }
                if !self.keeps_best() {
                    self.write_adapter()?;
                }
                Ok(end)
            }
            Err(Error::Training(reason)) => {
                let left = self.rescue()?;
                Err(Error::Training(format!("{reason}; {left}")))
            }
            Err(error) => Err(error),
        }
    }

    fn steps(&mut self) -> Result<End> {
        // A run may have been cut off after a step and before its validation, or after the last one it needed.
        let step = self.trainer.cursor().step;
        let last = self.history.training.last().copied().filter(|(last, _)| *last == step);
        if let Some((_, loss)) = last.filter(|_| self.is_due(step) && !self.is_validated(step)) {
            let record = StepRecord { step, loss, ..StepRecord::default() };
            match self.finish_step(record) {
                Err(Error::Cancelled) => return Ok(End::Interrupted),
                done => done?,
            }
        }
        loop {
            if self.verdict == Verdict::Stop {
                return Ok(End::EarlyStop);
            }
            let record = match self.trainer.step() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(End::Finished),
                Err(Error::Cancelled) => return Ok(End::Interrupted),
                Err(error) => return Err(error),
            };
            match self.finish_step(record) {
                Err(Error::Cancelled) => return Ok(End::Interrupted),
                done => done?,
            }
        }
    }

    /// Validates, logs, shows and saves, each where it is due.
    fn finish_step(&mut self, mut record: StepRecord) -> Result<()> {
        let step = record.step;
        let validated = self.validate(step);
        record.validation_loss = *validated.as_ref().unwrap_or(&None);
        self.history.push(&record);
        self.log.write(&record)?;
        self.peak_bytes = self.peak_bytes.max(self.trainer.engine().gpu().allocated_bytes());
        self.view.update(&record, &self.history);
        self.view.warn(warnings(&self.history));
        validated?;
        if step.is_multiple_of(self.args.checkpoint_every) {
            self.save()?;
        }
        Ok(())
    }

    /// The validation loss where it is due; the best adapter goes to the folder.
    fn validate(&mut self, step: u64) -> Result<Option<f64>> {
        if !self.is_due(step) {
            return Ok(None);
        }
        let loss = self.trainer.evaluate(&self.validation)?;
        self.verdict = self.early.observe(loss);
        if self.verdict == Verdict::Best && self.patience.is_some() {
            self.write_adapter()?;
        }
        Ok(Some(loss))
    }

    fn is_due(&self, step: u64) -> bool {
        let due = step.is_multiple_of(self.evaluate_every) || step == self.trainer.total_steps();
        due && step > 0 && !self.validation.is_empty()
    }

    fn is_validated(&self, step: u64) -> bool {
        self.history.validation.last().is_some_and(|(last, _)| *last == step)
    }

    /// The folder holds the best adapter, not the last.
    pub(super) fn keeps_best(&self) -> bool {
        self.patience.is_some() && self.early.best().is_some()
    }

    fn save(&mut self) -> Result<()> {
        self.folder.save(&self.trainer, self.args.keep)?;
        self.saved = Some(self.trainer.cursor().step);
        Ok(())
    }

    fn write_adapter(&self) -> Result<()> {
        self.folder.write_adapter(&self.trainer.adapter()?, &self.trainer.engine().base().adapter_shape())
    }

    /// Puts the last good adapter into the folder: the present one, else that of a checkpoint. Says which.
    fn rescue(&mut self) -> Result<String> {
        let out = self.folder.path().display();
        if self.keeps_best() {
            return Ok(format!("{out} holds the adapter of the best validation"));
        }
        let mut older = self.folder.checkpoints()?;
        while !self.trainer.evaluate(&self.probe).is_ok_and(f64::is_finite) {
            let Some((_, path)) = older.pop() else {
                return Ok("no checkpoint is good either, so no adapter was written".into());
            };
            // One that can't be restored leaves the adapter that is no good.
            let _ = self.trainer.restore(&path);
        }
        self.write_adapter()?;
        let step = self.trainer.cursor().step;
        Ok(format!("{out} holds the adapter of step {step}, the last good one; `--init` goes on from it"))
    }
}
