//! `TQ2_0`: `w = d (q - 1)`, 256 weights a block, q 0, 1 or 2: the ternary weights of `BitNet`
//! b1.58 (Ma et al. 2024, arXiv:2402.17764). A block in the file: 2 x 32 bytes, bits 2r, 2r + 1 of
//! byte i those of weight 32 r + i of 128; then f16 d.
//!
//! Shader: `shaders/quant/tq2_0.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::rounding::{Block, Codes, Line, stored};
use super::two_bits::{self, TwoBits};
use super::{BLOCK, BlockFormat, f16_bytes, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::TQ2_0.block_bytes();
const CODES: Codes = Codes { low: -1.0, high: 1.0 };

pub(super) struct Format;

/// A block in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    qs: TwoBits,
    d: [u8; 2],
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<BYTES>().0)
}

impl Superblock {
    /// `None` for a scale beyond the range of d.
    fn fit(block: &Block<'_, 256>) -> Option<Self> {
        let d = CODES.scale(block, stored);
        let codes = CODES.codes(block.weights, Line::through_zero(d));
        let qs = two_bits::join(codes.as_chunks().0);
        Some(Self { qs, d: f16_bytes(d)? })
    }
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::TQ2_0
    }

    fn words_per_block(&self) -> usize {
        2
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * BLOCK / 256 * 2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let out = out.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<8>().0;
        for (block, out) in superblocks(blocks).iter().zip(out) {
            let d = f16_value(block.d);
            for (codes, out) in two_bits::split(&block.qs).iter().zip(out) {
                out.iter_mut().zip(codes).for_each(|(w, q)| *w = d * (f32::from(*q) - 1.0));
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
        for ((blocks, words), scale) in pairs.zip(scales) {
            *scale = 0;
            for ((block, words), shift) in blocks.iter().zip(words).zip([0, 16]) {
                *scale |= u32::from(u16::from_le_bytes(block.d)) << shift;
                two_bits::repack(&block.qs, words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/tq2_0"
    }
}
