//! `Q4_0`: `w = d (q - 8)`. A block in the file: f16 d, then 16 bytes with weight j (low nibble)
//! and j + 16.
//!
//! Shader: `shaders/quant/q4_0.wgsl`.

use super::rounding::Codes;
use super::{BLOCK, BlockFormat, copy_words, f16_value, nibbles};
use crate::dtype::DType;

const BYTES: usize = DType::Q4_0.block_bytes();
const CODES: Codes = Codes { low: -8.0, high: 7.0 };

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q4_0
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * 2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for ([d0, d1, qs @ ..], out) in
            blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0)
        {
            let d = f16_value([*d0, *d1]);
            let (lo, hi) = out.split_at_mut(16);
            for ((q, lo), hi) in qs.iter().zip(lo).zip(hi) {
                *lo = d * (f32::from(q & 15) - 8.0);
                *hi = d * (f32::from(q >> 4) - 8.0);
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        CODES.scaled_rows(weights, importance, |codes, out| out.extend(nibbles(codes)))
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs =
            blocks.as_chunks::<BYTES>().0.chunks(2).zip(words.as_chunks_mut::<4>().0.chunks_mut(2));
        for ((blocks, words), scale) in pairs.zip(scales) {
            *scale = 0;
            for (([d0, d1, qs @ ..], words), shift) in blocks.iter().zip(words).zip([0, 16]) {
                *scale |= u32::from(u16::from_le_bytes([*d0, *d1])) << shift;
                copy_words(qs, words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q4_0"
    }

    fn half_wgsl(&self) -> Vec<&'static str> {
        vec!["quant/half/q4_0"]
    }
}
