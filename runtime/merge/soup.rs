//! A model soup (Wortsman et al. 2022, arXiv:2203.05482): the mean of several runs of one task.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::site::{Merging, Site};
use crate::error::{Error, Result};

/// `1/n sum s_i B_i A_i` over all n parents; a module that a parent leaves alone counts as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Soup {}

impl Soup {
    pub(super) fn check(self, parents: &[Parent<'_>]) -> Result<()> {
        if parents.iter().all(|parent| parent.weight == 1.0) {
            return Ok(());
        }
        let reason = "a soup is a mean and takes none; use `linear` with `normalize`".into();
        Err(Error::InvalidArgument { name: "weights", reason })
    }

    pub(super) fn merge<'a>(self, site: &Site<'a>) -> Merging<'a> {
        let n = site.weights.len() as f64;
        Merging::Sum(site.terms(|_| 1.0 / n))
    }
}
