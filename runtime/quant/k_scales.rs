//! The scales of `Q4_K` and `Q5_K`: `w = (d sc) q - dmin m` in 8 blocks, each with a 6-bit sc and
//! m.

use bytemuck::{Pod, Zeroable};

use super::rounding::{Block, Codes, Line, stored};
use super::{BLOCK, f16_value};

/// The largest sc and m.
const MOST: f32 = 63.0;
/// Times that d and dmin are fitted again.
const ROUNDS: usize = 2;

/// As the file has them. Blocks 4 to 7 keep their upper two bits on top of those of blocks 0 to 3.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Scales {
    d: [u8; 2],
    dmin: [u8; 2],
    packed: [u8; 12],
}

impl Scales {
    /// The 6-bit sc and m of block `j` < 8.
    fn six_bits(&self, j: usize) -> (u8, u8) {
        let p = &self.packed;
        if j < 4 {
            (p[j] & 63, p[j + 4] & 63)
        } else {
            ((p[j + 4] & 15) | (p[j - 4] >> 6 << 4), (p[j + 4] >> 4) | (p[j] >> 6 << 4))
        }
    }

    /// `(d sc, dmin m)` of each block.
    pub(super) fn values(&self) -> [(f32, f32); 8] {
        let (d, dmin) = (f16_value(self.d), f16_value(self.dmin));
        std::array::from_fn(|j| {
            let (sc, m) = self.six_bits(j);
            (d * f32::from(sc), dmin * f32::from(m))
        })
    }

    /// As `shaders/quant/k_scales.wgsl` reads them.
    pub(super) fn words(&self) -> [u32; 4] {
        let ([d0, d1], [m0, m1]) = (self.d, self.dmin);
        let mut words = [u32::from_le_bytes([d0, d1, m0, m1]), 0, 0, 0];
        for j in 0..8 {
            let (sc, m) = self.six_bits(j);
            let (sc, m) = (u32::from(sc), u32::from(m));
            words[1] |= (sc & 15) << (4 * j);
            words[2] |= (m & 15) << (4 * j);
            words[3] |= ((sc >> 4) | (m >> 4 << 16)) << (2 * j);
        }
        words
    }

    /// Scales for a superblock, and the nearest codes on them; `None` beyond the range of d.
    pub(super) fn fit(
        codes: Codes,
        superblock: &Block<'_, 256>,
    ) -> Option<(Self, [[u8; BLOCK]; 8])> {
        let fitted = Fitted::search(codes, superblock);
        if !(fitted.d.is_finite() && fitted.dmin.is_finite()) {
            return None;
        }
        let mut quantized = [[0; BLOCK]; 8];
        for (j, (quantized, weights)) in
            quantized.iter_mut().zip(superblock.weights.as_chunks().0).enumerate()
        {
            *quantized = codes.codes(weights, fitted.line(j));
        }
        Some((fitted.pack(), quantized))
    }
}

/// Scales in the making; all are values that the file can hold.
#[derive(Clone, Copy)]
struct Fitted {
    d: f32,
    dmin: f32,
    sc: [f32; 8],
    m: [f32; 8],
}

impl Fitted {
    fn search(codes: Codes, superblock: &Block<'_, 256>) -> Self {
        let blocks = superblock.parts::<BLOCK, 8>();
        let plain = blocks.each_ref().map(|block| {
            let min = block.weights.iter().copied().fold(0.0, f32::min);
            let max = block.weights.iter().copied().fold(0.0, f32::max);
            Line { d: (max - min) / codes.high, m: min }
        });
        let found = blocks.each_ref().map(|block| codes.line(block, 0.0, |line| line));
        let starts = [Self::rounded(plain), Self::rounded(found).nudged(codes, &blocks)];
        let mut best = starts[0];
        let mut least = best.cost(codes, &blocks);
        let mut next = starts[1];
        for _ in 0..=ROUNDS {
            let cost = next.cost(codes, &blocks);
            if cost >= least || cost.is_nan() {
                break;
            }
            (best, least) = (next, cost);
            next = best.refitted(codes, &blocks).nudged(codes, &blocks);
        }
        best
    }

    /// The nearest to `lines` whose minima are at most 0.
    fn rounded(lines: [Line; 8]) -> Self {
        let largest = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0.0_f32, f32::max);
        let (d, dmin) =
            (stored(largest(|line| line.d) / MOST), stored(largest(|line| -line.m) / MOST));
        let six_bits = |v: f32, unit: f32| {
            if unit == 0.0 { 0.0 } else { (v / unit).round().clamp(0.0, MOST) }
        };
        Self {
            d,
            dmin,
            sc: lines.map(|line| six_bits(line.d, d)),
            m: lines.map(|line| six_bits(-line.m, dmin)),
        }
    }

    fn line(&self, j: usize) -> Line {
        Line { d: self.d * self.sc[j], m: -(self.dmin * self.m[j]) }
    }

    fn cost(&self, codes: Codes, blocks: &[Block<'_, BLOCK>; 8]) -> f32 {
        blocks.iter().enumerate().map(|(j, block)| codes.cost(block, self.line(j))).sum()
    }

    /// With each block's sc and m one up or down where that costs less.
    fn nudged(mut self, codes: Codes, blocks: &[Block<'_, BLOCK>; 8]) -> Self {
        for (j, block) in blocks.iter().enumerate() {
            let (sc, m) = (self.sc[j], self.m[j]);
            let mut least = codes.cost(block, self.line(j));
            let mut best = (sc, m);
            for (by_sc, by_m) in
                [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
            {
                let near = |v: f32, by: i8| (v + f32::from(by)).clamp(0.0, MOST);
                (self.sc[j], self.m[j]) = (near(sc, by_sc), near(m, by_m));
                let cost = codes.cost(block, self.line(j));
                if cost < least {
                    (least, best) = (cost, (self.sc[j], self.m[j]));
                }
            }
            (self.sc[j], self.m[j]) = best;
        }
        self
    }

    /// With the best d and dmin for its codes.
    fn refitted(mut self, codes: Codes, blocks: &[Block<'_, BLOCK>; 8]) -> Self {
        // Of `w = d u - dmin v`, the costs' sums of u u, u v, v v, u w and v w.
        let (mut uu, mut uv, mut vv, mut uw, mut vw) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (j, block) in blocks.iter().enumerate() {
            let (sc, v) = (self.sc[j], f64::from(self.m[j]));
            let quantized = codes.codes(block.weights, self.line(j));
            for ((w, c), q) in block.weights.iter().zip(&block.costs).zip(quantized) {
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

    fn pack(&self) -> Scales {
        let mut packed = [0; 12];
        for j in 0..4 {
            let [sc, m] = [self.sc[j], self.m[j]].map(|v| v as u8);
            let [upper_sc, upper_m] = [self.sc[j + 4], self.m[j + 4]].map(|v| v as u8);
            packed[j] = sc | (upper_sc >> 4 << 6);
            packed[j + 4] = m | (upper_m >> 4 << 6);
            packed[j + 8] = (upper_sc & 15) | (upper_m << 4);
        }
        let bytes = |v| half::f16::from_f32(v).to_le_bytes();
        Scales { d: bytes(self.d), dmin: bytes(self.dmin), packed }
    }
}
