//! Memory, added up before any of it is taken: an engine, and the buffers of a run beside it, both by
//! their own constructors in a [`Tally`]; [`fit`] looks for the setting that a budget allows. For a
//! model of which only the size is known there is the [`Textbook`] sum.

mod choose;
mod fit;

pub use choose::{Choice, TRAIN_CONTEXT, Wish, choose};
pub use fit::{Free, fit};

use serde::Serialize;

use super::buffers::{Buffers, TrainShape};
use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Buffer, Caps, Class, MemoryPlan, Tally};

/// Where a run is planned.
#[derive(Clone)]
pub struct Site<'a> {
    /// The model's sizes.
    pub config: &'a ModelConfig,
    /// What is there beside the run: [`crate::engine::plan::tally`].
    pub beside: Tally,
}

impl Site<'_> {
    /// What there is when a run of `shape` has begun.
    ///
    /// Errors: as [`TrainShape::check`].
    pub fn training(&self, shape: &TrainShape) -> Result<MemoryPlan> {
        shape.check(self.config)?;
        let tally = self.beside.clone();
        let state = Buffers::state(&tally, self.config, shape)?;
        let run = Buffers::around(&tally, self.config, shape, state)?;
        let plan = tally.plan();
        drop(run);
        Ok(plan)
    }
}

/// The sum by rule of thumb, for a model of which only the size is known.
///
/// Inference: weights, and a fifth of them for activations and KV cache. Training: weights, then
/// for each trained parameter a gradient and the optimiser's states, all of `bytes_per_param`;
/// activations are left out, since they depend on what is not known. With Adam at 16 bit 13 billion
/// parameters need 13e9 · (1 + 2) · 2 bytes = 78 GB for gradients and states: 6 bytes a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Textbook {
    /// Of the model.
    pub parameters: f64,
    /// Bytes of a number: 2 for 16 bit, 0.5 for 4 bit.
    pub bytes_per_param: f64,
    /// Trained parameters and states of the optimiser for each; `None` is inference.
    pub training: Option<(f64, usize)>,
}

impl Textbook {
    /// A fifth of the weights, for activations and KV cache.
    const OVERHEAD: f64 = 0.2;

    /// The sum in bytes.
    pub fn plan(&self) -> MemoryPlan {
        // No device: nothing is shared.
        let tally = Tally::new(&Caps { block_bytes: 0, ..Caps::PHONE });
        let add = |name: &str, class, numbers: f64| {
            let bytes = (numbers * self.bytes_per_param).round() as usize;
            tally.add(Buffer::of(class, name, &[bytes], 1));
        };
        add("weights", Class::Weights, self.parameters);
        match self.training {
            None => add("overhead", Class::Overhead, Self::OVERHEAD * self.parameters),
            Some((trained, states)) => {
                add("gradients", Class::Gradients, trained);
                add("optimizer states", Class::OptimizerStates, trained * states as f64);
            }
        }
        tally.plan()
    }
}
