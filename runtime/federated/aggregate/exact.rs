//! Sums that do not depend on the order of what is added, nor on how it was split: fixed point in
//! 128 bits, steps of 2^-80.

/// One step.
const STEP: f64 = 1.0 / (1_u128 << 80) as f64;
/// Where the upper part of a number is cut off: 2^-32.
const UPPER: f64 = 1.0 / (1_u64 << 32) as f64;

/// Largest magnitude of what is added: 2^23 numbers of this size still fit.
pub(super) const LARGEST: f64 = (1_u64 << 24) as f64;

/// A number rounded toward zero to a multiple of 2^-80; below [`LARGEST`], an f64 from 2^-27 up
/// and an f32 from 2^-57 up are exact.
fn fixed(value: f64) -> i128 {
    // Two conversions to 64 bits, which processors have, in place of one to 128, which they lack.
    let upper = (value / UPPER) as i64;
    let rest = value - upper as f64 * UPPER;
    let lower = (rest / STEP) as i64;
    (i128::from(upper) << 48) + i128::from(lower)
}

/// Sums of as many numbers as a tensor has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums(pub(super) Vec<i128>);

impl Sums {
    pub(super) fn new(n: usize) -> Self {
        Self(vec![0; n])
    }

    /// Adds numbers whose magnitudes must be below [`LARGEST`].
    pub(super) fn add(&mut self, values: impl Iterator<Item = f64>) {
        self.0.iter_mut().zip(values).for_each(|(sum, value)| *sum += fixed(value));
    }

    /// Adds the sums of others.
    pub(super) fn merge(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(sum, other)| *sum += other);
    }

    /// Each sum, to the nearest f64.
    pub(super) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(|sum| *sum as f64 * STEP)
    }
}

/// One sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(pub(super) i128);

impl Sum {
    pub(super) fn add(&mut self, value: f64) {
        self.0 += fixed(value);
    }

    pub(super) fn value(self) -> f64 {
        self.0 as f64 * STEP
    }
}
