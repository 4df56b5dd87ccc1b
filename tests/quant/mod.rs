//! Block formats: golden values, the repack as a permutation of bits, and the WGSL on a device.

mod golden;
mod repack;
mod rounding;
#[cfg(feature = "gpu")]
mod shader;

use epiphyte::DType;
use epiphyte::quant::{BLOCK, format};

/// Words and scales of `blocks`, every `u32` preset to `fill`.
fn repack(dtype: DType, blocks: &[u8], fill: u32) -> (Vec<u32>, Vec<u32>) {
    let n = blocks.len() / dtype.block_bytes() * dtype.block_len() / BLOCK;
    let (words, scales) = format(dtype).packed_len(n);
    let (mut words, mut scales) = (vec![fill; words], vec![fill; scales]);
    format(dtype).repack(blocks, &mut words, &mut scales);
    (words, scales)
}
