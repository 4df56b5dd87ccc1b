//! What a run says of itself: while it goes on, and at its end.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::train::signals::{History, StepRecord, Warning};

/// What a run is doing.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainPhase {
    /// A step is begun: the first one, or the first after a pause.
    Training,
    /// A step is done, validated where that is due.
    Step,
    /// The validation data is measured.
    Validating,
    /// A checkpoint or the adapter is written.
    Saving,
    /// It waits; see [`super::TrainControl::pause`].
    Paused,
}

/// Where a run stands.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct TrainProgress<'a> {
    /// What it does now.
    pub phase: TrainPhase,
    /// Steps done, in this call and those it goes on from.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Of the latest step, in nats a token.
    pub loss: Option<f64>,
    /// The latest on the validation data, in nats a token.
    pub validation_loss: Option<f64>,
    /// Of the latest step, or the next one where none is done yet.
    pub learning_rate: f64,
    /// Of the steps of this call; none before the first.
    pub tokens_per_second: Option<f64>,
    /// By the steps of this call after its first, which is not like the others.
    pub seconds_left: Option<f64>,
    /// Signs of trouble that were not seen before.
    pub warnings: Vec<Warning>,
    /// All losses so far.
    pub history: &'a History,
}

/// Why a run ended.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All steps are done.
    Finished,
    /// The validation loss improved no more.
    EarlyStop,
    /// It was asked to stop, and can go on.
    Interrupted,
}

/// What became of a run.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The folder, which holds the adapter once there was a step.
    pub out: PathBuf,
    /// Why it ended.
    pub end: End,
    /// Done so far, in this run and those it goes on from.
    pub steps: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// The step that it went on from.
    pub resumed_from: Option<u64>,
    /// Parameters of the adapter.
    pub trainable_parameters: usize,
    /// Of training, in nats a token.
    pub loss: Losses,
    /// The same of the data kept for it; empty where it was never measured.
    pub validation_loss: Losses,
    /// The adapter in the folder is that of the best validation.
    pub best_is_kept: bool,
    /// Of this call.
    pub tokens: usize,
    /// Of this call's steps.
    pub tokens_per_second: Option<f64>,
    /// The most bytes that the device held for engine and run.
    pub peak_device_bytes: u64,
    /// Every sign of trouble that was seen.
    pub warnings: Vec<Warning>,
}

/// Some losses of many, in nats a token.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Losses {
    /// The first.
    pub first: Option<f64>,
    /// The last.
    pub last: Option<f64>,
    /// The lowest.
    pub best: Option<f64>,
    /// The step of the lowest.
    pub best_step: Option<u64>,
}

impl Losses {
    /// By step and loss.
    pub(super) fn of(losses: &[(u64, f64)]) -> Self {
        let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        Self {
            first: losses.first().map(|(_, loss)| *loss),
            last: losses.last().map(|(_, loss)| *loss),
            best: best.map(|(_, loss)| *loss),
            best_step: best.map(|(step, _)| *step),
        }
    }
}

/// What is worth knowing of how a run starts; displays as a line for people.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum RunNote {
    /// The file system knows no locks, so nothing keeps another run out of the folder.
    Unlocked {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A checkpoint can't be read, and the one before was tried.
    Damaged {
        /// The file, and what is wrong with it.
        reason: String,
    },
    /// The log of the steps so far is gone, and with it what the best validation was.
    LogLost,
    /// There is nothing left to do.
    AllDone {
        /// Steps in all.
        steps: u64,
    },
    /// It goes on.
    GoesOn {
        /// Steps that are done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// How its rate goes on, where its length is another than before.
        rate: Option<NewRate>,
    },
    /// No checkpoint was kept: it goes on from the adapter, with new moments.
    MomentsAnew,
}

/// The learning rate of a run that was made longer or shorter.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NewRate {
    /// It does not depend on the length.
    Same,
    /// From now on that of a run of the new length.
    Next(f64),
}

impl RunNote {
    /// Something is not as it should be.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Unlocked { .. } | Self::Damaged { .. } | Self::LogLost)
    }
}

impl fmt::Display for RunNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlocked { path, reason } => {
                write!(f, "{}: {reason}; see to it that no other run writes there", path.display())
            }
            Self::Damaged { reason } => write!(f, "{reason}; the one before is tried"),
            Self::LogLost => f.write_str(
                "the log of the steps so far is gone, and with it what the best validation was",
            ),
            Self::AllDone { steps } => write!(
                f,
                "all {steps} steps are done; more `--steps` or `--epochs` make the run longer"
            ),
            Self::GoesOn { step, steps, rate } => {
                write!(f, "goes on after step {step} of {steps}")?;
                match rate {
                    None => Ok(()),
                    Some(NewRate::Same) => f.write_str("; the learning rate stays as it is"),
                    Some(NewRate::Next(rate)) => write!(
                        f,
                        ": its length is another, and the learning rate is from now on that of a \
                        run of {steps} steps, {rate:.2e} next"
                    ),
                }
            }
            Self::MomentsAnew => f.write_str(
                "no checkpoint was kept (`--keep`), so it goes on from the adapter, and the \
                optimiser's moments begin anew",
            ),
        }
    }
}

/// Tokens and time of the steps of a call.
#[derive(Debug, Default)]
pub(super) struct Meter {
    steps: u64,
    first_seconds: f64,
    seconds: f64,
    pub(super) tokens: usize,
}

impl Meter {
    pub(super) fn add(&mut self, record: &StepRecord) {
        self.steps += 1;
        self.tokens += record.tokens;
        self.seconds += record.seconds;
        if self.steps == 1 {
            self.first_seconds = record.seconds;
        }
    }

    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens as f64 / self.seconds)
    }

    /// Of `steps` more.
    pub(super) fn seconds_left(&self, steps: u64) -> Option<f64> {
        let others = self.steps.saturating_sub(1);
        let each = (self.seconds - self.first_seconds) / others as f64;
        (others > 0 && steps > 0).then(|| (each * steps as f64).clamp(0.0, 1e9))
    }
}
