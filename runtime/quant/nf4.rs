//! `NF4`: `w = d v`, v one of 16 levels, quantiles of a normal distribution (`QLoRA`, Dettmers et
//! al. 2023, arXiv:2305.14314). A block in the file: f16 d, then 2 x 16 bytes of codes for 32
//! weights each, weight j (low nibble) and j + 16.
//!
//! Codes are bitsandbytes': the nearest levels where d is the largest of 64 weights.
//!
//! Shader: `shaders/quant/nf4.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::rounding::Block;
use super::{BLOCK, BlockFormat, copy_words, f16_bytes, f16_value, nibbles};
use crate::dtype::DType;
use crate::numbers::NF4;

/// Weights that share a scale.
pub(super) const SHARED: usize = 64;
const BYTES: usize = DType::NF4.block_bytes();

/// Codes of [`SHARED`] weights in the file.
pub(super) type Nibbles = [u8; SHARED / 2];

pub(super) struct Format;

/// A block in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Stored {
    d: [u8; 2],
    qs: Nibbles,
}

fn stored(blocks: &[u8]) -> &[Stored] {
    bytemuck::cast_slice(blocks.as_chunks::<BYTES>().0)
}

/// The values of codes at a scale.
pub(super) fn values(d: f32, qs: &Nibbles, out: &mut [f32; SHARED]) {
    for (qs, out) in qs.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (lo, hi) = out.split_at_mut(16);
        for ((q, lo), hi) in qs.iter().zip(lo).zip(hi) {
            *lo = d * NF4[usize::from(q & 15)];
            *hi = d * NF4[usize::from(q >> 4)];
        }
    }
}

/// The largest weight, and the codes of the nearest levels where it is 1; of two as near the
/// lower. Where errors cost differently, the scale is the best for these codes.
pub(super) fn fit(block: &Block<'_, SHARED>) -> (f32, Nibbles) {
    let largest = block.largest().abs();
    // Below its least scale bitsandbytes takes that.
    let inverse = 1.0 / largest.max(1e-38);
    let level = |w: f32| (w * inverse).clamp(-1.0, 1.0);
    let codes: [u8; SHARED] = std::array::from_fn(|i| code(level(block.weights[i])));
    let scale = if block.is_weighted() { best_scale(block, &codes) } else { largest };
    let mut qs = [0; SHARED / 2];
    for (out, codes) in qs.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0) {
        *out = nibbles(codes);
    }
    (scale, qs)
}

fn code(level: f32) -> u8 {
    let is_above = |pair: &&[f32]| {
        let [low, high] = [pair[0], pair[1]].map(f64::from);
        level > ((low + high) / 2.0) as f32
    };
    NF4.windows(2).take_while(is_above).count() as u8
}

/// By least squares.
fn best_scale(block: &Block<'_, SHARED>, codes: &[u8; SHARED]) -> f32 {
    let (mut product, mut squares) = (0.0, 0.0);
    for ((w, cost), code) in block.weights.iter().zip(&block.costs).zip(codes) {
        let v = f64::from(NF4[usize::from(*code)]);
        product += f64::from(*cost) * v * f64::from(*w);
        squares += f64::from(*cost) * v * v;
    }
    if squares > 0.0 { (product / squares) as f32 } else { 0.0 }
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::NF4
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * BLOCK / SHARED * 2
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in stored(blocks).iter().zip(out.as_chunks_mut().0) {
            values(f16_value(block.d), &block.qs, out);
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(weights.len() / SHARED * BYTES);
        for block in Block::of_rows(weights, importance) {
            let (d, qs) = fit(&block);
            out.extend(f16_bytes(d)?);
            out.extend(qs);
        }
        Some(out)
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs = stored(blocks).chunks(2).zip(words.as_chunks_mut::<8>().0.chunks_mut(2));
        for ((blocks, words), scale) in pairs.zip(scales) {
            *scale = 0;
            for ((block, words), shift) in blocks.iter().zip(words).zip([0, 16]) {
                *scale |= u32::from(u16::from_le_bytes(block.d)) << shift;
                copy_words(&block.qs, words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/nf4"
    }
}
