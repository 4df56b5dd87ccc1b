//! DARE (Yu et al. 2024, arXiv:2311.03099): drop elements by chance and scale up the rest, then add
//! up, or elect signs as TIES does.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::recipe::{Elect, Semantics, Space, check_density, check_divisor, check_lambda};
use super::rows::{Keep, Rescale, Rule};
use super::site::{Merging, Mixing, Place, Site};
use super::ties::election;
use crate::error::Result;

/// What both kinds have. PEFT scales up by the density, mergekit by the sums of sizes before and
/// after. What is dropped is a function of seed, parent, module and element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DareLinear {
    /// Whose definition.
    pub semantics: Semantics,
    /// What is merged: PEFT's `dare_linear_svd` takes products, its `dare_linear` factors.
    pub on: Space,
    /// Chance of an element to stay, in (0, 1].
    pub density: f64,
    /// Of what is dropped.
    pub seed: u64,
    /// Scale up what stays.
    pub rescale: bool,
    /// Divide by the sum of the weights.
    pub normalize: bool,
    /// Multiplies the result.
    pub lambda: f64,
}

/// As [`DareLinear`], of the elements of the elected sign.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DareTies {
    /// Whose definition.
    pub semantics: Semantics,
    /// What is merged: PEFT's `dare_ties_svd` takes products, its `dare_ties` factors.
    pub on: Space,
    /// Chance of an element to stay, in (0, 1].
    pub density: f64,
    /// Of what is dropped.
    pub seed: u64,
    /// How a sign is elected.
    pub elect: Elect,
    /// Scale up what stays.
    pub rescale: bool,
    /// Divide by the sum of the weights that agree; mergekit's alone, off by default.
    pub normalize: Option<bool>,
    /// Multiplies the result.
    pub lambda: f64,
}

/// Half of the elements: what mergekit's documentation shows.
const HALF: f64 = 0.5;

impl Default for DareLinear {
    fn default() -> Self {
        let (semantics, on) = (Semantics::Peft, Space::Products);
        let (rescale, normalize, lambda) = (true, false, 1.0);
        Self { semantics, on, density: HALF, seed: 0, rescale, normalize, lambda }
    }
}

impl Default for DareTies {
    fn default() -> Self {
        let (semantics, on, elect) = (Semantics::Peft, Space::Products, Elect::Total);
        let (rescale, normalize, lambda) = (true, None, 1.0);
        Self { semantics, on, density: HALF, seed: 0, elect, rescale, normalize, lambda }
    }
}

impl DareLinear {
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        check_density(self.density, parents)?;
        check_lambda(self.lambda)?;
        self.on.check(self.semantics, self.normalize, self.lambda)?;
        if self.normalize { check_divisor(parents) } else { Ok(()) }
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        let rescale = rescale(self.semantics, self.rescale);
        let keep = |place: &Place<'_>| drop_some(place, self.density, self.seed, rescale);
        let divisor = if self.normalize { site.weights.iter().sum() } else { 1.0 };
        let rule = Rule::Sum { divisor };
        site.mix(&Mixing { on: self.on, rule, lambda: self.lambda, keep: &keep })
    }
}

impl DareTies {
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        check_density(self.density, parents)?;
        check_lambda(self.lambda)?;
        self.on.check(self.semantics, self.normalize == Some(true), self.lambda)?;
        self.semantics.check_normalize(self.normalize)
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        let rescale = rescale(self.semantics, self.rescale);
        let keep = |place: &Place<'_>| drop_some(place, self.density, self.seed, rescale);
        let rule = election(self.semantics, self.elect, self.normalize.unwrap_or(false));
        site.mix(&Mixing { on: self.on, rule, lambda: self.lambda, keep: &keep })
    }
}

fn rescale(semantics: Semantics, rescale: bool) -> Rescale {
    match semantics {
        _ if !rescale => Rescale::No,
        Semantics::Peft => Rescale::Density,
        Semantics::Mergekit => Rescale::Sum,
    }
}

fn drop_some(place: &Place<'_>, density: f64, seed: u64, rescale: Rescale) -> Keep {
    let density = place.density.unwrap_or(density);
    if density >= 1.0 {
        return Keep::All;
    }
    Keep::Random { density, stream: place.stream(seed), rescale }
}
