//! Sums that do not depend on the order of what is added, nor on how it was split: fixed point in
//! 128 bits, steps of 2^-80, of which a number is rounded to eight.

use crate::parallel::wide;

/// One step.
const STEP: f64 = 1.0 / (1_u128 << 80) as f64;
/// A number is a multiple of 2^-26 and a rest, which is one of 2^-77.
const UPPER_BITS: u32 = 26;
const LOWER_BITS: u32 = 77;
/// 1.5 * 2^52: what is added to it loses its fraction, and stands in its last bits.
const ROUNDER: f64 = ((1_u64 << 52) + (1_u64 << 51)) as f64;
/// The same in multiples of 2^-26 and of 2^-77.
const UPPER: f64 = ROUNDER / (1_u64 << UPPER_BITS) as f64;
const LOWER: f64 = ROUNDER / (1_u128 << LOWER_BITS) as f64;

/// Largest magnitude of what is added: 2^23 numbers of this size still fit.
pub(super) const LARGEST: f64 = (1_u64 << 24) as f64;
/// Both parts of a number are below 2^51, so that 64 bits hold so many.
const UNCARRIED: u32 = 1 << 12;

/// A number's parts, each rounded to the nearest, as the bits of its sum with [`UPPER`] or
/// [`LOWER`]: what those bits are above the rounder's own is a whole number. Without a conversion,
/// so that several numbers at once go this way. Below [`LARGEST`], an f64 from 2^-24 up and an f32
/// from 2^-54 up are exact.
#[inline(always)]
fn parts(value: f64) -> [i64; 2] {
    let upper = value + UPPER;
    let lower = (value - (upper - UPPER)) + LOWER;
    [upper, lower].map(|part| part.to_bits().cast_signed())
}

/// What sums of so many parts say in steps.
fn steps([upper, lower]: [i64; 2], count: u32) -> i128 {
    let rounders = |of: f64| of.to_bits().cast_signed().wrapping_mul(count.into());
    let without = |sum: i64, of: f64| i128::from(sum.wrapping_sub(rounders(of)));
    (without(upper, UPPER) << (80 - UPPER_BITS)) + (without(lower, LOWER) << (80 - LOWER_BITS))
}

/// Sums of as many numbers as a tensor has.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    total: Vec<i128>,
    /// Parts that are not in the total yet.
    upper: Vec<i64>,
    lower: Vec<i64>,
    /// Numbers in those.
    uncarried: u32,
}

impl Sums {
    pub(super) fn new(n: usize) -> Self {
        Self { total: vec![0; n], upper: vec![0; n], lower: vec![0; n], uncarried: 0 }
    }

    /// How many numbers they are of.
    pub(super) fn len(&self) -> usize {
        self.total.len()
    }

    /// Adds `times` each number, which must be below [`LARGEST`]. Nothing where there are not as many
    /// numbers as sums.
    pub(super) fn add<T: Copy + Into<f64>>(&mut self, numbers: &[T], times: f64) {
        if numbers.len() != self.len() {
            return;
        }
        if self.uncarried == UNCARRIED {
            self.total = self.steps().collect();
            (self.upper, self.lower) = (vec![0; self.len()], vec![0; self.len()]);
            self.uncarried = 0;
        }
        self.uncarried += 1;
        let sums = self.upper.iter_mut().zip(&mut self.lower).zip(numbers);
        wide(|| {
            sums.for_each(|((upper, lower), number)| {
                let parts = parts((*number).into() * times);
                *upper = upper.wrapping_add(parts[0]);
                *lower = lower.wrapping_add(parts[1]);
            });
        });
    }

    /// Adds sums of others, in steps.
    pub(super) fn merge(&mut self, others: impl Iterator<Item = i128>) {
        self.total.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
    }

    /// Each sum, in steps.
    pub(super) fn steps(&self) -> impl Iterator<Item = i128> + '_ {
        let parts = self.upper.iter().zip(&self.lower);
        let parts = parts.map(|(upper, lower)| steps([*upper, *lower], self.uncarried));
        self.total.iter().zip(parts).map(|(total, parts)| total + parts)
    }

    /// Each sum, to the nearest f64.
    pub(super) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.steps().map(|sum| sum as f64 * STEP)
    }
}

/// One sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(pub(super) i128);

impl Sum {
    pub(super) fn add(&mut self, value: f64) {
        self.0 += steps(parts(value), 1);
    }

    pub(super) fn value(self) -> f64 {
        self.0 as f64 * STEP
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, Sum, Sums, UNCARRIED};

    #[test]
    fn numbers_are_exact_or_off_by_half_of_eight_steps() {
        let largest = LARGEST.next_down();
        let exact =
            [0.0, -0.0, 1.0, -1.5, 3e6, largest, -largest, 2_f64.powi(-77), 2_f64.powi(-24)];
        for value in exact.into_iter().chain([f64::from(1.1e-16_f32), 0.1, -0.3]) {
            let mut sum = Sum::default();
            sum.add(value);
            assert_eq!(sum.value(), value);
        }
        for value in [1e-20, -3.3e-22, 1.7e-9] {
            let mut sum = Sum::default();
            sum.add(value);
            assert!((sum.value() - value).abs() <= 2_f64.powi(-78), "{value}");
        }
    }

    #[test]
    fn carrying_changes_no_sum() {
        let value =
            |i: u32| f64::from(i % 97) * if i.is_multiple_of(2) { 1e-3 } else { -LARGEST / 100.0 };
        let (mut sums, mut sum) = (Sums::new(2), Sum::default());
        for i in 0..2 * UNCARRIED + 3 {
            sums.add(&[value(i), -value(i)], 1.0);
            sum.add(value(i));
        }
        assert_eq!(sums.steps().collect::<Vec<_>>(), [sum.0, -sum.0]);
        let mut half = Sums::new(2);
        half.merge(sums.steps());
        assert_eq!(half.values().collect::<Vec<_>>(), [sum.value(), -sum.value()]);
    }
}
