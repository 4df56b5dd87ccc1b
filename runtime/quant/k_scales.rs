//! The scales of `Q4_K` and `Q5_K`: `w = (d sc) q - dmin m` in 8 blocks, each with a 6-bit sc and
//! m.

use bytemuck::{Pod, Zeroable};

use super::rounding::{Block, Codes};
use super::two_levels::Shifted;
use super::{BLOCK, f16_value};

/// The largest sc and m.
const MOST: f32 = 63.0;

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
        let fitted = Shifted::search(codes, MOST, superblock)?;
        Some((Self::of(&fitted), fitted.quantized(superblock)))
    }

    fn of(fitted: &Shifted<BLOCK, 8>) -> Self {
        let mut packed = [0; 12];
        for j in 0..4 {
            let [sc, m] = [fitted.sc[j], fitted.m[j]].map(|v| v as u8);
            let [upper_sc, upper_m] = [fitted.sc[j + 4], fitted.m[j + 4]].map(|v| v as u8);
            packed[j] = sc | (upper_sc >> 4 << 6);
            packed[j + 4] = m | (upper_m >> 4 << 6);
            packed[j + 8] = (upper_sc & 15) | (upper_m << 4);
        }
        let bytes = |v| half::f16::from_f32(v).to_le_bytes();
        Self { d: bytes(fitted.d), dmin: bytes(fitted.dmin), packed }
    }
}
