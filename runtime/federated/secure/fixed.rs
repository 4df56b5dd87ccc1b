//! Numbers as whole steps modulo 2^32, so that sums of a cohort can neither overflow nor depend on
//! an order.

use crate::error::{Error, Result};
use crate::federated::invalid;

/// How a cohort's numbers become steps. The same for everyone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedPoint {
    bound: f64,
    most_weight: u32,
    step: f64,
}

/// What a sum of steps says.
#[derive(Clone, Debug, PartialEq)]
pub struct Mean {
    /// The weighted mean of the values.
    pub values: Vec<f32>,
    /// The weights together.
    pub weight: u64,
}

impl FixedPoint {
    /// For values of size up to `bound` (a clip norm bounds every value), weights up to
    /// `most_weight`, and `members`: the finest step with which their sum stays below 2^31. At a
    /// bound of 1, weight 16 and 50 members it is 3.7e-7.
    ///
    /// Errors: `InvalidArgument` for a bound that is not above 0, or more than 2^31 weights together.
    pub fn new(bound: f64, most_weight: u32, members: usize) -> Result<Self> {
        let bad = |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
        if !(bound > 0.0 && bound.is_finite()) {
            return bad("bound", "above 0: the round's clip norm");
        }
        let together = u64::from(most_weight) * members as u64;
        if most_weight == 0 || together == 0 || together > 1 << 24 {
            return bad("most_weight", "1 to 2^24 over the number of members");
        }
        // One half step of each member is left for rounding.
        let steps = f64::from(i32::MAX) - members as f64;
        Ok(Self { bound, most_weight, step: bound * together as f64 / steps })
    }

    /// The difference that one step makes, in a value of weight 1.
    pub fn step(&self) -> f64 {
        self.step
    }

    /// Words of `values` times `weight`, and of the weight.
    ///
    /// Errors: `InvalidDelta` for a value beyond the bound or that is none; `InvalidArgument` for a
    /// weight of 0 or beyond the most.
    pub fn encode(&self, values: &[f32], weight: u32) -> Result<Vec<u32>> {
        if weight == 0 || weight > self.most_weight {
            let reason = format!("1 to {}", self.most_weight);
            return Err(Error::InvalidArgument { name: "weight", reason });
        }
        let word = |value: &f32| {
            let value = f64::from(*value);
            if value.abs() > self.bound || value.is_nan() {
                return Err(invalid("values", "one is beyond the bound; clip before"));
            }
            Ok((value * f64::from(weight) / self.step).round() as i32 as u32)
        };
        values.iter().map(word).chain([Ok(weight)]).collect()
    }

    /// The mean that a sum of such words says.
    ///
    /// Errors: `InvalidDelta` for no words, or no weight.
    pub fn decode(&self, sum: &[u32]) -> Result<Mean> {
        let (weight, words) = match sum.split_last() {
            Some((weight, words)) if *weight > 0 => (*weight, words),
            _ => return Err(invalid("sum", "it has no weight")),
        };
        let value =
            |word: &u32| (f64::from(word.cast_signed()) * self.step / f64::from(weight)) as f32;
        Ok(Mean { values: words.iter().map(value).collect(), weight: weight.into() })
    }
}
