//! Spherical interpolation (Shoemake 1985), as mergekit has it: along the arc between what two
//! parents add to a module; several are taken in turn.
//!
//! The result lies in the span of the parents, so it is a sum with other weights, found from inner
//! products alone. On A and B apart it means little: they are known up to a change of basis only.

use serde::{Deserialize, Serialize};

use super::Parent;
use super::factored::{Term, inner};
use super::recipe::Space;
use super::rows::{Keep, Matrix, Mix, Rule, Sparse};
use super::site::{Merging, Site};
use crate::adapter::LoraModule;
use crate::error::{Error, Result};

/// Cosine from which two count as parallel, and the line between them is taken.
const PARALLEL: f64 = 0.9995;
/// Norm up to which a direction counts as none.
const NO_LENGTH: f64 = 1e-8;

/// A factor with its part of the scaling.
struct Scaled {
    values: Vec<f32>,
    columns: usize,
    scale: f64,
}

/// `sin((1-t) x) / sin(x) d_0 + sin(t x) / sin(x) d_1`, x the angle between `d_0` and `d_1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slerp {
    /// How far from the first parent to the second, in [0, 1]; `None` for the share of the
    /// weights: each parent in turn is met at `w_i / (w_0 + … + w_i)`.
    pub t: Option<f64>,
    /// What is turned.
    pub on: Space,
}

impl Slerp {
    pub(super) fn check(&self, parents: &[Parent<'_>]) -> Result<()> {
        let invalid =
            |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
        if parents.len() < 2 {
            return invalid("parents", "slerp goes from one adapter to another; give two or more");
        }
        if let Some(t) = self.t {
            return match parents {
                _ if !(0.0..=1.0).contains(&t) => invalid("t", "a number from 0 to 1 is needed"),
                [a, b] if a.weight == 1.0 && b.weight == 1.0 => Ok(()),
                [_, _] => invalid("t", "it stands for the weights; give one of the two"),
                _ => invalid("t", "it is for two parents; give weights for more"),
            };
        }
        let mut sum = parents[0].weight;
        for parent in &parents[1..] {
            sum += parent.weight;
            if sum.abs() < 1e-6 {
                return invalid(
                    "weights",
                    "they sum to 0 on the way, and slerp divides by the sum",
                );
            }
        }
        Ok(())
    }

    pub(super) fn merge<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        if self.on == Space::Factors {
            return self.on_factors(site);
        }
        let products = |x: &LoraModule, y: &LoraModule| inner(x, y);
        let weights = self.weights(site, &products);
        let term = |(part, weight): (&super::site::Part<'a>, f64)| Term {
            coefficient: weight,
            module: part.module,
        };
        Ok(Merging::Sum(site.parts.iter().zip(weights).map(term).collect()))
    }

    fn on_factors<'a>(&self, site: &Site<'a>) -> Result<Merging<'a>> {
        site.check_ranks()?;
        let product = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        let mix = |factor: &dyn Fn(&LoraModule) -> Scaled| {
            let weights = self.weights(site, &|x, y| {
                let (x, y) = (factor(x), factor(y));
                x.scale * y.scale * product(&x.values, &y.values)
            });
            let parents = site.parts.iter().zip(weights).map(|(part, weight)| {
                let Scaled { values, columns, scale } = factor(part.module);
                Sparse::new(Matrix::given(&values, columns), weight * scale, Keep::All)
            });
            Mix { parents: parents.collect(), rule: Rule::Sum { divisor: 1.0 }, lambda: 1.0 }
        };
        let root = |module: &LoraModule| f64::from(module.scaling).abs().sqrt();
        let a = mix(&|m| Scaled {
            values: m.a.clone(),
            columns: m.a.len() / m.rank,
            scale: root(m).copysign(f64::from(m.scaling)),
        });
        let b = mix(&|m| Scaled { values: m.b.clone(), columns: m.rank, scale: root(m) });
        Ok(Merging::Factors { a, b })
    }

    /// The weight of each part, from the inner products of all.
    fn weights(
        &self,
        site: &Site<'_>,
        inner: &dyn Fn(&LoraModule, &LoraModule) -> f64,
    ) -> Vec<f64> {
        let n = site.weights.len();
        // Parents that leave the module alone are zeros.
        let mut gram = vec![vec![0.0; n]; n];
        for x in &site.parts {
            for y in &site.parts {
                gram[x.parent][y.parent] = inner(x.module, y.module);
            }
        }
        let mut weights = vec![0.0; n];
        weights[0] = 1.0;
        let mut sum = site.weights[0];
        for next in 1..n {
            sum += site.weights[next];
            let t = self.t.unwrap_or(site.weights[next] / sum);
            let squares: f64 = (0..n).map(|i| weights[i] * row(&gram[i], &weights)).sum();
            let dot = row(&gram[next], &weights);
            let [before, after] = arc(t, dot, squares.max(0.0).sqrt(), gram[next][next].sqrt());
            weights.iter_mut().for_each(|weight| *weight *= before);
            weights[next] += after;
        }
        site.parts.iter().map(|part| weights[part.parent]).collect()
    }
}

fn row(gram: &[f64], weights: &[f64]) -> f64 {
    gram.iter().zip(weights).map(|(g, w)| g * w).sum()
}

/// The weights of both ends.
fn arc(t: f64, dot: f64, from: f64, to: f64) -> [f64; 2] {
    let length = |norm: f64| if norm > NO_LENGTH { norm } else { 1.0 };
    let cosine = (dot / length(from) / length(to)).clamp(-1.0, 1.0);
    if cosine.abs() > PARALLEL {
        return [1.0 - t, t];
    }
    let angle = cosine.acos();
    [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}
