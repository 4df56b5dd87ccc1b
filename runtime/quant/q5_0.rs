//! `Q5_0`: `w = d (q - 16)`. A block in the file: f16 d, 32 fifth bits, then 16 bytes with the low
//! nibbles of weight j (low) and j + 16.
//!
//! Shader: `shaders/quant/q5_0.wgsl`.

use super::rounding::Codes;
use super::{BLOCK, BlockFormat, copy_words, f16_value, nibbles};
use crate::dtype::DType;

const BYTES: usize = DType::Q5_0.block_bytes();
const CODES: Codes = Codes { low: -16.0, high: 15.0 };

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q5_0
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * 6
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        for ([d0, d1, h0, h1, h2, h3, qs @ ..], out) in
            blocks.iter().zip(out.as_chunks_mut::<BLOCK>().0)
        {
            let d = f16_value([*d0, *d1]);
            for (w, q) in out.iter_mut().zip(codes([*h0, *h1, *h2, *h3], qs)) {
                *w = d * (f32::from(q) - 16.0);
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        CODES.scaled_rows(weights, importance, |codes, out| {
            out.extend(fifth_bits(codes));
            out.extend(nibbles(codes));
        })
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs =
            blocks.as_chunks::<BYTES>().0.chunks(2).zip(words.as_chunks_mut::<4>().0.chunks_mut(2));
        for ((blocks, words), scales) in pairs.zip(scales.chunks_mut(3)) {
            let Some((d, fifths)) = scales.split_first_mut() else { return };
            *d = 0;
            let parts = blocks.iter().zip(words).zip(fifths).zip([0, 16]);
            for ((([d0, d1, h0, h1, h2, h3, qs @ ..], words), fifth), shift) in parts {
                *d |= u32::from(u16::from_le_bytes([*d0, *d1])) << shift;
                *fifth = u32::from_le_bytes([*h0, *h1, *h2, *h3]);
                copy_words(qs, words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q5_0"
    }
}

/// The fifth bit of each code of a block.
pub(super) fn fifth_bits(codes: &[u8; BLOCK]) -> [u8; 4] {
    let bit = |(i, q): (usize, &u8)| u32::from(q >> 4) << i;
    codes.iter().enumerate().map(bit).fold(0, |all, bit| all | bit).to_le_bytes()
}

/// The 5-bit codes of a block, in order.
pub(super) fn codes(fifth_bits: [u8; 4], nibbles: &[u8; 16]) -> impl Iterator<Item = u8> {
    let fifths = u32::from_le_bytes(fifth_bits);
    let low = nibbles.iter().map(|q| q & 15).chain(nibbles.iter().map(|q| q >> 4));
    low.enumerate().map(move |(i, low)| low | if fifths >> i & 1 == 1 { 16 } else { 0 })
}
