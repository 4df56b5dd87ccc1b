//! Random weights of every format: the blocks as a file holds them, and what they are worth.

use epiphyte::DType;
use epiphyte::gpu::{Gpu, Tensor};
use epiphyte::quant::{BLOCK, format};
use half::{bf16, f16};

use super::{Checked, Random};

/// `W [N, K]`.
pub(super) struct Weights {
    pub(super) dtype: DType,
    pub(super) n: usize,
    pub(super) k: usize,
    blocks: Vec<u8>,
    /// The exact values.
    pub(super) values: Vec<f32>,
    /// `|w - offset| + |offset|` where `w = d q + offset`: what a kernel adds up on the way to w.
    pub(super) sizes: Vec<f64>,
}

/// The shortest row: a multiple of 32 for all formats.
pub(super) fn row_unit(dtype: DType) -> usize {
    dtype.block_len().max(BLOCK)
}

/// Offsets of the f16 scales in a block, and its bytes that hold nothing but quants.
fn layout(dtype: DType) -> (&'static [usize], std::ops::Range<usize>) {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => (&[], 0..0),
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => (&[0], 2..dtype.block_bytes()),
        DType::Q4_1 | DType::Q5_1 => (&[0, 2], 4..dtype.block_bytes()),
        DType::Q4_K | DType::Q5_K => (&[0, 2], 16..dtype.block_bytes()),
        DType::Q2_K => (&[80, 82], 16..80),
        DType::Q3_K => (&[108], 0..96),
        DType::Q6_K => (&[208], 0..192),
        // A level is looked up, nothing is added to it.
        DType::NF4 | DType::NF4_DQ | DType::IQ4_NL => (&[0], 0..0),
        DType::Q3_0 => (&[0], 2..dtype.block_bytes()),
        DType::Q2_1 => (&[0, 2], 4..dtype.block_bytes()),
        DType::TQ2_0 => (&[64], 0..64),
    }
}

fn random_blocks(dtype: DType, len: usize, random: &mut Random) -> Vec<u8> {
    match dtype {
        DType::F32 => random.vec(len, 1.0).iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => {
            random.vec(len, 1.0).iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
        }
        DType::BF16 => {
            random.vec(len, 1.0).iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
        }
        _ => {
            let mut blocks: Vec<u8> = (0..len / dtype.block_len() * dtype.block_bytes())
                .map(|_| random.bits() as u8)
                .collect();
            for block in blocks.chunks_mut(dtype.block_bytes()) {
                for &at in layout(dtype).0 {
                    // A normal number of either sign: subnormal halves may be flushed.
                    let d =
                        f16::from_f32(random.signed(0.05) + 0.001f32.copysign(random.signed(1.0)));
                    block[at..at + 2]
                        .copy_from_slice(&if d.is_normal() { d } else { f16::ONE }.to_le_bytes());
                }
            }
            blocks
        }
    }
}

impl Weights {
    pub(super) fn random(dtype: DType, n: usize, k: usize, random: &mut Random) -> Self {
        let blocks = random_blocks(dtype, n * k, random);
        let mut values = vec![0.0; n * k];
        format(dtype).dequantize(&blocks, &mut values);
        let mut offsets = vec![0.0; n * k];
        if !layout(dtype).1.is_empty() {
            let mut zeroed = blocks.clone();
            zeroed.chunks_mut(dtype.block_bytes()).for_each(|block| block[layout(dtype).1].fill(0));
            format(dtype).dequantize(&zeroed, &mut offsets);
        }
        let size = |(w, o): (&f32, &f32)| f64::from((w - o).abs()) + f64::from(o.abs());
        let sizes = values.iter().zip(&offsets).map(size).collect();
        Self { dtype, n, k, blocks, values, sizes }
    }

    /// Repacked rows: `words` and `scales`.
    pub(super) fn upload(
        &self,
        gpu: &Gpu,
        rows: std::ops::Range<usize>,
    ) -> Checked<(Tensor, Tensor)> {
        let row_bytes = self.blocks.len() / self.n;
        let (words, scales) = format(self.dtype).packed_len(rows.len() * self.k / BLOCK);
        let (mut words, mut scales) = (vec![0; words], vec![0; scales]);
        format(self.dtype).repack(
            &self.blocks[rows.start * row_bytes..rows.end * row_bytes],
            &mut words,
            &mut scales,
        );
        Ok((gpu.upload("words", &words)?, gpu.upload("scales", &scales)?))
    }

    /// `Σ x w` of row `n` and `Σ |x| size`.
    pub(super) fn dot(&self, n: usize, x: impl Fn(usize) -> f64) -> (f64, f64) {
        let row = n * self.k..(n + 1) * self.k;
        let terms = self.values[row.clone()].iter().zip(&self.sizes[row]).enumerate();
        terms.fold((0.0, 0.0), |(sum, size), (k, (w, s))| {
            (sum + x(k) * f64::from(*w), size + x(k).abs() * s)
        })
    }
}
