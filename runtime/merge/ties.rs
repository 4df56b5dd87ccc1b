//! TIES (Yadav et al. 2023, arXiv:2306.01708): trim each parent, elect a sign for each element, and
//! merge those that agree with it.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::magnitude_prune::trim;
use super::recipe::{DENSITY, Elect, Semantics, Space, check_density, check_lambda};
use super::rows::{Divide, Election, Rule};
use super::site::{Merging, Mixing, Place, Site};
use crate::error::Result;

/// Trim, elect, merge. PEFT elects by the trimmed elements as they are and divides by the number of
/// those that agree; mergekit elects by weighted ones and divides by the sum of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ties {
    /// Whose definition.
    pub semantics: Semantics,
    /// What is merged: PEFT's `ties_svd` takes products, its `ties` factors.
    pub on: Space,
    /// Share of the elements that stay, in (0, 1].
    pub density: f64,
    /// How a sign is elected.
    pub elect: Elect,
    /// Divide by the sum of the weights; mergekit's alone, on by default.
    pub normalize: Option<bool>,
    /// Multiplies the result.
    pub lambda: f64,
}

impl Default for Ties {
    fn default() -> Self {
        Self {
            semantics: Semantics::Peft,
            on: Space::Products,
            density: DENSITY,
            elect: Elect::Total,
            normalize: None,
            lambda: 1.0,
        }
    }
}

impl Ties {
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        check_density(self.density, parents)?;
        check_lambda(self.lambda)?;
        self.on.check(self.semantics, self.normalize == Some(true), self.lambda)?;
        self.semantics.check_normalize(self.normalize)
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        let keep = |place: &Place<'_>| trim(place, self.density, self.semantics);
        let rule = election(self.semantics, self.elect, self.normalize.unwrap_or(true));
        site.mix(&Mixing { on: self.on, rule, lambda: self.lambda, keep: &keep })
    }
}

/// How signs are elected and divided by, as either has it.
pub(super) fn election(semantics: Semantics, elect: Elect, normalize: bool) -> Rule {
    let (weighted, divide) = match semantics {
        Semantics::Peft => (false, Divide::Count),
        Semantics::Mergekit => (true, if normalize { Divide::Weights } else { Divide::No }),
    };
    Rule::Elected(Election { by_count: elect == Elect::Frequency, weighted, divide })
}
