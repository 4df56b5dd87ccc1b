//! What the losses say: their history and its log, the signs of trouble, and when to stop.

mod log;
mod warnings;

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use log::StepLog;
pub use warnings::{Warning, too_few_steps, warnings};

use crate::error::{Error, Result};

/// One step of the optimiser.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// From 0.
    pub epoch: u64,
    /// Weighted mean over the step's tokens, in nats; null in a log when it was not finite.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// Time the step took.
    pub seconds: f64,
    /// Norm of the gradient before clipping.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Mean loss on the validation data after this step, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_loss: Option<f64>,
}

fn number_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The losses of a run, by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Step and training loss.
    pub training: Vec<(u64, f64)>,
    /// Step and validation loss.
    pub validation: Vec<(u64, f64)>,
}

impl History {
    /// Adds a step. What is there of the same step or later is forgotten: the run was resumed from
    /// before it.
    pub fn push(&mut self, record: &StepRecord) {
        for losses in [&mut self.training, &mut self.validation] {
            while losses.pop_if(|(step, _)| *step >= record.step).is_some() {}
        }
        self.training.push((record.step, record.loss));
        self.validation.extend(record.validation_loss.map(|loss| (record.step, loss)));
    }

    /// Forgets what came after `step`.
    pub fn truncate(&mut self, step: u64) {
        for losses in [&mut self.training, &mut self.validation] {
            losses.retain(|(of, _)| *of <= step);
        }
    }

    /// Reads what a [`StepLog`] wrote. A last line that was cut short is left out.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] naming the line.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut history = Self::default();
        log::read(path, &File::open(path).map_err(|e| Error::io(path, e))?)?
            .iter()
            .for_each(|(r, _)| history.push(r));
        Ok(history)
    }
}

/// What to do after a validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopDecision {
    /// The best so far: keep this adapter.
    Best,
    /// No better: go on.
    Continue,
    /// No better for too long: stop, and take the one that was kept.
    Stop,
}

/// Stops a run whose validation loss has not improved for `patience` validations (Prechelt 1998,
/// doi:10.1007/3-540-49430-8_3). Saved and resumed as it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// Validations without improvement after which to stop; 0 never stops.
    pub patience: u32,
    /// Improvement that counts, in nats.
    pub min_delta: f64,
    best: Option<f64>,
    waited: u32,
}

impl EarlyStop {
    /// Has seen nothing yet.
    pub fn new(patience: u32, min_delta: f64) -> Self {
        Self { patience, min_delta, best: None, waited: 0 }
    }

    /// The best validation loss.
    pub fn best(&self) -> Option<f64> {
        self.best
    }

    /// Takes the next validation loss; one that is not a number is no improvement.
    pub fn observe(&mut self, loss: f64) -> StopDecision {
        if loss.is_finite() && self.best.is_none_or(|best| loss < best - self.min_delta) {
            self.best = Some(loss);
            self.waited = 0;
            return StopDecision::Best;
        }
        self.waited = self.waited.saturating_add(1);
        if self.patience > 0 && self.waited >= self.patience {
            StopDecision::Stop
        } else {
            StopDecision::Continue
        }
    }
}
