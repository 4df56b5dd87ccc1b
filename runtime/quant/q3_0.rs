//! `Q3_0`: `w = d (q - 4)`, 64 weights a block, q 3 bits: what `Q3_K` is to rows of whole
//! superblocks, for others. A block in the file: f16 d, then 2 x 4 bytes, bit j that of the upper
//! bit of weight j of 32, then 2 x 8 bytes with the lower two bits, as `Q2_1` has them.
//!
//! Shader: `shaders/quant/q3_0.wgsl`.

use super::rounding::Codes;
use super::two_bits::{pack, place};
use super::{BLOCK, BlockFormat, copy_words, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::Q3_0.block_bytes();
const LEN: usize = DType::Q3_0.block_len();
const CODES: Codes = Codes { low: -4.0, high: 3.0 };
/// First byte of the lower bits.
const LOWER: usize = 10;

pub(super) struct Format;

/// The upper bits of a block's codes.
fn upper_bits(codes: &[u8; BLOCK]) -> u32 {
    codes.iter().rev().fold(0, |bits, code| bits << 1 | u32::from(code >> 2))
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q3_0
    }

    fn words_per_block(&self) -> usize {
        2
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * BLOCK / LEN * 10
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        for ([d0, d1, rest @ ..], out) in blocks.iter().zip(out.as_chunks_mut::<LEN>().0) {
            let (d, (upper, lower)) = (f16_value([*d0, *d1]), rest.split_at(LOWER - 2));
            let parts = upper.as_chunks().0.iter().zip(lower.as_chunks::<8>().0);
            for ((upper, lower), out) in parts.zip(out.as_chunks_mut::<BLOCK>().0) {
                let upper = u32::from_le_bytes(*upper);
                for (i, w) in out.iter_mut().enumerate() {
                    let (byte, shift) = place(i);
                    let q = (lower[byte] >> shift & 3) | ((upper >> i & 1) << 2) as u8;
                    *w = d * (f32::from(q) - 4.0);
                }
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        CODES.scaled_rows::<LEN>(weights, importance, |codes, out| {
            let parts = codes.as_chunks().0;
            parts.iter().for_each(|codes| out.extend(upper_bits(codes).to_le_bytes()));
            parts.iter().for_each(|codes| out.extend(pack(codes)));
        })
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs =
            blocks.as_chunks::<BYTES>().0.chunks(2).zip(words.as_chunks_mut::<4>().0.chunks_mut(2));
        for ((blocks, words), scales) in pairs.zip(scales.chunks_mut(5)) {
            let Some((d, upper)) = scales.split_first_mut() else { return };
            *d = 0;
            let parts = blocks.iter().zip(words).zip(upper.as_chunks_mut::<2>().0).zip([0, 16]);
            for (((block, words), upper), shift) in parts {
                *d |= u32::from(u16::from_le_bytes([block[0], block[1]])) << shift;
                copy_words(&block[2..LOWER], upper);
                copy_words(&block[LOWER..], words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q3_0"
    }
}
