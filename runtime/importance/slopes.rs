//! How much the loss depends on each matrix: the mean square of its weights' gradients (the
//! diagonal of the Fisher information), from the gradients of an adapter's B under random A, which
//! are those of the matrix in random directions of its inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::adapter::{Adapter, Factor};
use crate::base::ModulePath;
use crate::engine::Engine;
use crate::error::Result;
use crate::train::data::batch::in_order;
use crate::train::data::{Dataset, Example, TrainLength};
use crate::train::{TrainOptions, Trainer};

/// Tokens of a window that are looked at: gradients of a few tokens add up by chance alone, as
/// those of single ones would over many, and take less memory.
const TOKENS: usize = 128;
/// Random directions.
const RANK: usize = 16;

pub(super) struct Slopes {
    trainer: Trainer,
    directions: Adapter,
    tokens: usize,
    sequences: usize,
    sums: BTreeMap<ModulePath, f64>,
}

impl Slopes {
    /// For windows of so many tokens, 2 or more.
    pub(super) fn new(engine: &Arc<Engine>, window: usize) -> Result<Self> {
        let tokens = window.min(TOKENS);
        let options = TrainOptions {
            rank: RANK,
            lora_alpha: RANK as f64,
            freeze: Some(Factor::A),
            seq_len: tokens,
            batch_size: 1,
            duration: TrainLength::Steps(1),
            ..TrainOptions::default()
        };
        let trainer = Trainer::new(engine, Arc::new(example(&vec![0; tokens])), options, None)?;
        let directions = trainer.adapter()?;
        Ok(Self { trainer, directions, tokens, sequences: 0, sums: BTreeMap::new() })
    }

    pub(super) fn add(&mut self, window: &[u32]) -> Result<()> {
        let batches = in_order(&example(&window[..self.tokens]), self.tokens);
        let (_, gradients) = self.trainer.gradients(&batches)?;
        let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        for (of, along) in gradients.modules.iter().zip(&self.directions.modules) {
            // Of all directions, A has some; of all its weights, there is a mean.
            let (rows, columns) = (of.b.len() / of.rank, along.a.len() / along.rank);
            let in_all = square(&of.b) * columns as f64 / square(&along.a);
            *self.sums.entry(of.path).or_default() += in_all / (rows * columns) as f64;
        }
        self.sequences += 1;
        Ok(())
    }

    /// Of each linear of the layers, for the loss of a token. A sequence's loss is a mean over its
    /// tokens, whose gradients add up by chance.
    pub(super) fn means(&self) -> BTreeMap<ModulePath, f64> {
        let scale = (self.tokens - 1) as f64 / self.sequences.max(1) as f64;
        self.sums.iter().map(|(path, sum)| (*path, sum * scale)).collect()
    }
}

/// A text, of which every token but the first is to be said.
fn example(ids: &[u32]) -> Dataset {
    let weights = (0..ids.len()).map(|i| if i == 0 { 0.0 } else { 1.0 }).collect();
    Dataset::of([Example { ids: ids.to_vec(), weights }])
}
