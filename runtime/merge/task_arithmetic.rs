//! Task arithmetic (Ilharco et al. 2023, arXiv:2212.04089): an adapter is its own task vector, so
//! tasks are added, taken away by a negative weight, and scaled.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::recipe::{check_divisor, check_lambda};
use super::site::{Merging, Site};
use crate::error::Result;

/// `lambda * sum w_i s_i B_i A_i`, divided by `sum w_i` where it is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskArithmetic {
    /// Divide by the sum of the weights.
    pub normalize: bool,
    /// Multiplies the result.
    pub lambda: f64,
}

impl Default for TaskArithmetic {
    fn default() -> Self {
        Self { normalize: false, lambda: 1.0 }
    }
}

impl TaskArithmetic {
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        check_lambda(self.lambda)?;
        if self.normalize { check_divisor(parents) } else { Ok(()) }
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Merging<'a> {
        let divisor = if self.normalize { site.weights.iter().sum() } else { 1.0 };
        Merging::Sum(site.terms(|part| self.lambda * part.weight / divisor))
    }
}
