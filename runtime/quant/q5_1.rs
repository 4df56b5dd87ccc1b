//! `Q5_1`: `w = d q + m`. A block in the file: f16 d and m, 32 fifth bits, then 16 bytes with the
//! low nibbles of weight j (low) and j + 16.
//!
//! Shader: `shaders/quant/q5_1.wgsl`.

use super::rounding::Codes;
use super::{
    BLOCK, BlockFormat, copy_words, f16_value, nibbles,
    q5_0::{codes, fifth_bits},
};
use crate::dtype::DType;

const BYTES: usize = DType::Q5_1.block_bytes();
const CODES: Codes = Codes { low: 0.0, high: 31.0 };

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q5_1
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * 8
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        for ([d0, d1, m0, m1, h0, h1, h2, h3, qs @ ..], out) in
            blocks.iter().zip(out.as_chunks_mut::<BLOCK>().0)
        {
            let (d, m) = (f16_value([*d0, *d1]), f16_value([*m0, *m1]));
            for (w, q) in out.iter_mut().zip(codes([*h0, *h1, *h2, *h3], qs)) {
                *w = d * f32::from(q) + m;
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        CODES.shifted_rows(weights, importance, |codes, out| {
            out.extend(fifth_bits(codes));
            out.extend(nibbles(codes));
        })
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let out = words.as_chunks_mut::<4>().0.iter_mut().zip(scales.as_chunks_mut::<2>().0);
        for (block, (words, scales)) in blocks.as_chunks::<BYTES>().0.iter().zip(out) {
            let (head, qs) = block.split_at(8);
            copy_words(head, scales);
            copy_words(qs, words);
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q5_1"
    }
}
