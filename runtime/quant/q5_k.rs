//! `Q5_K`: `w = (d sc) q - dmin m`, 8 blocks a superblock, each with a 6-bit sc and m. In the file
//! bit j of byte i of the fifth bits is that of weight i of block j, and 32 bytes of nibbles hold
//! block 2c (low) and 2c + 1 (high).
//!
//! Shader: `shaders/quant/q5_k.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::k_scales::Scales;
use super::rounding::{Block, Codes};
use super::{BLOCK, BlockFormat, copy_words, join_nibbles, split_nibbles};
use crate::dtype::DType;

const CODES: Codes = Codes { low: 0.0, high: 31.0 };

pub(super) struct Format;

/// A superblock in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    scales: Scales,
    fifths: [u8; 32],
    qs: [u8; 128],
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<{ DType::Q5_K.block_bytes() }>().0)
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::Q5_K
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 / 8 * 48
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in superblocks(blocks).iter().zip(out.as_chunks_mut::<256>().0) {
            let scales = block.scales.values();
            for (j, (out, (d, m))) in
                out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(scales).enumerate()
            {
                let qs = block.qs.iter().skip(j / 2 * BLOCK);
                for ((w, q), fifth) in out.iter_mut().zip(qs).zip(&block.fifths) {
                    *w = d * f32::from((q >> (j % 2 * 4) & 15) | ((fifth >> j & 1) << 4)) - m;
                }
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let superblock = |block: Block<'_, 256>| {
            let (scales, codes) = Scales::fit(CODES, &block)?;
            let mut out = Superblock { scales, fifths: [0; 32], qs: [0; 128] };
            for (j, codes) in codes.iter().enumerate() {
                out.fifths.iter_mut().zip(codes).for_each(|(fifth, q)| *fifth |= (q >> 4) << j);
            }
            let qs = codes.as_chunks().0.iter().map(|[low, high]| join_nibbles(low, high));
            out.qs.as_chunks_mut().0.iter_mut().zip(qs).for_each(|(out, qs)| *out = qs);
            Some(bytemuck::cast::<_, [u8; DType::Q5_K.block_bytes()]>(out))
        };
        let superblocks = Block::of_rows(weights, importance).map(superblock);
        superblocks.collect::<Option<Vec<_>>>().map(|all| all.concat())
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let out = words
            .as_chunks_mut()
            .0
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(scales.as_chunks_mut::<12>().0);
        for (block, (words, scales)) in superblocks(blocks).iter().zip(out) {
            let (head, fifths) = scales.split_at_mut(4);
            head.copy_from_slice(&block.scales.words());
            copy_words(&block.fifths, fifths);
            for (qs, [low, high]) in block.qs.chunks(BLOCK).zip(words.as_chunks_mut().0) {
                split_nibbles(qs, low, high);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/q5_k"
    }
}
