//! `Q8_0`: `w = d q`. A block in the file: f16 d, then 32 signed bytes.
//!
//! Shader: `shaders/quant/q8_0.wgsl`.

use super::{BLOCK, BlockFormat, copy_words, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::Q8_0.block_bytes();

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q8_0
    }

    fn words_per_block(&self) -> usize {
        8
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * 2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for ([d0, d1, qs @ ..], out) in
            blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0)
        {
            let d = f16_value([*d0, *d1]);
            for (q, w) in qs.iter().zip(out) {
                *w = d * f32::from(q.cast_signed());
            }
        }
    }

    /// The smallest scale that reaches each block's largest weight, whatever errors cost.
    fn quantize(&self, weights: &[f32], _importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let blocks = weights.as_chunks::<BLOCK>().0;
        let mut out = Vec::with_capacity(BYTES * blocks.len());
        for block in blocks {
            let largest = block.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
            let scale = half::f16::from_f32(largest / 127.0);
            if !scale.is_finite() {
                return None;
            }
            out.extend(scale.to_le_bytes());
            // Codes for the scale as it is stored.
            let d = scale.to_f32();
            let code = |w: &f32| {
                if d == 0.0 { 0 } else { (w / d).round_ties_even().clamp(-127.0, 127.0) as i8 }
            };
            out.extend(block.iter().map(|w| code(w).cast_unsigned()));
        }
        Some(out)
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs =
            blocks.as_chunks::<BYTES>().0.chunks(2).zip(words.as_chunks_mut::<8>().0.chunks_mut(2));
        for ((blocks, words), scale) in pairs.zip(scales) {
            *scale = 0;
            for (([d0, d1, qs @ ..], words), shift) in blocks.iter().zip(words).zip([0, 16]) {
                *scale |= u32::from(u16::from_le_bytes([*d0, *d1])) << shift;
                copy_words(qs, words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q8_0"
    }

    fn half_wgsl(&self) -> Vec<&'static str> {
        vec!["quant/half/q8_0"]
    }
}
