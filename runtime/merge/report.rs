//! What became of the parents in a merged adapter.

use serde::Serialize;

use super::factored::inner;
use super::rows::Mix;
use super::site::Site;
use super::{Parent, Recipe};
use crate::adapter::LoraModule;
use crate::base::ModulePath;

/// A merge in numbers. Norms are of what adapters add to all weights of the base together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergeReport {
    /// How it was merged.
    pub recipe: Recipe,
    /// Norm of the merged adapter.
    pub norm: f64,
    /// Norm of what the rank cut off, in the norm before.
    pub lost: f64,
    /// In the order given.
    pub parents: Vec<MergedParent>,
    /// Sorted by path.
    pub modules: Vec<MergedModule>,
    /// What a user would want to know although it stops nothing.
    pub warnings: Vec<String>,
}

/// A parent in the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedParent {
    /// Its name.
    pub id: String,
    /// How much of it.
    pub weight: f64,
    /// Its norm, unweighted.
    pub norm: f64,
    /// Share of its squares that trimming or chance took out, before scaling up; `None` for methods
    /// that take nothing out.
    pub taken_out: Option<f64>,
    /// Cosine between it and the result.
    pub cosine: f64,
    /// How much of it is in the result: the result's projection on it, in its own length. A plain
    /// sum of parents at right angles gives the weights.
    pub share: f64,
}

/// A module of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergedModule {
    /// The module.
    pub path: ModulePath,
    /// Its rank.
    pub rank: usize,
    /// Norm of what it adds.
    pub norm: f64,
    /// Norm of what the rank cut off, in the norm before.
    pub lost: f64,
}

/// Sums over modules.
pub(super) struct Tally {
    parents: Vec<Sums>,
    modules: Vec<MergedModule>,
    /// Of the results, of what was before the rank, and of what that cut off.
    squares: [f64; 3],
}

struct Sums {
    id: String,
    weight: f64,
    squares: f64,
    with_result: f64,
    /// Before and after something was taken out.
    taken: Option<[f64; 2]>,
}

impl Tally {
    pub(super) fn new(parents: &[Parent<'_>]) -> Self {
        let sums = |p: &Parent<'_>| Sums {
            id: p.id.into(),
            weight: p.weight,
            squares: 0.0,
            with_result: 0.0,
            taken: None,
        };
        let parents = parents.iter().map(sums).collect();
        Self { parents, modules: Vec::new(), squares: [0.0; 3] }
    }

    /// Hears of the matrices of a module, from which something may have been taken.
    pub(super) fn took_out(&mut self, site: &Site<'_>, mixes: &[&Mix]) {
        for mix in mixes {
            for (part, sparse) in site.parts.iter().zip(&mix.parents) {
                let taken = self.parents[part.parent].taken.get_or_insert([0.0; 2]);
                taken.iter_mut().zip(sparse.squares).for_each(|(sum, new)| *sum += new);
            }
        }
    }

    /// Hears of a module that is done.
    pub(super) fn merged(&mut self, site: &Site<'_>, module: &LoraModule, squares: f64, lost: f64) {
        for part in &site.parts {
            let sums = &mut self.parents[part.parent];
            sums.squares += inner(part.module, part.module);
            sums.with_result += inner(part.module, module);
        }
        let own = inner(module, module);
        self.squares.iter_mut().zip([own, squares, lost]).for_each(|(sum, new)| *sum += new);
        let (path, rank, norm) = (module.path, module.rank, root(own));
        self.modules.push(MergedModule { path, rank, norm, lost: root(ratio(lost, squares)) });
    }

    pub(super) fn into_report(self, recipe: &Recipe, warnings: Vec<String>) -> MergeReport {
        let [own, before, lost] = self.squares;
        let norm = root(own);
        let parent = |sums: Sums| MergedParent {
            id: sums.id,
            weight: sums.weight,
            norm: root(sums.squares),
            taken_out: sums.taken.map(|[before, after]| ratio(before - after, before)),
            cosine: ratio(sums.with_result, root(sums.squares) * norm),
            share: ratio(sums.with_result, sums.squares),
        };
        let parents = self.parents.into_iter().map(parent).collect();
        let lost = root(ratio(lost, before));
        MergeReport { recipe: *recipe, norm, lost, parents, modules: self.modules, warnings }
    }
}

/// Rounding may leave a sum of squares below zero.
fn root(squares: f64) -> f64 {
    squares.max(0.0).sqrt()
}

/// 0 of nothing.
pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
