//! How adapters are merged: the method with its options, and the rank of the result.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Parent;
use super::cat::Cat;
use super::dare::{DareLinear, DareTies};
use super::linear::Linear;
use super::magnitude_prune::MagnitudePrune;
use super::site::{Merging, Site};
use super::slerp::Slerp;
use super::soup::Soup;
use super::svd::Svd;
use super::task_arithmetic::TaskArithmetic;
use super::ties::Ties;
use crate::error::{Error, Result};

/// Share of the elements that stay where none is given: the paper's on TIES.
pub(super) const DENSITY: f64 = 0.2;
/// Letters of a complaint about options.
const MAX_REASON: usize = 300;

/// Whose definition, where two programs differ under one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// PEFT 0.21, `add_weighted_adapter`.
    #[default]
    Peft,
    /// mergekit 0.1, on task vectors with a base of zero.
    Mergekit,
}

/// What a method works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// What adapters add to weights: `scaling * B A`.
    #[default]
    Products,
    /// A and B, each by itself. They are known up to a change of basis only, so what this gives
    /// depends on how the parents began; it is here because PEFT does it.
    Factors,
}

/// How TIES elects a sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Elect {
    /// By the sum.
    #[default]
    #[serde(alias = "sum")]
    Total,
    /// By the number of positive and negative ones.
    #[serde(alias = "count")]
    Frequency,
}

/// The rank of the result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rank {
    /// This many singular values of each module, or as many as it has.
    Fixed(usize),
    /// As many as hold this share of the sum of their squares, in (0, 1], module by module.
    Energy(f64),
}

/// A method with its options; a file in `merge/` each.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is a struct with docs")]
pub enum Method {
    Linear(Linear),
    TaskArithmetic(TaskArithmetic),
    Soup(Soup),
    Cat(Cat),
    Svd(Svd),
    Ties(Ties),
    DareLinear(DareLinear),
    DareTies(DareTies),
    MagnitudePrune(MagnitudePrune),
    Slerp(Slerp),
}

/// How to merge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The method.
    #[serde(flatten)]
    pub method: Method,
    /// The rank of the result. `None`: what the method makes of it, without a loss where it can:
    /// the sum of the parents' ranks; for `svd` the largest of them; on factors theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<Rank>,
}

impl From<Method> for Recipe {
    fn from(method: Method) -> Self {
        Self { method, rank: None }
    }
}

impl Method {
    /// The names of all methods.
    pub const NAMES: [&str; 10] = [
        "linear",
        "task_arithmetic",
        "soup",
        "cat",
        "svd",
        "ties",
        "dare_linear",
        "dare_ties",
        "magnitude_prune",
        "slerp",
    ];

    /// A method by name, with the options given; the others have their defaults.
    ///
    /// Errors: [`Error::InvalidArgument`] for an unknown method, an option that it does not have,
    /// or a value of another type.
    pub fn from_options(name: &str, options: &Map<String, Value>) -> Result<Self> {
        let mut options = options.clone();
        options.insert("method".into(), name.into());
        serde_json::from_value(Value::Object(options)).map_err(|e| {
            let reason: String = format!("{name}: {e}").chars().take(MAX_REASON).collect();
            Error::InvalidArgument { name: "method", reason }
        })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear(_) => "linear",
            Self::TaskArithmetic(_) => "task_arithmetic",
            Self::Soup(_) => "soup",
            Self::Cat(_) => "cat",
            Self::Svd(_) => "svd",
            Self::Ties(_) => "ties",
            Self::DareLinear(_) => "dare_linear",
            Self::DareTies(_) => "dare_ties",
            Self::MagnitudePrune(_) => "magnitude_prune",
            Self::Slerp(_) => "slerp",
        }
    }

    /// Whether parents may have densities of their own.
    fn has_density(&self) -> bool {
        matches!(
            self,
            Self::Ties(_) | Self::DareLinear(_) | Self::DareTies(_) | Self::MagnitudePrune(_)
        )
    }

    fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        match self {
            Self::Linear(linear) => linear.check(parents),
            Self::TaskArithmetic(arithmetic) => arithmetic.check(parents),
            Self::Soup(soup) => soup.check(parents),
            Self::Cat(_) | Self::Svd(_) => Ok(()),
            Self::Ties(ties) => ties.check(parents),
            Self::DareLinear(dare) => dare.check(parents),
            Self::DareTies(dare) => dare.check(parents),
            Self::MagnitudePrune(prune) => prune.check(parents),
            Self::Slerp(slerp) => slerp.check(parents),
        }
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        match self {
            Self::Linear(linear) => linear.merge(site),
            Self::TaskArithmetic(arithmetic) => Ok(arithmetic.merge(site)),
            Self::Soup(soup) => Ok(soup.merge(site)),
            Self::Cat(cat) => Ok(cat.merge(site)),
            Self::Svd(svd) => Ok(svd.merge(site)),
            Self::Ties(ties) => ties.merge(site),
            Self::DareLinear(dare) => dare.merge(site),
            Self::DareTies(dare) => dare.merge(site),
            Self::MagnitudePrune(prune) => prune.merge(site),
            Self::Slerp(slerp) => slerp.merge(site),
        }
    }
}

impl Recipe {
    /// That it can be followed with these parents.
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        let invalid =
            |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
        if parents.is_empty() {
            return invalid("parents", "none; give at least one adapter");
        }
        if parents.iter().any(|parent| !parent.weight.is_finite()) {
            return invalid("weights", "each must be a finite number");
        }
        if !self.method.has_density() && parents.iter().any(|parent| parent.density.is_some()) {
            return invalid("density", "this method takes nothing out; leave it away");
        }
        match self.rank {
            Some(Rank::Fixed(0)) => return invalid("rank", "at least 1 is needed"),
            Some(Rank::Energy(share)) if !(share > 0.0 && share <= 1.0) => {
                return invalid("energy", "a share above 0 and up to 1 is needed");
            }
            _ => {}
        }
        self.method.check(parents)
    }
}

impl Space {
    /// That the options mean something on factors.
    pub(super) fn check(self, semantics: Semantics, normalize: bool, lambda: f64) -> Result<()> {
        let reason = match self {
            Self::Factors if semantics == Semantics::Mergekit => {
                "only PEFT's semantics are known on factors; mergekit's are for products"
            }
            Self::Factors if normalize || lambda != 1.0 => {
                "PEFT neither normalises nor scales on factors; leave `normalize` and `lambda` away"
            }
            _ => return Ok(()),
        };
        Err(Error::InvalidArgument { name: "on", reason: reason.into() })
    }
}

impl Semantics {
    /// That who elects signs may be told how to divide.
    pub(super) fn check_normalize(self, normalize: Option<bool>) -> Result<()> {
        if self == Self::Mergekit || normalize.is_none() {
            return Ok(());
        }
        let reason = "PEFT divides by the number of those that agree; give `--semantics mergekit`";
        Err(Error::InvalidArgument { name: "normalize", reason: reason.into() })
    }
}

/// That every density is a share.
pub(super) fn check_density(density: f64, parents: &[Parent<'_>]) -> Result<()> {
    let own = parents.iter().filter_map(|parent| parent.density);
    if std::iter::once(density).chain(own).all(|density| density > 0.0 && density <= 1.0) {
        return Ok(());
    }
    let reason = "a share above 0 and up to 1 is needed".into();
    Err(Error::InvalidArgument { name: "density", reason })
}

/// That the result has a size.
pub(super) fn check_lambda(lambda: f64) -> Result<()> {
    if lambda.is_finite() {
        return Ok(());
    }
    Err(Error::InvalidArgument { name: "lambda", reason: "a finite number is needed".into() })
}

/// That one can divide by the sum of the weights.
pub(super) fn check_divisor(parents: &[Parent<'_>]) -> Result<()> {
    if parents.iter().map(|parent| parent.weight).sum::<f64>().abs() >= 1e-8 {
        return Ok(());
    }
    let reason = "they sum to 0, and the method divides by the sum; turn `normalize` off".into();
    Err(Error::InvalidArgument { name: "weights", reason })
}
