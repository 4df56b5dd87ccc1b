//! A training run in a folder: from its first step, or its last checkpoint, to its adapter.
//!
//! [`RunFolder`] claims the folder, [`RunOptions`] say what to learn from, [`TrainRun::open`] gets
//! everything ready, and [`TrainRun::run`] trains, on the thread that calls it, until the end or
//! until its [`TrainControl`] is told to stop from another.

mod control;
mod folder;
mod given;
mod lock;
mod options;
mod pace;
mod progress;

use std::sync::Arc;
use std::time::Instant;

pub use control::TrainControl;
pub use folder::RunFolder;
pub use options::{RunOptions, ValidationData};
pub use progress::{End, Losses, NewRate, Outcome, RunNote, TrainPhase, TrainProgress};

use super::Trainer;
use super::data::batch::in_order;
use super::data::{DataReport, Dataset, MicroBatch};
use super::schedule::Decay;
use super::signals::{
    EarlyStop, History, StepLog, StepRecord, StopDecision, Warning, too_few_steps, warnings,
};
use crate::adapter::Adapter;
use crate::engine::Engine;
use crate::error::{Error, Result};
use folder::State;
use given::Given;
use options::Data;
use progress::Meter;

/// Validations of a run, unless it is said how often.
const VALIDATIONS: u64 = 10;
/// Checkpoints that are kept of a run that is going on, unless it is said how many.
const CHECKPOINTS: u64 = 2;

/// A run that is ready to train.
pub struct TrainRun {
    folder: RunFolder,
    trainer: Trainer,
    history: History,
    notes: Vec<RunNote>,
    data: DataReport,
    validation_data: Option<DataReport>,
    /// The step that it goes on from.
    resumed_from: Option<u64>,
    validation: Vec<MicroBatch>,
    evaluate_every: u64,
    checkpoint_every: u64,
    keep: Option<u64>,
    patience: Option<u32>,
    early: EarlyStop,
    verdict: StopDecision,
    log: StepLog,
    /// Any batch: an adapter is good if its loss on it is a number.
    probe: Vec<MicroBatch>,
    saved: Option<u64>,
    /// The step that the adapter in the folder is of, where that is known.
    written: Option<u64>,
    warned: Vec<Warning>,
    meter: Meter,
    peak_bytes: u64,
    control: TrainControl,
}

/// Who hears of a run.
type Listener<'a> = &'a mut dyn FnMut(&TrainProgress<'_>);

impl TrainRun {
    /// Reads the data and begins in the folder, or goes on where its last checkpoint stands.
    /// Kernels are compiled, which takes seconds the first time.
    ///
    /// Errors: as [`RunOptions::check`] and [`Trainer::new`]; [`Error::BaseMismatch`] for an
    /// `init` of another base; [`Error::InvalidFile`] for data that can't be read, a log that is
    /// none, or a run that goes on with other data or settings.
    pub fn open(
        engine: &Arc<Engine>,
        mut folder: RunFolder,
        mut options: RunOptions,
    ) -> Result<Self> {
        folder.fill(&mut options)?;
        let base = engine.base();
        options.check(base.config.max_position_embeddings)?;
        options.init.as_ref().map_or(Ok(()), |init| init.check_base(&base.fingerprint))?;
        let data = Data::read(&options, base)?;
        let given = Given::of(&options, &data);
        let trained = options.trained();
        let tokens = trained.micro_batch * trained.seq_len;
        let batches = |data: &Dataset| in_order(data, tokens);
        let validation = data.validation.as_ref().map(batches).unwrap_or_default();
        let probe = batches(&data.train).into_iter().find(|batch| batch.weight() > 0.0);
        let mut notes = Vec::new();
        let state = folder.newest(&mut notes)?;
        let start = Start { engine, init: options.init.as_ref(), state: state.as_ref() };
        let trainer = start.trainer(&folder, Arc::new(data.train), trained, &given)?;
        folder.make()?;
        notes.extend(folder.lock_note());
        given.write(&folder.given_path())?;
        let (step, total) = (trainer.cursor().step, trainer.total_steps());
        let log = options.log.unwrap_or_else(|| folder.log());
        let mut history =
            if step > 0 && log.is_file() { History::read(&log)? } else { History::default() };
        history.truncate(step);
        let is_end = state.as_ref().is_some_and(|state| state.is_end);
        let mut run = Self {
            folder,
            notes,
            data: data.report,
            validation_data: data.validation.map(|data| data.report),
            resumed_from: state.as_ref().map(|_| step),
            peak_bytes: trainer.engine().gpu().allocated_bytes(),
            validation,
            evaluate_every: options.evaluate_every.unwrap_or((total / VALIDATIONS).max(1)),
            checkpoint_every: options.checkpoint_every,
            keep: options.keep,
            patience: data.patience,
            early: EarlyStop::new(data.patience.unwrap_or(0), 0.0),
            verdict: StopDecision::Continue,
            log: StepLog::open(log, step)?,
            probe: probe.into_iter().collect(),
            saved: state.as_ref().map(|_| step),
            written: Some(step).filter(|_| is_end),
            warned: Vec::new(),
            meter: Meter::default(),
            control: TrainControl::default(),
            history,
            trainer,
        };
        run.judge();
        match &state {
            None => run.save()?,
            Some(state) => run.note_how_it_goes_on(state),
        }
        if is_end && step < total && run.verdict != StopDecision::Stop {
            // The adapter will change, and is half of where the run ended.
            run.save()?;
        }
        Ok(run)
    }

    fn note_how_it_goes_on(&mut self, state: &State) {
        let (step, steps) = (state.step(), self.trainer.total_steps());
        let options = self.trainer.options();
        if step > 0 && self.history.training.is_empty() {
            self.notes.push(RunNote::LogLost);
        }
        if step == steps {
            return self.notes.push(RunNote::AllDone { steps });
        }
        let rate = match (options.decay, state.checkpoint.duration() == Some(options.duration)) {
            (_, true) => None,
            (Decay::Constant, false) => Some(NewRate::Same),
            (Decay::Linear | Decay::Cosine, false) => {
                Some(NewRate::Next(self.trainer.learning_rate()))
            }
        };
        self.notes.push(RunNote::GoesOn { step, steps, rate });
        self.notes.extend(state.is_end.then_some(RunNote::MomentsAnew));
    }

    /// What is worth knowing of how it starts.
    pub fn notes(&self) -> &[RunNote] {
        &self.notes
    }

    /// What became of the data, that kept for validation included.
    pub fn data(&self) -> &DataReport {
        &self.data
    }

    /// What became of the data to validate on; `None` where there is none.
    pub fn validation_data(&self) -> Option<&DataReport> {
        self.validation_data.as_ref()
    }

    /// What trains: its settings, where it stands, the factors as they are now.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The losses so far, those before it went on included.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Trains to the end and leaves the adapter in the folder. `listener` hears of it on this
    /// thread; `control` pauses and stops it from another. A run that was stopped can be called
    /// again, or opened again later.
    ///
    /// In the background, and where the device is too hot, it waits ([`crate::engine::lifecycle`]);
    /// stopped there, it leaves the checkpoints that it has. Where the device was lost and another
    /// one opened, it goes on from its last checkpoint.
    ///
    /// Errors: [`Error::Training`] when the loss is no number, and the last good adapter is in the
    /// folder; as [`Trainer::step`] and [`Trainer::save`], and the checkpoints so far are.
    pub fn run(&mut self, control: &TrainControl, listener: Listener<'_>) -> Result<Outcome> {
        self.trainer.cancel = control.cancel().clone();
        self.control = control.clone();
        let (step, total) = (self.trainer.cursor().step, self.trainer.total_steps());
        let new = if step < total { self.unseen(too_few_steps(total)) } else { Vec::new() };
        listener(&self.progress(TrainPhase::Training, new));
        match self.steps(listener) {
            Ok(end) => {
                listener(&self.progress(TrainPhase::Saving, Vec::new()));
                match self.awake(|run| run.leave(end)) {
                    Err(Error::Cancelled) => Ok(self.outcome(End::Interrupted)),
                    left => left.map(|()| self.outcome(end)),
                }
            }
            Err(Error::Training(reason)) => {
                let left = self.rescue()?;
                Err(Error::Training(format!("{reason}; {left}")))
            }
            Err(error) => Err(error),
        }
    }

    fn progress(&self, phase: TrainPhase, warnings: Vec<Warning>) -> TrainProgress<'_> {
        let (step, steps) = (self.trainer.cursor().step, self.trainer.total_steps());
        let last = |losses: &[(u64, f64)]| losses.last().map(|(_, loss)| *loss);
        let rate_of = if phase == TrainPhase::Step { step.saturating_sub(1) } else { step };
        TrainProgress {
            phase,
            step,
            steps,
            loss: last(&self.history.training),
            validation_loss: last(&self.history.validation),
            learning_rate: self.trainer.learning_rate_at(rate_of),
            tokens_per_second: self.meter.tokens_per_second(),
            seconds_left: self.meter.seconds_left(steps.saturating_sub(step)),
            warnings,
            history: &self.history,
        }
    }

    /// Those of `warnings` that were not seen before; they are now.
    fn unseen(&mut self, warnings: impl IntoIterator<Item = Warning>) -> Vec<Warning> {
        let mut new: Vec<Warning> = warnings.into_iter().collect();
        new.retain(|warning| !self.warned.contains(warning));
        self.warned.extend(&new);
        new
    }

    fn outcome(&self, end: End) -> Outcome {
        Outcome {
            out: self.folder.path().into(),
            end,
            steps: self.trainer.cursor().step,
            total_steps: self.trainer.total_steps(),
            resumed_from: self.resumed_from,
            trainable_parameters: self.trainer.parameters(),
            loss: Losses::of(&self.history.training),
            validation_loss: Losses::of(&self.history.validation),
            best_is_kept: self.keeps_best(),
            tokens: self.meter.tokens,
            tokens_per_second: self.meter.tokens_per_second(),
            peak_device_bytes: self.peak_bytes,
            warnings: self.warned.clone(),
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
            self.written = Some(step);
        }
        match (end, self.keep) {
            (End::Interrupted, _) | (_, Some(_)) => Ok(()),
            (End::Finished | End::EarlyStop, None) => self.folder.end_run(&self.trainer),
        }
    }

    fn steps(&mut self, listener: Listener<'_>) -> Result<End> {
        let mut ended = self.catch_up(listener);
        loop {
            match ended {
                Err(Error::Background) if self.control.is_stopped() => return Ok(End::Interrupted),
                Ok(None) | Err(Error::Background) => {}
                Ok(Some(end)) => return Ok(end),
                Err(Error::Cancelled) => return Ok(End::Interrupted),
                Err(Error::DeviceLost(why)) => self.go_back(why)?,
                Err(error) => return Err(error),
            }
            ended = self.next(listener);
        }
    }

    /// Validates the last step, if the run was cut off after it and before its validation, or after
    /// the last one it needed.
    fn catch_up(&mut self, listener: Listener<'_>) -> Result<Option<End>> {
        let step = self.trainer.cursor().step;
        let last = self.history.training.last().copied().filter(|(last, _)| *last == step);
        if let Some((_, loss)) = last.filter(|_| self.is_due(step) && !self.is_validated(step)) {
            self.finish_step(StepRecord { step, loss, ..StepRecord::default() }, listener)?;
        }
        Ok(None)
    }

    /// Takes a step, once it may; gives how the run ended.
    fn next(&mut self, listener: Listener<'_>) -> Result<Option<End>> {
        if self.verdict == StopDecision::Stop {
            return Ok(Some(End::EarlyStop));
        }
        self.wait(listener);
        let began = Instant::now();
        let Some(record) = self.trainer.step()? else { return Ok(Some(End::Finished)) };
        let took = began.elapsed();
        self.finish_step(record, listener)?;
        self.rest(took);
        Ok(None)
    }

    /// Validates, logs, shows and saves, each where it is due.
    fn finish_step(&mut self, mut record: StepRecord, listener: Listener<'_>) -> Result<()> {
        let step = record.step;
        let validated = self.validate(step, listener);
        record.validation_loss = *validated.as_ref().unwrap_or(&None);
        self.history.push(&record);
        self.log.write(&record)?;
        self.meter.add(&record);
        self.peak_bytes = self.peak_bytes.max(self.trainer.engine().gpu().allocated_bytes());
        let new = self.unseen(warnings(&self.history));
        listener(&self.progress(TrainPhase::Step, new));
        validated?;
        if step.is_multiple_of(self.checkpoint_every) {
            listener(&self.progress(TrainPhase::Saving, Vec::new()));
            self.awake(Self::save)?;
        }
        Ok(())
    }

    /// The validation loss where it is due; the best adapter goes to the folder.
    fn validate(&mut self, step: u64, listener: Listener<'_>) -> Result<Option<f64>> {
        if !self.is_due(step) {
            return Ok(None);
        }
        listener(&self.progress(TrainPhase::Validating, Vec::new()));
        let loss = self.awake(|run| run.trainer.evaluate(&run.validation))?;
        self.verdict = self.early.observe(loss);
        if self.verdict == StopDecision::Best && self.patience.is_some() {
            self.awake(|run| run.write_adapter())?;
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
    fn keeps_best(&self) -> bool {
        self.patience.is_some() && self.early.best().is_some()
    }

    fn save(&mut self) -> Result<()> {
        self.folder.save(&self.trainer, self.keep.unwrap_or(CHECKPOINTS))?;
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

/// Where a run starts.
struct Start<'a> {
    engine: &'a Arc<Engine>,
    init: Option<&'a Adapter>,
    state: Option<&'a State>,
}

impl Start<'_> {
    /// A trainer at its state, or at the beginning.
    ///
    /// Errors: as [`Trainer::new`], [`Trainer::resume`] and [`Trainer::extend`]; for other
    /// examples, what makes them others.
    fn trainer(
        &self,
        folder: &RunFolder,
        train: Arc<Dataset>,
        options: super::TrainOptions,
        given: &Given,
    ) -> Result<Trainer> {
        let engine = self.engine;
        let Some(state) = self.state else {
            return Trainer::new(engine, train, options, self.init);
        };
        let then = Given::read(&folder.given_path())?;
        let differences = then.map(|then| then.differences(given)).unwrap_or_default();
        if !differences.is_empty() && !state.checkpoint.is_of_data(&train.fingerprint()) {
            let differences = differences.join("; ");
            let reason = format!(
                "it was made with other examples: {differences}; resume with the same, or start \
                anew"
            );
            return Err(Error::InvalidFile { path: state.path.clone(), reason });
        }
        if state.is_end {
            let adapter = Adapter::load(folder.path(), &engine.base().adapter_shape())?;
            return Trainer::extend(engine, train, options, &state.path, &adapter);
        }
        Trainer::resume(engine, train, options, &state.path)
    }
}
