//! `Q6_K`: `w = (d sc) (q - 32)`, 8 blocks a superblock, a signed byte sc for 16 weights. In the
//! file each half superblock has 64 bytes of nibbles (blocks 0 and 1 low, 2 and 3 high) and 32
//! bytes of upper bits (bits 2r, 2r + 1 for block r).
//!
//! Shader: `shaders/quant/q6_k.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::rounding::{Block, Codes};
use super::two_levels::Scaled;
use super::{BLOCK, BlockFormat, copy_words, f16_bytes, f16_value, join_nibbles, split_nibbles};
use crate::dtype::DType;

const BYTES: usize = DType::Q6_K.block_bytes();
const CODES: Codes = Codes { low: -32.0, high: 31.0 };
/// Weights that share a sc.
const PART: usize = 16;
/// The least sc is its negative.
const MOST: f32 = 128.0;

pub(super) struct Format;

/// A superblock in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    qs: [u8; 128],
    upper: [u8; 64],
    scales: [i8; 16],
    d: [u8; 2],
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<BYTES>().0)
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q6_K
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 / 8 * 82
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in superblocks(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
            let d = f16_value(block.d);
            for (j, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let (half, r) = (j / 4, j % 4);
                let qs = block.qs.iter().skip(half * 64 + r % 2 * 32);
                let upper = block.upper.iter().skip(half * 32);
                let scales = block
                    .scales
                    .iter()
                    .skip(2 * j)
                    .flat_map(|sc| std::iter::repeat_n(d * f32::from(*sc), 16));
                for (((w, q), upper), d) in out.iter_mut().zip(qs).zip(upper).zip(scales) {
                    let q = (q >> (r / 2 * 4) & 15) | ((upper >> (2 * r) & 3) << 4);
                    *w = d * (f32::from(q) - 32.0);
                }
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let superblock = |block| Superblock::fit(&block).map(bytemuck::cast::<_, [u8; BYTES]>);
        let superblocks = Block::of_rows(weights, importance).map(superblock);
        superblocks.collect::<Option<Vec<_>>>().map(|all| all.concat())
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs = superblocks(blocks)
            .chunks(2)
            .zip(words.as_chunks_mut().0.as_chunks_mut::<8>().0.chunks_mut(2));
        for ((blocks, words), scales) in pairs.zip(scales.chunks_mut(41)) {
            let Some((d, rest)) = scales.split_first_mut() else { return };
            *d = 0;
            let parts = blocks.iter().zip(words).zip(rest.as_chunks_mut::<20>().0).zip([0, 16]);
            for (((block, words), scales), shift) in parts {
                *d |= u32::from(u16::from_le_bytes(block.d)) << shift;
                let (sc, upper) = scales.split_at_mut(4);
                copy_words(bytemuck::cast_slice(&block.scales), sc);
                copy_words(&block.upper, upper);
                for (qs, [b0, b1, b2, b3]) in block.qs.chunks(64).zip(words.as_chunks_mut().0) {
                    let (first, second) = qs.split_at(BLOCK);
                    split_nibbles(first, b0, b2);
                    split_nibbles(second, b1, b3);
                }
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q6_k"
    }
}

impl Superblock {
    /// `None` for scales beyond the range of d.
    fn fit(superblock: &Block<'_, 256>) -> Option<Self> {
        let fitted = Scaled::<PART, 16>::search(CODES, MOST, superblock);
        let mut out = Self {
            qs: [0; 128],
            upper: [0; 64],
            scales: fitted.sc.map(|sc| sc as i8),
            d: f16_bytes(fitted.d)?,
        };
        let codes = fitted.quantized(superblock);
        let halves = codes.as_flattened().as_chunks::<BLOCK>().0.as_chunks::<4>().0;
        let (qs, upper) = (out.qs.as_chunks_mut().0, out.upper.as_chunks_mut::<BLOCK>().0);
        for (blocks @ [b0, b1, b2, b3], (qs, upper)) in
            halves.iter().zip(qs.as_chunks_mut::<2>().0.iter_mut().zip(upper))
        {
            *qs = [join_nibbles(b0, b2), join_nibbles(b1, b3)];
            for (r, block) in blocks.iter().enumerate() {
                upper.iter_mut().zip(block).for_each(|(bits, q)| *bits |= (q >> 4) << (2 * r));
            }
        }
        Some(out)
    }
}
