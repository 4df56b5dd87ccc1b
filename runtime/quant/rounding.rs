//! Scales for blocks of codes, by weighted least squares.
//!
//! For given codes the best scale is known; for a given scale, so are the codes. A search starts
//! from scales that put the largest weight on or beside the last code, goes on from the best of
//! them to and fro while that helps, and keeps the plain scale where that is better as it is
//! stored.

use std::ops::RangeInclusive;

use super::f16_bytes;

/// Steps to either side of the last code at which a search starts, in tenths of a code.
pub(super) const STEPS: RangeInclusive<i8> = -9..=9;
/// Times that a search goes on from its best start, at most.
const ROUNDS: usize = 4;
/// Sums made side by side, which lets them be vectors.
const LANES: usize = 8;

/// The scale and the minimum of a block: `w = d q + m`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Line {
    pub(super) d: f32,
    pub(super) m: f32,
}

impl Line {
    /// The values of `w = d q`.
    pub(super) fn through_zero(d: f32) -> Self {
        Self { d, m: 0.0 }
    }

    /// As two `f16` hold it.
    pub(super) fn stored(self) -> Self {
        Self { d: stored(self.d), m: stored(self.m) }
    }

    fn inverse(self) -> f32 {
        if self.d == 0.0 { 0.0 } else { 1.0 / self.d }
    }
}

/// The nearest `f16`; infinite beyond its range.
pub(super) fn stored(v: f32) -> f32 {
    half::f16::from_f32(v).to_f32()
}

/// A block's weights and what the square of an error of each costs.
pub(super) struct Block<'a, const N: usize> {
    pub(super) weights: &'a [f32; N],
    pub(super) costs: [f32; N],
}

impl<'a, const N: usize> Block<'a, N> {
    /// The blocks of whole rows. `importance` is of the weights of a row; without it all errors
    /// cost the same.
    pub(super) fn of_rows(
        weights: &'a [f32],
        importance: Option<&'a [f32]>,
    ) -> impl Iterator<Item = Self> {
        let importance = importance.map(|row| row.as_chunks::<N>().0).filter(|row| !row.is_empty());
        weights.as_chunks::<N>().0.iter().enumerate().map(move |(i, weights)| {
            let importance = importance.and_then(|row| row.get(i % row.len()));
            Self { weights, costs: costs(weights, importance) }
        })
    }

    /// Its parts, `COUNT` of `PART` weights each, which are all of it.
    pub(super) fn parts<const PART: usize, const COUNT: usize>(&self) -> [Block<'a, PART>; COUNT] {
        const { assert!(PART * COUNT == N) };
        let (weights, costs) = (self.weights.as_chunks().0, self.costs.as_chunks().0);
        std::array::from_fn(|i| Block { weights: &weights[i], costs: costs[i] })
    }

    /// Whether errors of some weights cost more than those of others.
    pub(super) fn is_weighted(&self) -> bool {
        self.costs.iter().any(|cost| *cost != self.costs[0])
    }

    /// The weight with the largest magnitude.
    pub(super) fn largest(&self) -> f32 {
        self.weights.iter().fold(0.0_f32, |most, &w| if w.abs() > most.abs() { w } else { most })
    }
}

/// With an importance, large weights cost more than small ones of the same column, as in llama.cpp.
fn costs<const N: usize>(weights: &[f32; N], importance: Option<&[f32; N]>) -> [f32; N] {
    let Some(importance) = importance else { return [1.0; N] };
    let mean = weights.iter().map(|w| w * w).sum::<f32>() / N as f32;
    std::array::from_fn(|i| importance[i] * (mean + weights[i] * weights[i]).sqrt())
}

/// The codes of a format, from `low` to `high`.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Codes {
    /// The nearest code of a weight on a line of which `inverse` is 1 / d.
    fn code(self, w: f32, line: Line, inverse: f32) -> f32 {
        nearest(((w - line.m) * inverse).clamp(self.low, self.high))
    }

    /// The nearest codes of `weights`, counted from the lowest.
    pub(super) fn codes<const N: usize>(self, weights: &[f32; N], line: Line) -> [u8; N] {
        let inverse = line.inverse();
        std::array::from_fn(|i| (self.code(weights[i], line, inverse) - self.low) as u8)
    }

    /// Rows in blocks of `N` of `w = d q`, d in f16; `pack` writes a block's codes. `None` for a d
    /// that f16 can't hold.
    pub(super) fn scaled_rows<const N: usize>(
        self,
        weights: &[f32],
        importance: Option<&[f32]>,
        pack: impl Fn(&[u8; N], &mut Vec<u8>),
    ) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(weights.len());
        for block in Block::of_rows(weights, importance) {
            let d = self.scale(&block, stored);
            out.extend(f16_bytes(d)?);
            pack(&self.codes(block.weights, Line::through_zero(d)), &mut out);
        }
        Some(out)
    }

    /// As [`Self::scaled_rows`], of `w = d q + m` in blocks of `N`, d and m in f16.
    pub(super) fn shifted_rows<const N: usize>(
        self,
        weights: &[f32],
        importance: Option<&[f32]>,
        pack: impl Fn(&[u8; N], &mut Vec<u8>),
    ) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(weights.len());
        for block in Block::of_rows(weights, importance) {
            let line = self.line(&block, f32::INFINITY, Line::stored);
            out.extend(f16_bytes(line.d)?);
            out.extend(f16_bytes(line.m)?);
            pack(&self.codes(block.weights, line), &mut out);
        }
        Some(out)
    }

    /// What the nearest codes on a line cost.
    pub(super) fn cost<const N: usize>(self, block: &Block<'_, N>, line: Line) -> f32 {
        let inverse = line.inverse();
        let [cost] = sums::<N, 1>(|i| {
            let w = block.weights[i];
            let error = w - (line.d * self.code(w, line, inverse) + line.m);
            [block.costs[i] * error * error]
        });
        cost
    }

    /// The scale for `w = d q` that costs least, of those that a search meets, once `stored`.
    pub(super) fn scale<const N: usize>(
        self,
        block: &Block<'_, N>,
        stored: impl Fn(f32) -> f32,
    ) -> f32 {
        let largest = block.largest();
        if largest == 0.0 {
            return 0.0;
        }
        let ends = [self.low, self.high];
        let starts = ends.into_iter().flat_map(|end| STEPS.map(move |step| beside(end, step)));
        let better = |a: Fit, b: Fit| if b.gain > a.gain { b } else { a };
        let mut best =
            starts.map(|end| self.fit(block, largest / end)).fold(Fit::default(), better);
        for _ in 0..ROUNDS {
            let next = self.fit(block, best.d);
            if next.gain <= best.gain {
                break;
            }
            best = next;
        }
        let [plain, found] = [largest / self.low, best.d].map(stored);
        let cost = |d| self.cost(block, Line::through_zero(d));
        if cost(found) < cost(plain) { found } else { plain }
    }

    /// The best scale for the codes that are nearest at scale `d`.
    fn fit<const N: usize>(self, block: &Block<'_, N>, d: f32) -> Fit {
        let line = Line::through_zero(d);
        let inverse = line.inverse();
        let [product, squares] = sums::<N, 2>(|i| {
            let q = self.code(block.weights[i], line, inverse);
            [block.costs[i] * q * block.weights[i], block.costs[i] * q * q]
        });
        // Where nothing has a cost, no code has a best scale.
        let d = if squares > 0.0 { product / squares } else { d };
        Fit { d, gain: product * d }
    }

    /// The line, for codes from 0 on, that costs least of those that a search meets, once `stored`;
    /// with a minimum of at most `most`.
    pub(super) fn line<const N: usize>(
        self,
        block: &Block<'_, N>,
        most: f32,
        stored: impl Fn(Line) -> Line,
    ) -> Line {
        let min = block.weights.iter().copied().fold(most, f32::min);
        let max = block.weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let plain = stored(Line { d: (max - min) / self.high, m: min });
        if max <= min {
            return plain;
        }
        let cost = |line| (self.cost(block, line), line);
        let better = |a: (f32, Line), b: (f32, Line)| if b.0 < a.0 { b } else { a };
        let starts = STEPS.map(|step| Line { d: (max - min) / beside(self.high, step), m: min });
        let mut best = starts
            .map(|start| cost(stored(self.fit_line(block, start, most))))
            .fold(cost(plain), better);
        for _ in 0..ROUNDS {
            let next = cost(stored(self.fit_line(block, best.1, most)));
            if next.0 >= best.0 || next.0.is_nan() {
                break;
            }
            best = next;
        }
        best.1
    }

    /// The best line for the codes that are nearest on another.
    fn fit_line<const N: usize>(self, block: &Block<'_, N>, line: Line, most: f32) -> Line {
        let inverse = line.inverse();
        let [c, cq, cqq, cw, cqw] = sums::<N, 5>(|i| {
            let (w, c) = (block.weights[i], block.costs[i]);
            let q = self.code(w, line, inverse);
            [c, c * q, c * q * q, c * w, c * q * w]
        })
        .map(f64::from);
        let determinant = c * cqq - cq * cq;
        let m = (cqq * cw - cq * cqw) / determinant;
        match () {
            // All codes are the same, or nothing has a cost.
            () if determinant <= 0.0 => line,
            () if m > f64::from(most) => {
                let m = f64::from(most);
                Line { d: ((cqw - m * cq) / cqq) as f32, m: most }
            }
            () => Line { d: ((c * cqw - cq * cw) / determinant) as f32, m: m as f32 },
        }
    }
}

/// A scale, and how much less its codes cost than zeros.
#[derive(Clone, Copy, Default)]
struct Fit {
    d: f32,
    gain: f32,
}

/// Some tenths above a code.
pub(super) fn beside(code: f32, tenths: i8) -> f32 {
    code + 0.1 * f32::from(tenths)
}

/// To the nearest integer, ties to even, of numbers far below 2^22: what the processor does to a
/// sum that has no room for a fraction. `round_ties_even` is a call where the target is old.
fn nearest(v: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    (v + NO_FRACTION) - NO_FRACTION
}

/// Sums over 0 to `N` - 1, a multiple of [`LANES`].
fn sums<const N: usize, const S: usize>(of: impl Fn(usize) -> [f32; S]) -> [f32; S] {
    let mut lanes = [[0.0_f32; LANES]; S];
    for start in (0..N).step_by(LANES) {
        for lane in 0..LANES {
            let terms = of(start + lane);
            for (lanes, term) in lanes.iter_mut().zip(terms) {
                lanes[lane] += term;
            }
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}
