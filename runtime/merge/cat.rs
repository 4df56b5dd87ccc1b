//! Concatenation: the parents' factors stacked, which is their weighted sum exactly, at the sum of
//! their ranks. PEFT's `cat`.

use serde::{Deserialize, Serialize};

use super::site::{Merging, Site};

/// `A = [w_i s_i A_i]`, `B = [B_i]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cat {}

impl Cat {
    pub(super) fn merge<'a>(self, site: &Site<'a>) -> Merging<'a> {
        Merging::Sum(site.terms(|part| part.weight))
    }
}
