//! The weighted sum of what the parents add. PEFT's `linear` adds factors instead, which gives
//! cross terms; mergekit's divides by the sum of the weights.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::recipe::{Semantics, Space, check_divisor};
use super::rows::{Keep, Rule};
use super::site::{Merging, Mixing, Site};
use crate::error::Result;

/// `sum w_i s_i B_i A_i`, divided by `sum w_i` where it is normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Linear {
    /// Whose definition: mergekit's is normalised.
    pub semantics: Semantics,
    /// What is added.
    pub on: Space,
    /// Divide by the sum of the weights; `None` for what the semantics say.
    pub normalize: Option<bool>,
}

impl Linear {
    fn normalizes(&self) -> bool {
        self.normalize.unwrap_or(self.semantics == Semantics::Mergekit)
    }

    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        self.on.check(self.semantics, self.normalizes(), 1.0)?;
        if self.normalizes() { check_divisor(parents) } else { Ok(()) }
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        if self.on == Space::Factors {
            let rule = Rule::Sum { divisor: 1.0 };
            return site.mix(&Mixing { on: self.on, rule, lambda: 1.0, keep: &|_| Keep::All });
        }
        let divisor = if self.normalizes() { site.weights.iter().sum() } else { 1.0 };
        Ok(Merging::Sum(site.terms(|part| part.weight / divisor)))
    }
}
