//! `Q4_K`: `w = (d sc) q - dmin m`, 8 blocks a superblock, each with a 6-bit sc and m. Nibbles in
//! the file: 32 bytes hold block 2c (low) and 2c + 1 (high).
//!
//! Shader: `shaders/quant/q4_k.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::{BLOCK, BlockFormat, f16_value, split_nibbles};
use crate::dtype::DType;

pub(super) struct Format;

/// A superblock in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    scales: Scales,
    qs: [u8; 128],
}

/// The scales of 8 blocks in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Scales {
    d: [u8; 2],
    dmin: [u8; 2],
    packed: [u8; 12],
}

impl Scales {
    /// The 6-bit sc and m of block `j` < 8. Blocks 4 to 7 keep their upper two bits on top of those
    /// of blocks 0 to 3.
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
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<{ DType::Q4_K.block_bytes() }>().0)
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q4_K
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 / 8 * 16
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in superblocks(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
            let scales = block.scales.values();
            for (j, (out, (d, m))) in
                out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(scales).enumerate()
            {
                let qs = block.qs.iter().skip(j / 2 * BLOCK);
                for (w, q) in out.iter_mut().zip(qs) {
                    *w = d * f32::from(q >> (j % 2 * 4) & 15) - m;
                }
            }
        }
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let out =
            words.as_chunks_mut().0.as_chunks_mut::<8>().0.iter_mut().zip(scales.as_chunks_mut().0);
        for (block, (words, scales)) in superblocks(blocks).iter().zip(out) {
            *scales = block.scales.words();
            for (qs, [low, high]) in block.qs.chunks(BLOCK).zip(words.as_chunks_mut().0) {
                split_nibbles(qs, low, high);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q4_k"
    }

    fn half_wgsl(&self) -> Vec<&'static str> {
        vec!["quant/half/q4_k"]
    }
}
