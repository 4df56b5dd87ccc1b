//! The setting that a budget allows.
//!
//! What is given up, in this order: the micro-batch (accumulation makes up for it), then time
//! (checkpointing), then the sequence length (which cuts examples). So: the longest sequence for
//! which anything fits; for it, no checkpointing if one row fits without, else the interval that
//! takes the least (each computes as much again); then the largest micro-batch.

use super::Site;
use crate::error::{Error, Result};
use crate::gpu::{MemoryPlan, human_bytes};
use crate::train::buffers::TrainShape;

/// Sequence lengths that are tried are multiples of this, and the one asked for.
const SEQ_LEN_STEP: usize = 32;

/// What may be lowered to fit: a choice that is not free is kept as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// The rows of a micro-batch.
    pub micro_batch: bool,
    /// Checkpointing.
    pub checkpoint: bool,
    /// The length of a row.
    pub seq_len: bool,
}

impl Free {
    /// Everything may be lowered.
    pub const ALL: Self = Self { micro_batch: true, checkpoint: true, seq_len: true };
}

/// The best setting up to `wanted` with which there are at most `budget_bytes`.
///
/// Errors: [`Error::OverBudget`] with the sum and the nearest setting that fits; as
/// [`TrainShape::check`].
pub fn fit(
    site: &Site<'_>,
    wanted: &TrainShape,
    free: Free,
    budget_bytes: u64,
) -> Result<(TrainShape, MemoryPlan)> {
    wanted.check(site.config)?;
    let mut search = Search { site, wanted, thriftiest: wanted.checkpoint_every, budget_bytes };
    search.thriftiest = search.find_thriftiest()?;
    if let Some(shape) = search.best(free)? {
        let plan = site.training(&shape)?;
        return Ok((shape, plan));
    }
    // The least of what was allowed shows how far away it is.
    let least = search.least(free);
    let plan = site.training(&least)?;
    let remedy = match search.best(Free::ALL)? {
        Some(shape) => {
            format!("{} fits in {}", describe(&shape), human_bytes(search.bytes(&shape)?))
        }
        None => {
            let least = search.least(Free::ALL);
            let bytes = human_bytes(search.bytes(&least)?);
            format!(
                "the least, {}, takes {bytes}; use a smaller model, rank or cache",
                describe(&least)
            )
        }
    };
    Err(Error::OverBudget {
        needed: human_bytes(plan.total_bytes()),
        budget: human_bytes(budget_bytes),
        sum: format!("{} ({})", plan.sum(), describe(&least)),
        remedy,
    })
}

/// A setting in words.
fn describe(shape: &TrainShape) -> String {
    let checkpointing = match shape.checkpoint_every {
        None => "no checkpointing".into(),
        Some(1) => "a checkpoint every layer".into(),
        Some(k) => format!("a checkpoint every {k} layers"),
    };
    format!(
        "a micro-batch of {} x {} tokens with {checkpointing}",
        shape.micro_batch, shape.seq_len
    )
}

struct Search<'a> {
    site: &'a Site<'a>,
    wanted: &'a TrainShape,
    /// The checkpointing that takes the least, or the one asked for.
    thriftiest: Option<usize>,
    budget_bytes: u64,
}

impl Search<'_> {
    fn bytes(&self, shape: &TrainShape) -> Result<u64> {
        Ok(self.site.training(shape)?.total_bytes())
    }

    fn fits(&self, shape: &TrainShape) -> Result<bool> {
        Ok(self.bytes(shape)? <= self.budget_bytes)
    }

    /// All that depends on the interval grows with the tokens alone, so it is the same for any
    /// number of them.
    fn find_thriftiest(&self) -> Result<Option<usize>> {
        let with =
            |checkpoint_every| self.bytes(&TrainShape { checkpoint_every, ..self.wanted.clone() });
        let mut least = (with(self.wanted.checkpoint_every)?, self.wanted.checkpoint_every);
        for k in 1..self.site.config.num_hidden_layers {
            let bytes = with(Some(k))?;
            if bytes < least.0 {
                least = (bytes, Some(k));
            }
        }
        Ok(least.1)
    }

    /// The best that fits, by the order above.
    fn best(&self, free: Free) -> Result<Option<TrainShape>> {
        let row = self.row(free);
        let at = |seq_len: usize| TrainShape { seq_len, ..row.clone() };
        let mut best = row.clone();
        if !self.fits(&best)? {
            let steps =
                if free.seq_len { self.wanted.seq_len.saturating_sub(1) / SEQ_LEN_STEP } else { 0 };
            match largest(steps, |n| self.fits(&at(n * SEQ_LEN_STEP)))? {
                Some(n) => best = at(n * SEQ_LEN_STEP),
                None => return Ok(None),
            }
        }
        let kept = TrainShape { checkpoint_every: self.wanted.checkpoint_every, ..best.clone() };
        if self.fits(&kept)? {
            best = kept;
        }
        if free.micro_batch {
            let with = |micro_batch: usize| TrainShape { micro_batch, ..best.clone() };
            let rows = largest(self.wanted.micro_batch, |n| self.fits(&with(n)))?;
            best = with(rows.unwrap_or(1));
        }
        Ok(Some(best))
    }

    /// The least for the length asked for.
    fn row(&self, free: Free) -> TrainShape {
        TrainShape {
            micro_batch: if free.micro_batch { 1 } else { self.wanted.micro_batch },
            checkpoint_every: if free.checkpoint {
                self.thriftiest
            } else {
                self.wanted.checkpoint_every
            },
            ..self.wanted.clone()
        }
    }

    /// The least of all.
    fn least(&self, free: Free) -> TrainShape {
        let row = self.row(free);
        TrainShape {
            seq_len: if free.seq_len { row.seq_len.min(SEQ_LEN_STEP) } else { row.seq_len },
            ..row
        }
    }
}

/// The largest n from 1 to `most` of which `fits` holds, given that it then holds of every smaller
/// one.
fn largest(most: usize, fits: impl Fn(usize) -> Result<bool>) -> Result<Option<usize>> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high - (high - low) / 2;
        if fits(middle)? {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok((low > 0).then_some(low))
}
