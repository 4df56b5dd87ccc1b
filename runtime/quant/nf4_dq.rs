//! `NF4_DQ`: `NF4` with double quantisation: `w = (d s) v`, s a byte for 64 weights, d an f16 for
//! 256. A block in the file: d, 4 s, then 8 x 16 bytes of codes as in `NF4`.
//!
//! `QLoRA` shares its second scale among 256 bytes; here a block stands alone, as GGUF has it.
//!
//! Shader: `shaders/quant/nf4_dq.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::nf4::{self, Nibbles, SHARED};
use super::rounding::{Block, stored};
use super::{BLOCK, BlockFormat, copy_words, f16_value};
use crate::dtype::DType;

const BYTES: usize = DType::NF4_DQ.block_bytes();
/// Scales in a block.
const PARTS: usize = 4;

pub(super) struct Format;

/// A block in the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Superblock {
    d: [u8; 2],
    s: [u8; PARTS],
    qs: [Nibbles; PARTS],
}

fn superblocks(blocks: &[u8]) -> &[Superblock] {
    bytemuck::cast_slice(blocks.as_chunks::<BYTES>().0)
}

/// `None` for a scale beyond the range of d.
fn fit(block: &Block<'_, 256>) -> Option<Superblock> {
    let parts = block.parts::<SHARED, PARTS>().map(|part| nf4::fit(&part));
    let largest = parts.iter().map(|(scale, _)| *scale).fold(0.0, f32::max);
    let d = stored(largest / 255.0);
    let byte = |scale: f32| if d == 0.0 { 0 } else { (scale / d).round().clamp(0.0, 255.0) as u8 };
    d.is_finite().then(|| Superblock {
        d: half::f16::from_f32(d).to_le_bytes(),
        s: parts.each_ref().map(|(scale, _)| byte(*scale)),
        qs: parts.map(|(_, qs)| qs),
    })
}

impl BlockFormat for Format {
    fn dtype(&self) -> DType {
        DType::NF4_DQ
    }

    fn words_per_block(&self) -> usize {
        4
    }

    fn scale_bytes_per_64_blocks(&self) -> usize {
        64 * BLOCK / 256 * (2 + PARTS)
    }

    fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        let parts = out.as_chunks_mut::<SHARED>().0.as_chunks_mut::<PARTS>().0;
        for (block, parts) in superblocks(blocks).iter().zip(parts) {
            let d = f16_value(block.d);
            for ((s, qs), out) in block.s.iter().zip(&block.qs).zip(parts) {
                nf4::values(d * f32::from(*s), qs, out);
            }
        }
    }

    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
        let superblock = |block| fit(&block).map(bytemuck::cast::<_, [u8; BYTES]>);
        let superblocks = Block::of_rows(weights, importance).map(superblock);
        superblocks.collect::<Option<Vec<_>>>().map(|all| all.concat())
    }

    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]) {
        let pairs = superblocks(blocks).chunks(2).zip(words.as_chunks_mut::<32>().0.chunks_mut(2));
        for ((blocks, words), scales) in pairs.zip(scales.chunks_mut(3)) {
            let Some((d, rest)) = scales.split_first_mut() else { return };
            *d = 0;
            let parts = blocks.iter().zip(words).zip(rest).zip([0, 16]);
            for (((block, words), s), shift) in parts {
                *d |= u32::from(u16::from_le_bytes(block.d)) << shift;
                *s = u32::from_le_bytes(block.s);
                copy_words(block.qs.as_flattened(), words);
            }
        }
    }

    fn wgsl(&self) -> &'static str {
        "quant/nf4_dq"
    }
}
