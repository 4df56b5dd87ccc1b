//! `Q2_1`: `w = d q + m`, 64 weights a block, q 2 bits. A block in the file: f16 d and m, then 2 x
//! 8 bytes for 32 weights each: bits 2p, 2p + 1 of byte i hold weight 4p + i of the first 16
//! (i < 4) or of the others.
//!
//! Shader: `shaders/quant/q2_1.wgsl`.

use super::rounding::Codes;
use super::two_bits::{pack, place};
use super::{BLOCK, BlockFormat, copy_words, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::Q2_1.block_bytes();
const LEN: usize = DType::Q2_1.block_len();
const CODES: Codes = Codes { low: 0.0, high: 3.0 };

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q2_1
    }

    fn words_per_block(&self) -> usize {
        2
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * BLOCK / LEN * 4
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        for ([d0, d1, m0, m1, qs @ ..], out) in blocks.iter().zip(out.as_chunks_mut::<LEN>().0) {
            let (d, m) = (f16_value([*d0, *d1]), f16_value([*m0, *m1]));
            for (qs, out) in qs.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
                for (i, w) in out.iter_mut().enumerate() {
                    let (byte, shift) = place(i);
                    *w = d * f32::from(qs[byte] >> shift & 3) + m;
                }
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        CODES.shifted_rows::<LEN>(weights, importance, |codes, out| {
            codes.as_chunks().0.iter().for_each(|codes| out.extend(pack(codes)));
        })
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
        "quant/q2_1"
    }
}
