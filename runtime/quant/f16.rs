//! `F16`: IEEE half precision. Words in the file's order, no scales.
//!
//! Shader: `shaders/quant/f16.wgsl`.

use super::{BLOCK, BlockFormat, copy_words, f16_value};
use crate::dtype::DType;

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::F16
    }

    fn words_per_block(&self) -> usize {
        BLOCK / 2
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        0
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (w, bytes) in out.iter_mut().zip(blocks.as_chunks().0) {
            *w = f16_value(*bytes);
        }
    }

    /// The nearest values.
    fn quantize(&self, weights: &[f32], _importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let halves = weights.iter().map(|&w| half::f16::from_f32(w));
        halves
            .clone()
            .all(half::f16::is_finite)
            .then(|| halves.flat_map(half::f16::to_le_bytes).collect())
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], _scales: &mut [u32]) {
        copy_words(blocks, words);
    }

    fn wgsl(&self) -> &'static str {
        "quant/f16"
    }
}
