//! One module of the base, and what the parents have on it.

use super::factored::Term;
use super::random;
use super::recipe::Space;
use super::rows::{Keep, Matrix, Mix, Rule, Sparse};
use crate::adapter::LoraModule;
use crate::base::{ModulePath, Target};
use crate::error::{Error, Result};

/// A parent's LoRA on the module.
pub(super) struct Part<'a> {
    /// Its number among the parents.
    pub(super) parent: usize,
    pub(super) weight: f64,
    /// Of its own, where the parents differ.
    pub(super) density: Option<f64>,
    pub(super) module: &'a LoraModule,
}

/// A module with the parents that have LoRA on it, in their order; at least one.
pub(super) struct Site<'a> {
    pub(super) path: ModulePath,
    pub(super) parts: Vec<Part<'a>>,
    /// Of all parents, also of those that leave this module alone.
    pub(super) weights: Vec<f64>,
}

/// What a method makes of a module.
pub(super) enum Merging<'a> {
    /// A sum of products, as it is.
    Sum(Vec<Term<'a>>),
    /// A matrix of which every element has its own rule.
    Product(Mix),
    /// Both factors, each by itself.
    Factors { a: Mix, b: Mix },
}

/// A matrix of a part that something may be taken out of.
pub(super) struct Place<'p> {
    pub(super) matrix: &'p Matrix,
    pub(super) density: Option<f64>,
    /// Parent, module, and 0 for the product, 1 for A, 2 for B.
    words: [u64; 3],
}

impl Place<'_> {
    /// Its stream of chance.
    pub(super) fn stream(&self, seed: u64) -> u64 {
        let [parent, module, factor] = self.words;
        random::stream([seed, parent, module, factor])
    }
}

/// How the parts of a site become one.
pub(super) struct Mixing<'k> {
    pub(super) on: Space,
    pub(super) rule: Rule,
    pub(super) lambda: f64,
    pub(super) keep: &'k dyn Fn(&Place<'_>) -> Keep,
}

impl<'a> Site<'a> {
    pub(super) fn terms(&self, coefficient: impl Fn(&Part<'a>) -> f64) -> Vec<Term<'a>> {
        let term = |part| Term { coefficient: coefficient(part), module: part.module };
        self.parts.iter().map(term).collect()
    }

    /// Errors: [`Error::InvalidAdapter`] naming the module where factors differ in rank.
    pub(super) fn mix(&self, mixing: &Mixing<'_>) -> Result<Merging<'a>> {
        match mixing.on {
            Space::Products => Ok(Merging::Product(
                self.mix_of(mixing, 0, |part| (Matrix::product(part.module), part.weight)),
            )),
            Space::Factors => {
                self.check_ranks()?;
                // PEFT's way: weight and scaling go to the factors by their root, the sign to A.
                let scale = |part: &Part<'_>| part.weight * f64::from(part.module.scaling);
                let a = self.mix_of(mixing, 1, |part| {
                    let scale = scale(part);
                    let sign = if scale >= 0.0 { 1.0 } else { -1.0 };
                    let columns = part.module.a.len() / part.module.rank;
                    (Matrix::given(&part.module.a, columns), sign * scale.abs().sqrt())
                });
                let b = self.mix_of(mixing, 2, |part| {
                    let matrix = Matrix::given(&part.module.b, part.module.rank);
                    (matrix, scale(part).abs().sqrt())
                });
                Ok(Merging::Factors { a, b })
            }
        }
    }

    fn mix_of(
        &self,
        mixing: &Mixing<'_>,
        factor: u64,
        matrix: impl Fn(&Part<'a>) -> (Matrix, f64),
    ) -> Mix {
        let sparse = |part: &Part<'a>| {
            let (matrix, weight) = matrix(part);
            let words = [part.parent as u64, number(self.path), factor];
            let keep = (mixing.keep)(&Place { matrix: &matrix, density: part.density, words });
            Sparse::new(matrix, weight, keep)
        };
        let parents = self.parts.iter().map(sparse).collect();
        Mix { parents, rule: mixing.rule, lambda: mixing.lambda }
    }

    /// That factors can be put on each other.
    pub(super) fn check_ranks(&self) -> Result<()> {
        let ranks: Vec<_> = self.parts.iter().map(|part| part.module.rank).collect();
        if ranks.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        let reason = format!("ranks {ranks:?}; factors of one rank are needed, or merge products");
        Err(Error::InvalidAdapter { what: self.path.to_string(), reason })
    }
}

/// A module's number in streams of chance.
fn number(path: ModulePath) -> u64 {
    let target = Target::ALL.iter().position(|target| *target == path.target).unwrap_or(0);
    (path.layer.map_or(0, |layer| layer + 1) * 16 + target) as u64
}
