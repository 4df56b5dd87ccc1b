//! `IQ4_NL`: `w = d v`, v one of 16 levels, closer to each other near 0. llama.cpp's type for rows
//! that are no whole blocks in files of two and three bits. A block in the file: f16 d, then 16
//! bytes with weight j (low nibble) and j + 16.
//!
//! Shader: `shaders/quant/iq4_nl.wgsl`.

use super::rounding::{Block, STEPS, beside, stored};
use super::{BLOCK, BlockFormat, copy_words, f16_bytes, f16_value, nibbles};
use crate::dtype::DType;

const BYTES: usize = DType::IQ4_NL.block_bytes();
/// Times that a search goes on from its best start, at most.
const ROUNDS: usize = 4;
const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

pub(super) struct Format;

/// The nearest levels of `weights` at scale `d`.
fn codes(weights: &[f32; BLOCK], d: f32) -> [u8; BLOCK] {
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    weights.map(|w| {
        let level = w * inverse;
        LEVELS.windows(2).take_while(|pair| level > 0.5 * (pair[0] + pair[1])).count() as u8
    })
}

fn cost(block: &Block<'_, BLOCK>, d: f32) -> f32 {
    let terms = block.weights.iter().zip(&block.costs).zip(codes(block.weights, d));
    terms.map(|((w, cost), q)| cost * (w - d * LEVELS[usize::from(q)]).powi(2)).sum()
}

/// The best scale for the codes that are nearest at `d`, as the file can hold it.
fn refitted(block: &Block<'_, BLOCK>, d: f32) -> f32 {
    let (mut product, mut squares) = (0.0, 0.0);
    for ((w, cost), q) in block.weights.iter().zip(&block.costs).zip(codes(block.weights, d)) {
        let v = LEVELS[usize::from(q)];
        product += cost * v * w;
        squares += cost * v * v;
    }
    if squares > 0.0 { stored(product / squares) } else { d }
}

/// The scale that costs least of those that a search meets: from such as put the largest weight on
/// or beside the last level at either end.
fn scale(block: &Block<'_, BLOCK>) -> f32 {
    let largest = block.largest();
    let plain = stored(largest / LEVELS[0]);
    let costs = |d| (cost(block, d), d);
    let better = |a: (f32, f32), b: (f32, f32)| if b.0 < a.0 { b } else { a };
    // A tenth of 8 codes is a step of about 13 of the levels.
    let ends = [-8.0, 7.0].into_iter().flat_map(|end| STEPS.map(move |step| beside(end, step)));
    let starts = ends.map(|end| refitted(block, largest / (end * LEVELS[0] / -8.0)));
    let mut best = starts.map(costs).fold(costs(plain), better);
    for _ in 0..ROUNDS {
        let next = costs(refitted(block, best.1));
        if next.0 >= best.0 || next.0.is_nan() {
            break;
        }
        best = next;
    }
    best.1
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::IQ4_NL
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
            let (lo, hi) = out.split_at_mut(BLOCK / 2);
            for ((q, lo), hi) in qs.iter().zip(lo).zip(hi) {
                *lo = d * LEVELS[usize::from(q & 15)];
                *hi = d * LEVELS[usize::from(q >> 4)];
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(weights.len() / BLOCK * BYTES);
        for block in Block::of_rows(weights, importance) {
            let d = scale(&block);
            out.extend(f16_bytes(d)?);
            out.extend(nibbles(&codes(block.weights, d)));
        }
        Some(out)
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
        "quant/iq4_nl"
    }
}
