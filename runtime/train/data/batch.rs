//! Examples into steps and packed batches, in an order that depends on nothing but the seed and the
//! epoch.
//!
//! A step is a number of examples, as in PEFT, TRL and `mlx_lm`. Whole examples are packed, without
//! padding, into as few passes through the model as hold them; each starts again at position 0 and
//! attends to itself only, so packing changes no loss and no gradient.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Dataset, Example};
use crate::error::{Error, Result};
use crate::train::random::CounterRng;
use crate::train::recipe;

/// Passes that may still be filled: bounds the work.
const OPEN_PASSES: usize = 64;

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrainLength {
    /// Passes over the data, as many as it needs by its size: [`recipe::epochs`].
    Auto,
    /// Passes over the data.
    Epochs(u64),
    /// Steps of the optimiser.
    Steps(u64),
}

impl TrainLength {
    /// The same, decided for `examples` of them.
    pub fn resolved(self, examples: usize) -> Self {
        match self {
            Self::Auto => Self::Epochs(recipe::epochs(examples)),
            decided => decided,
        }
    }

    /// Steps of `batch_size` examples that it takes.
    pub fn steps(self, examples: usize, batch_size: usize) -> u64 {
        match self {
            Self::Auto => self.resolved(examples).steps(examples, batch_size),
            Self::Epochs(epochs) => {
                epochs.saturating_mul(examples.div_ceil(batch_size.max(1)) as u64)
            }
            Self::Steps(steps) => steps,
        }
    }
}

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Examples of a step of the optimiser; the last step of an epoch has what is left.
    pub batch_size: usize,
    /// Most tokens of an example.
    pub seq_len: usize,
    /// A pass through the model takes as many tokens as this many of the longest examples.
    pub micro_batch: usize,
    /// Orders the examples.
    pub seed: u64,
    /// When to end.
    pub duration: TrainLength,
}

/// Where training stands; with the same data and options it goes on exactly there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// From 0.
    pub epoch: u64,
    /// Examples of the epoch that are done.
    pub index: usize,
    /// Steps of the optimiser that are done, in all epochs.
    pub step: u64,
}

/// Examples for one pass, end to end, without padding: T tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// `[T]`
    pub ids: Vec<u32>,
    /// The id that follows each, `[T]`; 0 where none does, with weight 0.
    pub targets: Vec<u32>,
    /// Weight in the loss of predicting each target, `[T]`.
    pub weights: Vec<f32>,
    /// First token and end of the example each belongs to, `[T]`: its position is its index less
    /// the first.
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
    /// Passes whose gradients are summed; together they hold the step's examples.
    pub micro_batches: Vec<MicroBatch>,
}

/// Packs examples of the given lengths into passes of at most `tokens`; gives the examples of each
/// pass. First-fit in order, among the 64 passes opened last.
pub fn pack(examples: impl IntoIterator<Item = (usize, usize)>, tokens: usize) -> Vec<Vec<usize>> {
    let mut passes: Vec<Vec<usize>> = Vec::new();
    // Pass and room of each.
    let mut open: VecDeque<(usize, usize)> = VecDeque::with_capacity(OPEN_PASSES);
    for (example, len) in examples {
        if let Some((pass, room)) = open.iter_mut().find(|(_, room)| *room >= len) {
            passes[*pass].push(example);
            *room -= len;
            continue;
        }
        if open.len() == OPEN_PASSES {
            open.pop_front();
        }
        open.push_back((passes.len(), tokens.saturating_sub(len)));
        passes.push(vec![example]);
    }
    passes
}

/// Hands out the steps of a training run.
#[derive(Clone, Debug)]
pub struct Loader {
    data: Arc<Dataset>,
    options: BatchOptions,
    cursor: Cursor,
    /// Examples in the order of the cursor's epoch.
    order: Vec<usize>,
}

impl Loader {
    /// Starts at `cursor`, the default being the beginning.
    ///
    /// Errors: [`Error::InvalidArgument`] for sizes of 0, data without examples or with one longer
    /// than a row, and a cursor that is not of this data.
    pub fn new(data: Arc<Dataset>, options: BatchOptions, cursor: Cursor) -> Result<Self> {
        let invalid = |name, reason: String| Err(Error::InvalidArgument { name, reason });
        if options.batch_size == 0 || options.micro_batch == 0 {
            return invalid("batch", "a step has one example or more".into());
        }
        let longest = data.examples.iter().map(|example| example.ids.len()).max();
        match longest {
            None => return invalid("data", "there are no examples".into()),
            Some(len) if len > options.seq_len => {
                return invalid(
                    "seq_len",
                    format!("{} tokens, but an example has {len}", options.seq_len),
                );
            }
            Some(_) => {}
        }
        if cursor.index > data.examples.len() {
            let count = data.examples.len();
            let reason = format!(
                "example {} of an epoch of {count}; resume with the same data",
                cursor.index
            );
            return invalid("cursor", reason);
        }
        let mut loader = Self { data, options, cursor, order: Vec::new() };
        loader.order = loader.epoch(cursor.epoch);
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

    /// Examples of an epoch.
    pub fn examples(&self) -> usize {
        self.order.len()
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.options.duration.steps(self.order.len(), self.options.batch_size)
    }

    /// The next step, or `None` when the run is over.
    pub fn next_step(&mut self) -> Option<Step> {
        if self.cursor.index >= self.order.len() {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, index: 0, ..self.cursor };
            self.order = self.epoch(self.cursor.epoch);
        }
        if self.cursor.step >= self.total_steps() {
            return None;
        }
        let end = self.order.len().min(self.cursor.index.saturating_add(self.options.batch_size));
        let mut examples = self.order[self.cursor.index..end].to_vec();
        let len = |&i: &usize| self.data.examples[i].ids.len();
        // The longest first: first-fit then comes nearest to the fewest passes (Johnson 1973).
        examples.sort_by_key(|i| std::cmp::Reverse(len(i)));
        let passes = pack(examples.iter().map(|i| (*i, len(i))), self.options.pass_tokens());
        let micro_batches = passes.iter().map(|pass| join(&self.data, pass)).collect();
        self.cursor.index = end;
        self.cursor.step += 1;
        Some(Step { epoch: self.cursor.epoch, micro_batches })
    }

    /// The examples of an epoch, in order.
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        CounterRng::new(self.options.seed, epoch).permutation(self.data.examples.len())
    }
}

impl BatchOptions {
    fn pass_tokens(&self) -> usize {
        self.micro_batch.saturating_mul(self.seq_len)
    }
}

/// All of `data` once, in its own order, in passes of at most `tokens`: for validation.
pub fn in_order(data: &Dataset, tokens: usize) -> Vec<MicroBatch> {
    let passes = pack(data.examples.iter().map(|example| example.ids.len()).enumerate(), tokens);
    passes.iter().map(|pass| join(data, pass)).collect()
}

fn join(data: &Dataset, examples: &[usize]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    examples.iter().for_each(|&i| batch.push(&data.examples[i]));
    batch
}
