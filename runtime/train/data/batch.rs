//! Examples into packed batches, in an order that depends on nothing but the seed and the epoch.
//!
//! A row is `seq_len` tokens. Whole examples are packed into rows first-fit, in the epoch's order, among the rows opened
//! last; each starts again at position 0 and attends to itself only, so packing changes no loss.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Dataset, Example};
use crate::error::{Error, Result};
use crate::train::random::CounterRng;

/// Rows that may still be filled: bounds the work and keeps an example near its place in the order.
const OPEN_ROWS: usize = 64;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duration {
    /// Passes over the data.
    Epochs(u64),
    /// Steps of the optimiser.
    Steps(u64),
}

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Tokens of a row; no example is longer.
    pub seq_len: usize,
    /// Rows of a pass through the model.
    pub micro_batch: usize,
    /// Passes whose gradients are summed for a step of the optimiser.
    pub accumulation: usize,
    /// Orders the examples.
    pub seed: u64,
    /// When to end.
    pub duration: Duration,
}

/// Where training stands; with the same data and options it goes on exactly there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// From 0.
    pub epoch: u64,
    /// Rows of the epoch that are done.
    pub index: usize,
    /// Steps of the optimiser that are done, in all epochs.
    pub step: u64,
}

/// Rows for one pass, end to end, without padding: T tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// `[T]`
    pub ids: Vec<u32>,
    /// The id that follows each, `[T]`; 0 where none does, with weight 0.
    pub targets: Vec<u32>,
    /// Weight in the loss of predicting each target, `[T]`.
    pub weights: Vec<f32>,
    /// First token and end of the example each belongs to, `[T]`: its position is its index less the first.
    pub rows: Vec<[u32; 2]>,
}

impl MicroBatch {
    /// Tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The sum of the weights: what the loss is divided by, over all micro-batches of a step.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|&weight| f64::from(weight)).sum()
    }

    fn push(&mut self, example: &Example) {
        let first = self.ids.len() as u32;
        let end = first + example.ids.len() as u32;
        self.ids.extend(&example.ids);
        self.targets.extend(example.ids.iter().skip(1).chain(&[0]));
        self.weights.extend(example.weights.iter().skip(1).chain(&[0.0]));
        self.rows.resize(end as usize, [first, end]);
    }
}

/// One step of the optimiser.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The epoch it belongs to, from 0.
    pub epoch: u64,
    /// `accumulation` of them; the last step of an epoch has what is left.
    pub micro_batches: Vec<MicroBatch>,
}

/// Packs examples of the given lengths into rows of at most `seq_len` tokens; gives the examples of each row. First-fit
/// in order, among the 64 rows opened last.
pub fn pack(examples: impl IntoIterator<Item = (usize, usize)>, seq_len: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Row and room of each.
    let mut open: VecDeque<(usize, usize)> = VecDeque::with_capacity(OPEN_ROWS);
    for (example, len) in examples {
        if let Some((row, room)) = open.iter_mut().find(|(_, room)| *room >= len) {
            rows[*row].push(example);
            *room -= len;
            continue;
        }
        if open.len() == OPEN_ROWS {
            open.pop_front();
        }
        open.push_back((rows.len(), seq_len.saturating_sub(len)));
        rows.push(vec![example]);
    }
    rows
}

/// Hands out the steps of a training run.
#[derive(Clone, Debug)]
pub struct Loader {
    data: Arc<Dataset>,
    options: BatchOptions,
    cursor: Cursor,
    /// Rows of the cursor's epoch.
    rows: Vec<Vec<usize>>,
}

impl Loader {
    /// Starts at `cursor`, the default being the beginning.
    ///
    /// Errors: [`Error::InvalidArgument`] for sizes of 0, data without examples or with one longer than a row, and a
    /// cursor that is not of this data.
    pub fn new(data: Arc<Dataset>, options: BatchOptions, cursor: Cursor) -> Result<Self> {
        let invalid = |name, reason: String| Err(Error::InvalidArgument { name, reason });
        if options.micro_batch == 0 || options.accumulation == 0 {
            return invalid("batch", "a step has one row or more".into());
        }
        let longest = data.examples.iter().map(|example| example.ids.len()).max();
        match longest {
            None => return invalid("data", "there are no examples".into()),
            Some(len) if len > options.seq_len => {
                return invalid("seq_len", format!("{} tokens, but an example has {len}", options.seq_len));
            }
            Some(_) => {}
        }
        let mut loader = Self { data, options, cursor, rows: Vec::new() };
        loader.rows = loader.epoch(cursor.epoch);
        if cursor.index > loader.rows.len() {
            let reason =
                format!("row {} of an epoch of {}; resume with the same data", cursor.index, loader.rows.len());
            return invalid("cursor", reason);
        }
        Ok(loader)
    }

    /// The same run from `cursor` on.
    ///
    /// Errors: as [`Loader::new`].
    pub(crate) fn at(&self, cursor: Cursor) -> Result<Self> {
        Self::new(Arc::clone(&self.data), self.options, cursor)
    }

    /// Where the next step begins: save it beside the adapter.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        match self.options.duration {
            Duration::Steps(steps) => steps,
            Duration::Epochs(epochs) => {
                (0..epochs).map(|epoch| self.epoch(epoch).len().div_ceil(self.rows_per_step()) as u64).sum()
            }
        }
    }

    /// The next step, or `None` when the run is over.
    pub fn next_step(&mut self) -> Option<Step> {
        if self.cursor.index >= self.rows.len() {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, index: 0, ..self.cursor };
            self.rows = self.epoch(self.cursor.epoch);
        }
        let over = match self.options.duration {
            Duration::Steps(steps) => self.cursor.step >= steps,
            Duration::Epochs(epochs) => self.cursor.epoch >= epochs,
        };
        if over {
            return None;
        }
        let end = self.rows.len().min(self.cursor.index + self.rows_per_step());
        let rows = &self.rows[self.cursor.index..end];
        let micro_batches = rows.chunks(self.options.micro_batch).map(|rows| join(&self.data, rows)).collect();
        self.cursor.index = end;
        self.cursor.step += 1;
        Some(Step { epoch: self.cursor.epoch, micro_batches })
    }

    fn rows_per_step(&self) -> usize {
        self.options.micro_batch.saturating_mul(self.options.accumulation)
    }

    /// The rows of an epoch, in order.
    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let order = CounterRng::new(self.options.seed, epoch).permutation(self.data.examples.len());
        pack(order.into_iter().map(|i| (i, self.data.examples[i].ids.len())), self.options.seq_len)
    }
}

/// All of `data` once, in its own order: for validation.
pub fn in_order(data: &Dataset, seq_len: usize, micro_batch: usize) -> Vec<MicroBatch> {
    let rows = pack(data.examples.iter().map(|example| example.ids.len()).enumerate(), seq_len);
    rows.chunks(micro_batch.max(1)).map(|rows| join(data, rows)).collect()
}

fn join(data: &Dataset, rows: &[Vec<usize>]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    rows.iter().flatten().for_each(|&i| batch.push(&data.examples[i]));
    batch
}
