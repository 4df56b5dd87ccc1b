//! Magnitude pruning: of each parent only the largest elements, then their weighted sum. PEFT's
//! `magnitude_prune_svd`, and on factors its `magnitude_prune`.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::recipe::{DENSITY, Semantics, Space, check_density};
use super::rows::{Cut, Keep, Rule};
use super::site::{Merging, Mixing, Place, Site};
use crate::error::Result;

/// `sum w_i trim(s_i B_i A_i)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MagnitudePrune {
    /// What is trimmed.
    pub on: Space,
    /// Share of the elements that stay, in (0, 1].
    pub density: f64,
}

impl Default for MagnitudePrune {
    fn default() -> Self {
        Self { on: Space::Products, density: DENSITY }
    }
}

impl MagnitudePrune {
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        check_density(self.density, parents)
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        let keep = |place: &Place<'_>| trim(place, self.density, Semantics::Peft);
        let rule = Rule::Sum { divisor: 1.0 };
        site.mix(&Mixing { on: self.on, rule, lambda: 1.0, keep: &keep })
    }
}

/// The largest share `density` of a matrix: `floor(density * n)` elements, of which mergekit keeps
/// one at least.
pub(super) fn trim(place: &Place<'_>, density: f64, semantics: Semantics) -> Keep {
    let density = place.density.unwrap_or(density);
    if density >= 1.0 {
        return Keep::All;
    }
    let n = place.matrix.rows * place.matrix.columns;
    let least = usize::from(semantics == Semantics::Mergekit);
    Keep::Largest(Cut::leaving(place.matrix, ((density * n as f64) as usize).max(least)))
}
