//! `F32`: plain weights. Words in the file's order, no scales.
//!
//! Shader: `shaders/quant/f32.wgsl`.

use super::{BLOCK, BlockFormat, copy_words};
use crate::dtype::DType;

pub(super) struct Format;

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn words_per_block(&self) -> usize {
        BLOCK
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        0
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (w, bytes) in out.iter_mut().zip(blocks.as_chunks().0) {
            *w = f32::from_le_bytes(*bytes);
        }
    }

    fn quantize(&self, weights: &[f32], _importance: Option<&[f32]>) -> Option<Vec<u8>> {
        Some(weights.iter().flat_map(|w| w.to_le_bytes()).collect())
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], _scales: &mut [u32]) {
        copy_words(blocks, words);
    }

    fn wgsl(&self) -> &'static str {
        "quant/f32"
    }
}
