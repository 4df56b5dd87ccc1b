//! `Q3_K`: `w = (d sc) (q - 4)`, 8 blocks a superblock, q 3 bits, a signed 6-bit sc for 16 weights.
//! In the file bit j of byte i of the upper bits is that of weight i of block j; then the lower two
//! bits (`two_bits`); then sc + 32: byte i of the first 8 has the lower four bits of sc i and i + 8,
//! bits 2r, 2r + 1 of byte 8 + i are the upper ones of sc 4r + i.
//!
//! Shader: `shaders/quant/q3_k.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::rounding::{Block, Codes};
use super::two_bits::{self, TwoBits};
use super::two_levels::Scaled;
use super::{BLOCK, BlockFormat, copy_words, f16_bytes, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::Q3_K.block_bytes();
const CODES: Codes = Codes { low: -4.0, high: 3.0 };
/// Weights that share a sc.
const PART: usize = 16;
/// The least sc is its negative.
const MOST: u8 = 32;

pub(super) struct Format;

/// A superblock in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    upper: [u8; BLOCK],
    qs: TwoBits,
    scales: [u8; 12],
    d: [u8; 2],
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<BYTES>().0)
}

/// Where the bits of sc `i` lie: the byte and the shift of the lower four, and of the upper two.
const fn place(i: usize) -> [(usize, usize); 2] {
    [(i % 8, i / 8 * 4), (8 + i % 4, i / 4 * 2)]
}

impl Superblock {
    /// `None` for scales beyond the range of d.
    fn fit(superblock: &Block<'_, 256>) -> Option<Self> {
        let fitted = Scaled::<PART, 16>::search(CODES, MOST.into(), superblock);
        let codes = fitted.quantized(superblock);
        let codes = codes.as_flattened().as_chunks::<BLOCK>().0;
        let mut out = Self {
            upper: [0; BLOCK],
            qs: two_bits::join(codes),
            scales: [0; 12],
            d: f16_bytes(fitted.d)?,
        };
        for (j, codes) in codes.iter().enumerate() {
            out.upper.iter_mut().zip(codes).for_each(|(bits, q)| *bits |= (q >> 2) << j);
        }
        for (i, sc) in fitted.sc.into_iter().enumerate() {
            let sc = (sc + f32::from(MOST)) as u8;
            let [(low, by_low), (high, by_high)] = place(i);
            out.scales[low] |= (sc & 15) << by_low;
            out.scales[high] |= (sc >> 4) << by_high;
        }
        Some(out)
    }

    /// The 16 sc + 32.
    fn six_bits(&self) -> [u8; 16] {
        std::array::from_fn(|i| {
            let [(low, by_low), (high, by_high)] = place(i);
            (self.scales[low] >> by_low & 15) | ((self.scales[high] >> by_high & 3) << 4)
        })
    }
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q3_K
    }

    fn words_per_block(&self) -> usize {
        2
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 / 8 * 50
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let out = out.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<8>().0;
        for (block, out) in superblocks(blocks).iter().zip(out) {
            let (d, scales) = (f16_value(block.d), block.six_bits());
            for (j, (codes, out)) in two_bits::split(&block.qs).iter().zip(out).enumerate() {
                let upper = block.upper.map(|bits| (bits >> j & 1) << 2);
                for (i, w) in out.iter_mut().enumerate() {
                    let sc = f32::from(scales[2 * j + i / PART]) - f32::from(MOST);
                    *w = d * sc * (f32::from(codes[i] | upper[i]) - 4.0);
                }
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let superblock = |block| Superblock::fit(&block).map(bytemuck::cast::<_, [u8; BYTES]>);
        let superblocks = Block::of_rows(weights, importance).map(superblock);
        superblocks.collect::<Option<Vec<_>>>().map(|all| all.concat())
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs = superblocks(blocks).chunks(2).zip(words.as_chunks_mut::<16>().0.chunks_mut(2));
        for ((blocks, words), scales) in pairs.zip(scales.chunks_mut(25)) {
            let Some((d, rest)) = scales.split_first_mut() else { return };
            *d = 0;
            let parts = blocks.iter().zip(words).zip(rest.as_chunks_mut::<12>().0).zip([0, 16]);
            for (((block, words), scales), shift) in parts {
                *d |= u32::from(u16::from_le_bytes(block.d)) << shift;
                let (sc, upper) = scales.split_at_mut(4);
                copy_words(&block.six_bits(), sc);
                copy_words(&block.upper, upper);
                two_bits::repack(&block.qs, words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q3_k"
    }
}
