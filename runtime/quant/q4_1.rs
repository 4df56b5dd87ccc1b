//! `Q4_1`: `w = d q + m`. A block in the file: f16 d and m, then 16 bytes with weight j (low
//! nibble) and j + 16.
//!
//! Shader: `shaders/quant/q4_1.wgsl`.

use super::rounding::Codes;
use super::{BLOCK, BlockFormat, copy_words, f16_value, nibbles};
use crate::dtype::DType;

const BYTES: usize = DType::Q4_1.block_bytes();
const CODES: Codes = Codes { low: 0.0, high: 15.0 };

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q4_1
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * 4
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        for ([d0, d1, m0, m1, qs @ ..], out) in blocks.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
            let (d, m) = (f16_value([*d0, *d1]), f16_value([*m0, *m1]));
            let (lo, hi) = out.split_at_mut(16);
            for ((q, lo), hi) in qs.iter().zip(lo).zip(hi) {
                *lo = d * f32::from(q & 15) + m;
                *hi = d * f32::from(q >> 4) + m;
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        CODES.shifted_rows(weights, importance, |codes, out| out.extend(nibbles(codes)))
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        for (([d0, d1, m0, m1, qs @ ..], words), scale) in
            blocks.iter().zip(words.as_chunks_mut::<4>().0).zip(scales)
        {
            *scale = u32::from_le_bytes([*d0, *d1, *m0, *m1]);
            copy_words(qs, words);
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q4_1"
    }

    fn half_wgsl(&self) -> Vec<&'static str> {
        vec!["quant/half/q4_1"]
    }
}
