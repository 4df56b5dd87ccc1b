//! What a block format must give: exact CPU dequantisation and a lossless repack to GPU words and
//! scales.
//!
//! In: a row's blocks as the file holds them. Out: two arrays of `u32`, read by
//! `shaders/quant/<format>.wgsl`. Every format is seen by the kernels as blocks of [`BLOCK`]
//! consecutive weights of one row.
//!
//! The way back, [`quantize`], chooses scales by what the errors cost (`rounding`).
//!
//! A new format is one file here, one in `shaders/quant`, and its line in [`format()`].

mod bf16;
mod f16;
#[path = "f32.rs"]
mod float32; // `mod f32` would hide the primitive type
mod iq4_nl;
mod k_scales;
mod nf4;
mod nf4_dq;
mod q2_1;
mod q2_k;
mod q3_0;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod rounding;
mod tq2_0;
mod two_bits;
mod two_levels;

use crate::dtype::DType;

/// Weights in a block as the kernels see it; a row of every linear is a whole number of them.
pub const BLOCK: usize = 32;

/// One block format. Lengths are the caller's to check: surplus input or output is left alone.
pub trait BlockFormat: Send + Sync {
    /// The type this file is about.
    fn dtype(&self) -> DType;
    /// `u32` words a [`BLOCK`] takes in the `words` binding: a multiple of 4 for as many as the
    /// type's own block has, since shaders read `vec4<u32>`.
    fn words_per_block(&self) -> usize;
    /// Bytes in the `scales` binding for 64 blocks (64 so that every format gives a whole number of
    /// `u32`).
    fn scale_bytes_per_64_blocks(&self) -> usize;
    /// Exact values of `blocks`, one `f32` a weight: `out.len()` weights.
    fn dequantize(&self, blocks: &[u8], out: &mut [f32]);
    /// The nearest codes of whole rows of finite weights, for scales chosen by what errors cost.
    /// `importance` is of a row's weights, at least 0 each: what the squared error of one costs,
    /// beside others; none: all the same. `None` when a weight is too large for the type.
    fn quantize(&self, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>>;
    /// Moves every bit of `blocks` to its place in `words` and `scales`, both of the lengths
    /// [`Self::packed_len`] gives. A tensor may be repacked in pieces of a multiple of 64
    /// [`BLOCK`]s, the last excepted.
    fn repack(&self, blocks: &[u8], words: &mut [u32], scales: &mut [u32]);
    /// The file of `shaders/` that reads what [`Self::repack`] writes: `dequant` and `dot_part`. A
    /// kernel declares `words` and `scales`.
    fn wgsl(&self) -> &'static str;
    /// The files that make halves of it for cooperative matrices: `fetch` and `halves`.
    fn half_wgsl(&self) -> Vec<&'static str> {
        vec!["quant/half/any", self.wgsl()]
    }

    /// `u32`s that `blocks` [`BLOCK`]s take in the `words` and in the `scales` binding.
    /// Without scales the second is 0: bind any buffer, the shader does not read it.
    fn packed_len(&self, blocks: usize) -> (usize, usize) {
        let scale_bytes = (blocks * self.scale_bytes_per_64_blocks()).div_ceil(64);
        (blocks * self.words_per_block(), scale_bytes.div_ceil(4))
    }
}

/// The format of `dtype`.
pub fn format(dtype: DType) -> &'static dyn BlockFormat {
    match dtype {
        DType::F32 => &float32::Format,
        DType::F16 => &f16::Format,
        DType::BF16 => &bf16::Format,
        DType::Q4_0 => &q4_0::Format,
        DType::Q4_1 => &q4_1::Format,
        DType::Q5_0 => &q5_0::Format,
        DType::Q5_1 => &q5_1::Format,
        DType::Q8_0 => &q8_0::Format,
        DType::Q2_K => &q2_k::Format,
        DType::Q3_K => &q3_k::Format,
        DType::Q4_K => &q4_k::Format,
        DType::Q5_K => &q5_k::Format,
        DType::Q6_K => &q6_k::Format,
        DType::IQ4_NL => &iq4_nl::Format,
        DType::TQ2_0 => &tq2_0::Format,
        DType::NF4 => &nf4::Format,
        DType::NF4_DQ => &nf4_dq::Format,
        DType::Q2_1 => &q2_1::Format,
        DType::Q3_0 => &q3_0::Format,
    }
}

/// Rounds whole rows of weights to `dtype`, see [`BlockFormat::quantize`]. `None` when a weight is
/// no number or too large for the type, or they are not whole blocks.
pub fn quantize(dtype: DType, weights: &[f32], importance: Option<&[f32]>) -> Option<Vec<u8>> {
    let fits = dtype.bytes(weights.len()).is_some() && weights.iter().all(|w| w.is_finite());
    fits.then(|| format(dtype).quantize(weights, importance)).flatten()
}

/// The value of a stored `f16`.
fn f16_value(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// The nearest `f16`, to be stored; `None` beyond its range.
fn f16_bytes(v: f32) -> Option<[u8; 2]> {
    let half = half::f16::from_f32(v);
    half.is_finite().then(|| half.to_le_bytes())
}

/// Low nibbles of a block's codes, code j beside j + 16.
fn nibbles(codes: &[u8; BLOCK]) -> [u8; BLOCK / 2] {
    let (low, high) = codes.split_at(BLOCK / 2);
    std::array::from_fn(|i| (low[i] & 15) | (high[i] << 4))
}

/// Low nibbles of the codes of two blocks, code j of both together: what [`split_nibbles`] takes
/// apart.
fn join_nibbles(low: &[u8; BLOCK], high: &[u8; BLOCK]) -> [u8; BLOCK] {
    std::array::from_fn(|i| (low[i] & 15) | (high[i] << 4))
}

/// Little-endian bytes to as many words.
fn copy_words(bytes: &[u8], words: &mut [u32]) {
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
}

/// 32 bytes that hold one block in their low nibbles and another in their high ones, to those two
/// blocks as the shaders read them: byte j holds weight j (low) and j + 16 (high).
fn split_nibbles(bytes: &[u8], low: &mut [u32; 4], high: &mut [u32; 4]) {
    const LOW: u32 = 0x0f0f_0f0f;
    let (first, second) = bytes.as_chunks().0.split_at(4);
    for (((a, b), low), high) in first.iter().zip(second).zip(low).zip(high) {
        let (a, b) = (u32::from_le_bytes(*a), u32::from_le_bytes(*b));
        *low = (a & LOW) | ((b & LOW) << 4);
        *high = ((a >> 4) & LOW) | (b & !LOW);
    }
}
