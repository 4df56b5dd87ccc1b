//! Scales in two levels: a superblock's parts have whole numbers of a few bits, in units that its
//! halves give. What is fitted are values that the file can hold.

use super::rounding::{Block, Codes, Line, stored};

/// Times that the units are fitted again.
const ROUNDS: usize = 2;

/// Scales of `w = (d sc) q` in the making, `COUNT` parts of `PART` weights, sc signed.
#[derive(Clone, Copy)]
pub(super) struct Scaled<const PART: usize, const COUNT: usize> {
    codes: Codes,
    /// The least sc is its negative, the largest one less.
    most: f32,
    pub(super) d: f32,
    pub(super) sc: [f32; COUNT],
}

impl<const PART: usize, const COUNT: usize> Scaled<PART, COUNT> {
    /// The scales that cost least of those that a search meets; their d may be beyond its range.
    pub(super) fn search(codes: Codes, most: f32, superblock: &Block<'_, 256>) -> Self {
        let parts = superblock.parts::<PART, COUNT>();
        let plain = parts.each_ref().map(|part| part.largest() / codes.low);
        let found = parts.each_ref().map(|part| codes.scale(part, |d| d));
        let [plain, found] = [plain, found].map(|scales| Self::rounded(codes, most, scales));
        let mut best = plain;
        let (mut least, mut next) = (best.cost(&parts), found.nudged(&parts));
        for _ in 0..=ROUNDS {
            let cost = next.cost(&parts);
            if cost >= least || cost.is_nan() {
                break;
            }
            (best, least) = (next, cost);
            next = best.refitted(&parts).nudged(&parts);
        }
        best
    }

    /// The nearest codes of each part, counted from the lowest.
    pub(super) fn quantized(&self, superblock: &Block<'_, 256>) -> [[u8; PART]; COUNT] {
        let parts = superblock.weights.as_chunks().0;
        std::array::from_fn(|i| self.codes.codes(&parts[i], self.line(i)))
    }

    /// The nearest to `scales`; the largest becomes the least sc, of which there is no positive.
    fn rounded(codes: Codes, most: f32, scales: [f32; COUNT]) -> Self {
        let largest = scales.iter().fold(0.0_f32, |a, &b| if b.abs() > a.abs() { b } else { a });
        let d = stored(largest / -most);
        let sc =
            |scale: f32| if d == 0.0 { 0.0 } else { (scale / d).round().clamp(-most, most - 1.0) };
        Self { codes, most, d, sc: scales.map(sc) }
    }

    fn line(&self, i: usize) -> Line {
        Line::through_zero(self.d * self.sc[i])
    }

    fn cost(&self, parts: &[Block<'_, PART>; COUNT]) -> f32 {
        parts.iter().enumerate().map(|(i, part)| self.codes.cost(part, self.line(i))).sum()
    }

    /// With each sc one up or down where that costs less.
    fn nudged(mut self, parts: &[Block<'_, PART>; COUNT]) -> Self {
        for (i, part) in parts.iter().enumerate() {
            let near = [0.0, -1.0, 1.0].map(|by| {
                let sc = (self.sc[i] + by).clamp(-self.most, self.most - 1.0);
                (self.codes.cost(part, Line::through_zero(self.d * sc)), sc)
            });
            (_, self.sc[i]) = near.into_iter().fold(near[0], |a, b| if b.0 < a.0 { b } else { a });
        }
        self
    }

    /// With the best d for its codes.
    fn refitted(mut self, parts: &[Block<'_, PART>; COUNT]) -> Self {
        // The costs' sums of u w and u u, of `w = d u`.
        let (mut uw, mut uu) = (0.0, 0.0);
        for (i, part) in parts.iter().enumerate() {
            let codes = self.codes.codes(part.weights, self.line(i));
            for ((w, c), q) in part.weights.iter().zip(&part.costs).zip(codes) {
                let u = f64::from(self.sc[i] * (f32::from(q) + self.codes.low));
                uw += f64::from(*c) * u * f64::from(*w);
                uu += f64::from(*c) * u * u;
            }
        }
        if uu > 0.0 {
            self.d = stored((uw / uu) as f32);
        }
        self
    }
}

/// Scales of `w = (d sc) q - dmin m` in the making, `COUNT` parts of `PART` weights.
#[derive(Clone, Copy)]
pub(super) struct Shifted<const PART: usize, const COUNT: usize> {
    codes: Codes,
    /// The largest sc and m.
    most: f32,
    pub(super) d: f32,
    pub(super) dmin: f32,
    pub(super) sc: [f32; COUNT],
    pub(super) m: [f32; COUNT],
}

impl<const PART: usize, const COUNT: usize> Shifted<PART, COUNT> {
    /// The scales that cost least of those that a search meets; `None` beyond the range of d.
    pub(super) fn search(codes: Codes, most: f32, superblock: &Block<'_, 256>) -> Option<Self> {
        let parts = superblock.parts::<PART, COUNT>();
        let plain = parts.each_ref().map(|part| {
            let min = part.weights.iter().copied().fold(0.0, f32::min);
            let max = part.weights.iter().copied().fold(0.0, f32::max);
            Line { d: (max - min) / codes.high, m: min }
        });
        let found = parts.each_ref().map(|part| codes.line(part, 0.0, |line| line));
        let [mut best, found] = [plain, found].map(|lines| Self::rounded(codes, most, lines));
        let (mut least, mut next) = (best.cost(&parts), found.nudged(&parts));
        for _ in 0..=ROUNDS {
            let cost = next.cost(&parts);
            if cost >= least || cost.is_nan() {
                break;
            }
            (best, least) = (next, cost);
            next = best.refitted(&parts).nudged(&parts);
        }
        (best.d.is_finite() && best.dmin.is_finite()).then_some(best)
    }

    /// The nearest codes of each part.
    pub(super) fn quantized(&self, superblock: &Block<'_, 256>) -> [[u8; PART]; COUNT] {
        let parts = superblock.weights.as_chunks().0;
        std::array::from_fn(|i| self.codes.codes(&parts[i], self.line(i)))
    }

    /// The nearest to `lines` whose minima are at most 0.
    fn rounded(codes: Codes, most: f32, lines: [Line; COUNT]) -> Self {
        let largest = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0.0_f32, f32::max);
        let (d, dmin) =
            (stored(largest(|line| line.d) / most), stored(largest(|line| -line.m) / most));
        let few_bits = |v: f32, unit: f32| {
            if unit == 0.0 { 0.0 } else { (v / unit).round().clamp(0.0, most) }
        };
        Self {
            codes,
            most,
            d,
            dmin,
            sc: lines.map(|line| few_bits(line.d, d)),
            m: lines.map(|line| few_bits(-line.m, dmin)),
        }
    }

    fn line(&self, i: usize) -> Line {
        Line { d: self.d * self.sc[i], m: -(self.dmin * self.m[i]) }
    }

    fn cost(&self, parts: &[Block<'_, PART>; COUNT]) -> f32 {
        parts.iter().enumerate().map(|(i, part)| self.codes.cost(part, self.line(i))).sum()
    }

    /// With each part's sc and m one up or down where that costs less.
    fn nudged(mut self, parts: &[Block<'_, PART>; COUNT]) -> Self {
        for (i, part) in parts.iter().enumerate() {
            let (sc, m) = (self.sc[i], self.m[i]);
            let mut least = self.codes.cost(part, self.line(i));
            let mut best = (sc, m);
            for (by_sc, by_m) in
                [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
            {
                let near = |v: f32, by: i8| (v + f32::from(by)).clamp(0.0, self.most);
                (self.sc[i], self.m[i]) = (near(sc, by_sc), near(m, by_m));
                let cost = self.codes.cost(part, self.line(i));
                if cost < least {
                    (least, best) = (cost, (self.sc[i], self.m[i]));
                }
            }
            (self.sc[i], self.m[i]) = best;
        }
        self
    }

    /// With the best d and dmin for its codes.
    fn refitted(mut self, parts: &[Block<'_, PART>; COUNT]) -> Self {
        // Of `w = d u - dmin v`, the costs' sums of u u, u v, v v, u w and v w.
        let (mut uu, mut uv, mut vv, mut uw, mut vw) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, part) in parts.iter().enumerate() {
            let (sc, v) = (self.sc[i], f64::from(self.m[i]));
            let quantized = self.codes.codes(part.weights, self.line(i));
            for ((w, c), q) in part.weights.iter().zip(&part.costs).zip(quantized) {
                let (w, c, u) = (f64::from(*w), f64::from(*c), f64::from(sc * f32::from(q)));
                uu += c * u * u;
                uv += c * u * v;
                vv += c * v * v;
                uw += c * u * w;
                vw += c * v * w;
            }
        }
        let determinant = uu * vv - uv * uv;
        if determinant > 0.0 {
            self.d = stored(((uw * vv - vw * uv) / determinant) as f32);
            self.dmin = stored(((uw * uv - vw * uu) / determinant) as f32);
        } else if uu > 0.0 {
            self.d = stored((uw / uu) as f32);
        }
        self
    }
}
