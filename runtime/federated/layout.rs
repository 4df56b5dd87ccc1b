//! Which modules, and their sizes: what a reader needs that has no base model at hand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::adapter::{LoraModule, MAX_RANK, ModulePath, Target};
use crate::error::Result;

/// Rank and scaling of one module.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankScaling {
    /// Rank, r.
    pub rank: usize,
    /// What `B A` is multiplied by.
    pub scaling: f32,
}

/// Sizes, ranks and scalings of an adapter's modules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// Of every module that [`Self::exceptions`] does not name.
    #[serde(flatten)]
    pub default: RankScaling,
    /// `[N, K]` by the last part of a module's path: A is `[r, K]`, B is `[N, r]`.
    pub shapes: BTreeMap<String, [usize; 2]>,
    /// Modules with another rank or scaling, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exceptions: BTreeMap<String, RankScaling>,
}

/// Above any width of a model; keeps products from overflowing.
const MAX_WIDTH: usize = 1 << 28;

impl Layout {
    /// The layout of modules that fit one base.
    pub(super) fn of(modules: &[LoraModule]) -> Self {
        let of = |m: &LoraModule| RankScaling { rank: m.rank, scaling: m.scaling };
        let mut counts = BTreeMap::new();
        for module in modules {
            *counts.entry((module.rank, module.scaling.to_bits())).or_insert(0) += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(key, _)| key);
        let (rank, bits) = most.unwrap_or((1, 0));
        let default = RankScaling { rank, scaling: f32::from_bits(bits) };
        let shape = |m: &LoraModule| [m.b.len(), m.a.len()].map(|n| n / m.rank.max(1));
        Self {
            default,
            shapes: modules.iter().map(|m| (m.path.target.name().into(), shape(m))).collect(),
            exceptions: modules
                .iter()
                .filter(|m| of(m) != default)
                .map(|m| (m.path.to_string(), of(m)))
                .collect(),
        }
    }

    /// Rank and scaling of a module.
    pub fn of_module(&self, path: ModulePath) -> RankScaling {
        if self.exceptions.is_empty() {
            return self.default;
        }
        self.exceptions.get(&path.to_string()).copied().unwrap_or(self.default)
    }

    /// `[N, K]` of a kind of module, if there are such modules.
    pub fn shape(&self, target: Target) -> Option<[usize; 2]> {
        self.shapes.get(target.name()).copied()
    }

    /// Errors: `InvalidDelta` for a rank, scaling or width that no adapter has.
    pub(super) fn check(&self) -> Result<()> {
        for each in self.exceptions.values().chain([&self.default]) {
            if !(1..=MAX_RANK as usize).contains(&each.rank) || !each.scaling.is_finite() {
                let reason = format!("ranks go from 1 to {MAX_RANK}, scalings are finite");
                return Err(invalid("rank", reason));
            }
        }
        match self.shapes.values().flatten().all(|width| (1..=MAX_WIDTH).contains(width)) {
            true => Ok(()),
            false => Err(invalid("shapes", format!("widths go from 1 to {MAX_WIDTH}"))),
        }
    }
}
