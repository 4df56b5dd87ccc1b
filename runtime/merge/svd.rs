//! The weighted sum at a smaller rank: its largest singular values, which lose the least (Eckart
//! and Young). PEFT's `svd`.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::recipe::Rank;
use super::site::{Merging, Site};

/// The best approximation of `sum w_i s_i B_i A_i`, by default at the parents' largest rank, as
/// PEFT has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Svd {}

impl Svd {
    pub(super) fn merge<'a>(self, site: &Site<'a>) -> Merging<'a> {
        Merging::Sum(site.terms(|part| part.weight))
    }

    /// The largest of all modules, for each of them.
    pub(super) fn default_rank(self, parents: &[Parent<'_>]) -> Rank {
        let modules = parents.iter().flat_map(|parent| &parent.adapter.modules);
        Rank::Fixed(modules.map(|module| module.rank).max().unwrap_or(1))
    }
}
