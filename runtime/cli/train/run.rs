//! A run from its first step, or its last checkpoint, to its end.

use std::sync::Arc;

use serde::Serialize;

use super::args::{RunArgs, TrainArgs};
use super::folder::{Folder, State};
use super::given::Given;
use super::setup::{Data, Setup};
use super::view::View;
use crate::adapter::Adapter;
use crate::engine::CancelToken;
use crate::error::{Error, Result};
use crate::train::Trainer;
use crate::train::data::batch::in_order;
use crate::train::data::{Dataset, MicroBatch};
use crate::train::schedule::Decay;
use crate::train::signals::{
    EarlyStop, History, StepLog, StepRecord, StopDecision, too_few_steps, warnings,
};

/// Validations of a run, unless the user says how often.
const VALIDATIONS: u64 = 10;
/// Checkpoints that are kept of a run that is going on, unless the user says how many.
const CHECKPOINTS: u64 = 2;

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
    folder: Folder,
    pub(super) trainer: Trainer,
    pub(super) history: History,
    pub(super) view: View,
    /// The step that it goes on from.
    pub(super) resumed_from: Option<u64>,
    pub(super) peak_bytes: u64,
    validation: Vec<MicroBatch>,
    evaluate_every: u64,
    patience: Option<u32>,
    early: EarlyStop,
    verdict: StopDecision,
    log: StepLog,
    /// Any batch: an adapter is good if its loss on it is a number.
    probe: Vec<MicroBatch>,
    saved: Option<u64>,
    /// The step that the adapter in the folder is of, where that is known.
    written: Option<u64>,
}

impl<'a> Run<'a> {
    /// Begins, or goes on where the last checkpoint stands.
    ///
    /// Errors: as [`Trainer::new`], [`Trainer::resume`], [`Folder::create`], [`History::read`] and
    /// [`StepLog::open`].
    pub(super) fn start(
        args: &'a TrainArgs,
        mut folder: Folder,
        setup: Setup,
        data: Data,
    ) -> Result<Self> {
        let view = View::prepare();
        let options = &setup.options;
        let tokens = options.micro_batch * options.seq_len;
        let batches = |data| in_order(data, tokens);
        let validation = data.validation.as_ref().map(batches).unwrap_or_default();
        let probe = batches(&data.train)
            .into_iter()
            .find(|batch| batch.weight() > 0.0)
            .into_iter()
            .collect();
        let (given, patience) = (Given::of(args, &data), data.patience);
        let state = folder.newest()?;
        let trainer = trainer(&folder, setup, Arc::new(data.train), state.as_ref(), &given)?;
        folder.create()?;
        given.write(&folder.given())?;
        let (step, total) = (trainer.cursor().step, trainer.total_steps());
        let log = args.run.log.clone().unwrap_or_else(|| folder.log());
        let mut history =
            if step > 0 && log.is_file() { History::read(&log)? } else { History::default() };
        history.truncate(step);
        let is_end = state.as_ref().is_some_and(|state| state.is_end);
        let mut run = Self {
            args: &args.run,
            folder,
            view,
            resumed_from: state.as_ref().map(|_| step),
            peak_bytes: trainer.engine().gpu().allocated_bytes(),
            validation,
            evaluate_every: args.run.evaluate_every.unwrap_or((total / VALIDATIONS).max(1)),
            patience,
            early: EarlyStop::new(patience.unwrap_or(0), 0.0),
            verdict: StopDecision::Continue,
            log: StepLog::open(log, step)?,
            probe,
            saved: state.as_ref().map(|_| step),
            written: Some(step).filter(|_| is_end),
            history,
            trainer,
        };
        run.history.validation.iter().for_each(|(_, loss)| run.verdict = run.early.observe(*loss));
        match &state {
            None => run.save()?,
            Some(state) => run.say_how_it_goes_on(state),
        }
        if is_end && step < total && run.verdict != StopDecision::Stop {
            // The adapter will change, and is half of where the run ended.
            run.save()?;
        }
        if step < total {
            run.view.warn(too_few_steps(total).into_iter().collect());
        }
        Ok(run)
    }

    fn say_how_it_goes_on(&self, state: &State) {
        let (step, total, options) =
            (state.step(), self.trainer.total_steps(), self.trainer.options());
        if step > 0 && self.history.training.is_empty() {
            self.view.say(
                "warning: the log of the steps so far is gone, and with it what the \
                best validation was",
            );
        }
        if step == total {
            return self.view.say(&format!(
                "all {total} steps are done; more `--steps` or `--epochs` make the run longer"
            ));
        }
        let rate = match (options.decay, state.checkpoint.duration() == Some(options.duration)) {
            (_, true) => String::new(),
            (Decay::Constant, false) => "; the learning rate stays as it is".into(),
            (Decay::Linear | Decay::Cosine, false) => format!(
                ": its length is another, and the learning rate is from now on that of a run of \
                {total} steps, {:.2e} next",
                self.trainer.learning_rate()
            ),
        };
        self.view.say(&format!("goes on after step {step} of {total}{rate}"));
        if state.is_end {
            self.view.say(
                "no checkpoint was kept (`--keep`), so it goes on from the adapter, and the \
                optimiser's moments begin anew",
            );
        }
    }

    /// Trains to the end, and leaves the adapter in the folder.
    ///
    /// Errors: [`Error::Training`] when the loss is no number, and the last good adapter is in the
    /// folder; as [`Trainer::step`] and [`Trainer::save`], and the checkpoints so far are.
    pub(super) fn train(&mut self, cancel: &CancelToken) -> Result<End> {
        self.trainer.cancel = cancel.clone();
        self.view.begin(self.trainer.total_steps(), self.trainer.cursor().step);
        let end = self.steps();
        self.view.end();
        match end {
            Ok(end) => {
                self.leave(end)?;
                Ok(end)
            }
            Err(Error::Training(reason)) => {
                let left = self.rescue()?;
                Err(Error::Training(format!("{reason}; {left}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes what a run leaves: the adapter, once there was a step, and checkpoints while they are
    /// of use.
    fn leave(&mut self, end: End) -> Result<()> {
        let step = self.trainer.cursor().step;
        if self.saved != Some(step) {
            self.save()?;
        }
        if step > 0 && !self.keeps_best() && self.written != Some(step) {
            self.write_adapter()?;
        }
        match (end, self.args.keep) {
            (End::Interrupted, _) | (_, Some(_)) => Ok(()),
            (End::Finished | End::EarlyStop, None) => self.folder.end_run(&self.trainer),
        }
    }

    fn steps(&mut self) -> Result<End> {
        // A run may have been cut off after a step and before its validation, or after the last one
        // it needed.
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
            if self.verdict == StopDecision::Stop {
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
        if self.verdict == StopDecision::Best && self.patience.is_some() {
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
        self.folder.save(&self.trainer, self.args.keep.unwrap_or(CHECKPOINTS))?;
        self.saved = Some(self.trainer.cursor().step);
        Ok(())
    }

    fn write_adapter(&self) -> Result<()> {
        self.folder
            .write_adapter(&self.trainer.adapter()?, &self.trainer.engine().base().adapter_shape())
    }

    /// Puts the last good adapter into the folder: the present one, else that of a checkpoint. Says
    /// which.
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
        if self.trainer.cursor().step == 0 {
            return Ok("no step was good, so no adapter was written".into());
        }
        self.write_adapter()?;
        let step = self.trainer.cursor().step;
        Ok(format!(
            "{out} holds the adapter of step {step}, the last good one; `--init` goes on from it"
        ))
    }
}

/// A trainer at `state`, or at the beginning.
///
/// Errors: as [`Trainer::new`], [`Trainer::resume`] and [`Trainer::extend`]; for other examples,
/// what makes them others.
fn trainer(
    folder: &Folder,
    setup: Setup,
    train: Arc<Dataset>,
    state: Option<&State>,
    given: &Given,
) -> Result<Trainer> {
    let Setup { engine, options, init, .. } = setup;
    let Some(state) = state else { return Trainer::new(&engine, train, options, init.as_ref()) };
    let differences =
        Given::read(&folder.given())?.map(|then| then.differences(given)).unwrap_or_default();
    if !differences.is_empty() && !state.checkpoint.is_of_data(&train.fingerprint()) {
        let differences = differences.join("; ");
        let reason = format!(
            "it was made with other examples: {differences}; resume with the same, or start anew"
        );
        return Err(Error::InvalidFile { path: state.path.clone(), reason });
    }
    if state.is_end {
        let adapter = Adapter::load(folder.path(), &engine.base().adapter_shape())?;
        return Trainer::extend(&engine, train, options, &state.path, &adapter);
    }
    Trainer::resume(&engine, train, options, &state.path)
}
