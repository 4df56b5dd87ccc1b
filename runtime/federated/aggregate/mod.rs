//! Many deltas become the next version of an adapter.
//!
//! Deltas are read one by one. In the modes that add up (`fedavg`, `rolora`, `ffa` with the plain
//! mean) only sums are kept, in fixed point, so that neither the order of deltas nor their split
//! over machines changes a bit of the result. The other modes need every delta at once and keep
//! them in memory as they were sent.

mod admit;
mod collect;
mod exact;
mod finish;
mod gather;
mod html;
mod optimizer;
mod options;
mod partial;
mod probes;
mod report;

use std::path::PathBuf;

pub use admit::{Refusal, Trust};
pub use optimizer::OptimizerState;
pub use options::{
    AggregateOptions, CentralNoise, Mode, OverNorm, Robust, ServerOptimizer, Weights,
};
pub use report::{Entry, ModeError, Report};

use super::published::{Published, RoundPlan};
use super::sign::Signer;
use crate::error::{Error, Result};
use admit::Round;
use collect::Collected;

/// What is averaged, from where.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The version that the deltas were made from.
    pub parent: &'a Published,
    /// How they become one.
    pub options: &'a AggregateOptions,
    /// Whose deltas are taken.
    pub trust: &'a Trust,
    /// Deltas, and parts that [`partial`] wrote, in any order.
    pub files: &'a [PathBuf],
}

/// What came of a round.
pub struct Outcome {
    /// The next version; `None` when too few deltas were taken.
    pub version: Option<Published>,
    /// What became of each delta.
    pub report: Report,
}

/// Makes the next version. `next` says what comes after it: its round and factors follow from the
/// parent's and the mode. `state` is the server optimizer's, and is changed when a version is made.
///
/// Errors: [`Error::InvalidArgument`] for options that make no sense together;
/// [`Error::InvalidDelta`] for a part of another round, or parts that hold the same device twice;
/// those of the signer. A delta that can't be used is no error: the report says why.
pub fn aggregate(
    inputs: &Inputs<'_>,
    next: RoundPlan,
    state: &mut OptimizerState,
    signer: &dyn Signer,
) -> Result<Outcome> {
    let collected = collect(inputs)?;
    finish::finish(inputs, collected, next, state, signer)
}

/// Makes a part of a round, for [`aggregate`] to add to others: sums, or, in the modes that need
/// every delta at once, the deltas themselves in one file. Returns the file and what became of each
/// delta.
///
/// Errors: as [`aggregate`].
pub fn partial(inputs: &Inputs<'_>, signer: &dyn Signer) -> Result<(Vec<u8>, Report)> {
    if inputs.options.min_cosine.is_some() {
        return Err(Error::InvalidArgument {
            name: "min_cosine",
            reason: "a part does not know the mean of all; leave it to the last run".into(),
        });
    }
    let collected = collect(inputs)?;
    let bytes = partial::write(&collected, signer)?;
    Ok((bytes, report::report(inputs, &collected)))
}

fn collect<'a>(inputs: &'a Inputs<'a>) -> Result<Collected<'a>> {
    let Inputs { parent, options, trust, .. } = *inputs;
    options.check(&parent.manifest.next)?;
    let mut collected = Collected::new(Round { parent, options, trust });
    collected.add_files(inputs.files)?;
    Ok(collected)
}
