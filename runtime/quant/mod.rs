//! What a block format must give: exact CPU dequantisation and a lossless repack to GPU words and scales.
//!
//! In: a row's blocks as the file holds them. Out: two arrays of `u32`, read by `shaders/quant/<format>.wgsl`.
//! Every format is seen by the kernels as blocks of [`BLOCK`] consecutive weights of one row.

use crate::dtype::DType;

/// Weights in a block as the kernels see it; a row of every linear is a whole number of them.
pub const BLOCK: usize = 32;

/// One block format.
pub trait BlockFormat: Send + Sync {
    /// The type this file is about.
    fn dtype(&self) -> DType;
    /// `u32` words a [`BLOCK`] takes in the `words` binding: a multiple of 4, since shaders read `vec4<u32>`.
    fn words_per_block(&self) -> usize;
    /// Bytes in the `scales` binding for 64 blocks (64 so that every format gives a whole number of `u32`).
    fn scale_bytes_per_64_blocks(&self) -> usize;
    /// Exact values of `blocks`, one `f32` a weight: `out.len()` weights.
    fn dequantize(&self, blocks: &[u8], out: &mut [f32]);
    /// Appends `blocks` to `words` and `scales` without losing a bit. The number of [`BLOCK`]s is even.
    fn repack(&self, blocks: &[u8], words: &mut Vec<u32>, scales: &mut Vec<u32>);
    /// The WGSL that reads what [`Self::repack`] writes.
    fn wgsl(&self) -> &'static str;
}
