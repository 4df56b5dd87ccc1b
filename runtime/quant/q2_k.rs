//! `Q2_K`: `w = (d sc) q - dmin m`, 8 blocks a superblock, q 2 bits, a byte for 16 weights: sc
//! (low) and m (high), then the codes (`two_bits`).
//!
//! Shader: `shaders/quant/q2_k.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::rounding::{Block, Codes};
use super::two_bits::{self, TwoBits};
use super::two_levels::Shifted;
use super::{BLOCK, BlockFormat, copy_words, f16_bytes, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::Q2_K.block_bytes();
const CODES: Codes = Codes { low: 0.0, high: 3.0 };
/// Weights that share a sc and a m.
const PART: usize = 16;
/// The largest sc and m.
const MOST: f32 = 15.0;

pub(super) struct Format;

/// A superblock in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    scales: [u8; 16],
    qs: TwoBits,
    d: [u8; 2],
    dmin: [u8; 2],
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<BYTES>().0)
}

impl Superblock {
    /// `None` for scales beyond the range of d.
    fn fit(superblock: &Block<'_, 256>) -> Option<Self> {
        let fitted = Shifted::<PART, 16>::search(CODES, MOST, superblock)?;
        let codes = fitted.quantized(superblock);
        Some(Self {
            scales: std::array::from_fn(|i| fitted.sc[i] as u8 | ((fitted.m[i] as u8) << 4)),
            qs: two_bits::join(codes.as_flattened().as_chunks::<BLOCK>().0),
            d: f16_bytes(fitted.d)?,
            dmin: f16_bytes(fitted.dmin)?,
        })
    }
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q2_K
    }

    fn words_per_block(&self) -> usize {
        2
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 / 8 * 20
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let out = out.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<8>().0;
        for (block, out) in superblocks(blocks).iter().zip(out) {
            let (d, dmin) = (f16_value(block.d), f16_value(block.dmin));
            for (j, (codes, out)) in two_bits::split(&block.qs).iter().zip(out).enumerate() {
                for (i, (w, q)) in out.iter_mut().zip(codes).enumerate() {
                    let scales = block.scales[2 * j + i / PART];
                    *w = d * f32::from(scales & 15) * f32::from(*q) - dmin * f32::from(scales >> 4);
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
        let out = words.as_chunks_mut().0.iter_mut().zip(scales.as_chunks_mut::<5>().0);
        for (block, (words, [d, scales @ ..])) in superblocks(blocks).iter().zip(out) {
            let ([d0, d1], [m0, m1]) = (block.d, block.dmin);
            *d = u32::from_le_bytes([d0, d1, m0, m1]);
            copy_words(&block.scales, scales);
            two_bits::repack(&block.qs, words);
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q2_k"
    }
}
