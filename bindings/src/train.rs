//! Training on the device: examples in, an adapter in a folder out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use epiphyte::train::run::{End, Losses as RunLosses, Outcome, TrainPhase as Phase};
use epiphyte::train::signals::Warning;
use epiphyte::train::{RunFolder, TrainControl, TrainRun};

use crate::EpiphyteError;
use crate::error::{bytes, number, path as given};
use crate::held::{Dependent, Lease};
use crate::train_options::TrainOptions;
use crate::worker::{self, lock};

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TrainPhase {
    /// A step is begun: the first one, or the first after a pause.
    Training,
    /// A step is done.
    Step,
    /// The validation data is measured.
    Validating,
    /// A checkpoint or the adapter is written.
    Saving,
    /// It waits.
    Paused,
}

/// A sign of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TrainWarning {
    /// The run has fewer than 16 steps in all: give it more epochs or steps.
    TooFewSteps,
    /// The loss is no finite number: lower the learning rate.
    NotFinite,
    /// The loss jumps without falling: lower the learning rate, or raise the batch.
    Oscillating,
    /// The validation loss rises while the training loss falls: stop here, or use more data.
    OverFitting,
    /// The loss has hardly moved: raise the learning rate.
    Flat,
}

impl TrainWarning {
    fn of(warning: Warning) -> Option<Self> {
        Some(match warning {
            Warning::TooFewSteps => Self::TooFewSteps,
            Warning::NotFinite => Self::NotFinite,
            Warning::Oscillating => Self::Oscillating,
            Warning::OverFitting => Self::OverFitting,
            Warning::Flat => Self::Flat,
            _ => return None,
        })
    }

    fn all(warnings: &[Warning]) -> Vec<Self> {
        warnings.iter().copied().filter_map(Self::of).collect()
    }
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct TrainProgress {
    /// What it does now.
    pub phase: TrainPhase,
    /// Steps done, those before it went on included.
    pub step: i64,
    /// Steps in all.
    pub steps: i64,
    /// Of the latest step, in nats a token.
    pub loss: Option<f64>,
    /// The latest on the validation data, in nats a token.
    pub validation_loss: Option<f64>,
    /// Of the latest step, or the next one where none is done yet.
    pub learning_rate: f64,
    /// Of the steps of this call; none before the first.
    pub tokens_per_second: Option<f64>,
    /// By the steps of this call after its first.
    pub seconds_left: Option<f64>,
    /// Signs of trouble that were not seen before.
    pub warnings: Vec<TrainWarning>,
}

impl From<&epiphyte::train::run::TrainProgress<'_>> for TrainProgress {
    fn from(progress: &epiphyte::train::run::TrainProgress<'_>) -> Self {
        let phase = match progress.phase {
            Phase::Step => TrainPhase::Step,
            Phase::Validating => TrainPhase::Validating,
            Phase::Saving => TrainPhase::Saving,
            Phase::Paused => TrainPhase::Paused,
            _ => TrainPhase::Training,
        };
        Self {
            phase,
            step: bytes(progress.step),
            steps: bytes(progress.steps),
            loss: progress.loss,
            validation_loss: progress.validation_loss,
            learning_rate: progress.learning_rate,
            tokens_per_second: progress.tokens_per_second,
            seconds_left: progress.seconds_left,
            warnings: TrainWarning::all(&progress.warnings),
        }
    }
}

/// Hears of a run, on a thread of the library's.
#[uniffi::export(with_foreign)]
pub trait TrainListener: Send + Sync {
    /// Something more is done. What it throws stops the run, and `run` throws it.
    fn on_progress(&self, progress: TrainProgress) -> Result<(), EpiphyteError>;
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TrainEnd {
    /// All steps are done.
    Finished,
    /// The validation loss improved no more.
    EarlyStop,
    /// It was asked to stop, and can go on.
    Interrupted,
}

/// Some losses of many, in nats a token.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct Losses {
    /// The first.
    pub first: Option<f64>,
    /// The last.
    pub last: Option<f64>,
    /// The lowest.
    pub best: Option<f64>,
    /// The step of the lowest.
    pub best_step: Option<i64>,
}

impl From<RunLosses> for Losses {
    fn from(losses: RunLosses) -> Self {
        let RunLosses { first, last, best, best_step, .. } = losses;
        Self { first, last, best, best_step: best_step.map(bytes) }
    }
}

/// What became of the data.
#[derive(Clone, Debug, Default, PartialEq, Eq, uniffi::Record)]
pub struct DataReport {
    /// Records read.
    pub records: i32,
    /// Examples made of them.
    pub examples: i32,
    /// Tokens of those.
    pub tokens: i64,
    /// Tokens that are learnt.
    pub trained_tokens: i64,
    /// Examples that were cut at their end to fit.
    pub cut: i32,
    /// Examples left out since no token of an answer was left.
    pub dropped: i32,
    /// Lines that could not be used.
    pub skipped: i32,
    /// The first of them, and why.
    pub first_skipped: Option<String>,
}

impl From<&epiphyte::train::data::DataReport> for DataReport {
    fn from(report: &epiphyte::train::data::DataReport) -> Self {
        Self {
            records: number(report.records),
            examples: number(report.examples),
            tokens: bytes(report.tokens as u64),
            trained_tokens: bytes(report.trained_tokens as u64),
            cut: number(report.cut),
            dropped: number(report.dropped),
            skipped: number(report.skipped),
            first_skipped: report.first_skipped.clone(),
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct TrainOutcome {
    /// The folder, which holds the adapter once there was a step.
    pub folder: String,
    /// Why it ended.
    pub end: TrainEnd,
    /// Done so far, in this run and those it goes on from.
    pub steps: i64,
    /// Steps in all.
    pub total_steps: i64,
    /// The step that it went on from.
    pub resumed_from: Option<i64>,
    /// Parameters of the adapter.
    pub trainable_parameters: i64,
    /// Of training.
    pub loss: Losses,
    /// Of the data kept for validation.
    pub validation_loss: Losses,
    /// The adapter in the folder is that of the best validation.
    pub best_is_kept: bool,
    /// Of this call's steps.
    pub tokens_per_second: Option<f64>,
    /// The most bytes that the device held for engine and run.
    pub peak_device_bytes: i64,
    /// What became of the data.
    pub data: DataReport,
    /// Every sign of trouble that was seen.
    pub warnings: Vec<TrainWarning>,
}

impl TrainOutcome {
    fn new(outcome: Outcome, data: &epiphyte::train::data::DataReport) -> Self {
        Self {
            folder: outcome.out.display().to_string(),
            end: match outcome.end {
                End::Finished => TrainEnd::Finished,
                End::EarlyStop => TrainEnd::EarlyStop,
                _ => TrainEnd::Interrupted,
            },
            steps: bytes(outcome.steps),
            total_steps: bytes(outcome.total_steps),
            resumed_from: outcome.resumed_from.map(bytes),
            trainable_parameters: bytes(outcome.trainable_parameters as u64),
            loss: outcome.loss.into(),
            validation_loss: outcome.validation_loss.into(),
            best_is_kept: outcome.best_is_kept,
            tokens_per_second: outcome.tokens_per_second,
            peak_device_bytes: bytes(outcome.peak_device_bytes),
            data: data.into(),
            warnings: TrainWarning::all(&outcome.warnings),
        }
    }
}

/// A training run in a folder. What was begun there and not finished goes on.
#[derive(uniffi::Object)]
pub struct Trainer {
    lease: Weak<Lease>,
    options: TrainOptions,
    run: Arc<Control>,
}

/// How a run is paused and stopped; a stop counts for the run that is going on, or the next one.
#[derive(Default)]
struct Control {
    control: Mutex<TrainControl>,
    running: AtomicBool,
    /// Of the last run's data; 0 before one.
    examples: AtomicU64,
}

impl Dependent for Control {
    fn close(&self) {
        self.now().stop();
    }
}

impl Control {
    fn now(&self) -> TrainControl {
        lock(&self.control).clone()
    }
}

/// Ends with the run.
struct Running(Arc<Control>);

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&self.0.control) = TrainControl::default();
        self.0.running.store(false, Ordering::SeqCst);
    }
}

/// Stops a run whose caller no longer waits.
struct StopOnDrop(TrainControl);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Trainer {
    pub(crate) fn new(lease: &Arc<Lease>, options: TrainOptions) -> Arc<Self> {
        let run = Arc::<Control>::default();
        let weak = Arc::downgrade(&run);
        lease.adopt(weak);
        Arc::new(Self { lease: Arc::downgrade(lease), options, run })
    }

    /// Errors: [`EpiphyteError::Closed`].
    pub(crate) fn lease(&self) -> Result<Arc<Lease>, EpiphyteError> {
        let open = self.lease.upgrade().filter(|lease| !lease.is_closed());
        open.ok_or_else(|| EpiphyteError::closed("engine"))
    }

    /// Where the adapter is.
    pub(crate) fn folder(&self) -> String {
        self.options.folder.clone()
    }

    /// That the last run learnt from.
    pub(crate) fn examples(&self) -> Option<u64> {
        Some(self.run.examples.load(Ordering::SeqCst)).filter(|&examples| examples > 0)
    }
}

#[uniffi::export]
impl Trainer {
    /// Trains to the end, or until it is stopped, and leaves the adapter in the folder. What was
    /// begun there goes on after its last checkpoint. A run whose caller is cancelled stops, with a
    /// checkpoint.
    pub async fn run(
        &self,
        listener: Option<Arc<dyn TrainListener>>,
    ) -> Result<TrainOutcome, EpiphyteError> {
        let lease = self.lease()?;
        if self.run.running.swap(true, Ordering::SeqCst) {
            let hint = "wait for it, or stop it first";
            return Err(EpiphyteError::busy("trainer", "a run", hint));
        }
        let running = Running(Arc::clone(&self.run));
        let _stop = StopOnDrop(self.run.now());
        let options = self.options.clone();
        worker::run("train", move || train(&lease, options, &running, listener.as_deref())).await
    }

    /// Lets the run wait once the present step is done; the device is free for others, the run's
    /// memory stays taken.
    pub fn pause(&self) {
        self.run.now().pause();
    }

    /// Lets a run that waits go on.
    pub fn resume(&self) {
        self.run.now().resume();
    }

    /// Ends the run soon, with a checkpoint; before one, it ends the next at its beginning.
    pub fn stop(&self) {
        self.run.now().stop();
    }

    /// A run is going on, also one that waits.
    pub fn is_running(&self) -> bool {
        self.run.running.load(Ordering::SeqCst)
    }

    /// `pause` was asked for last.
    pub fn is_paused(&self) -> bool {
        self.run.now().is_paused()
    }
}

/// Errors: as [`RunFolder::open`], [`TrainRun::open`] and [`TrainRun::run`]; what the listener
/// threw; [`EpiphyteError::Closed`] when the engine was meanwhile.
fn train(
    lease: &Lease,
    options: TrainOptions,
    running: &Running,
    listener: Option<&dyn TrainListener>,
) -> Result<TrainOutcome, EpiphyteError> {
    let folder = RunFolder::open(given("folder", options.folder.clone())?)?;
    let mut run = TrainRun::open(lease, folder, options.run_options(lease)?)?;
    running.0.examples.store(run.data().examples as u64, Ordering::SeqCst);
    let control = running.0.now();
    let mut thrown = None;
    let outcome = run.run(&control, &mut |progress| {
        if let (Some(listener), None) = (listener, &thrown) {
            thrown = listener.on_progress(progress.into()).err();
            if thrown.is_some() {
                control.stop();
            }
        }
    })?;
    if lease.is_closed() {
        return Err(EpiphyteError::closed("engine"));
    }
    let outcome = TrainOutcome::new(outcome, run.data());
    thrown.map_or(Ok(outcome), Err)
}
