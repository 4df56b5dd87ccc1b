//! Codes of two bits: as superblocks of files have them, and as `shaders/quant/two_bits.wgsl` reads
//! them.

use super::{BLOCK, copy_words};

/// Of 256 weights: bits 2r, 2r + 1 of byte i are those of weight 32 r + i of 128.
pub(super) type TwoBits = [[u8; BLOCK]; 2];

/// The codes of the 8 blocks.
pub(super) fn split(qs: &TwoBits) -> [[u8; BLOCK]; 8] {
    std::array::from_fn(|block| qs[block / 4].map(|byte| byte >> (block % 4 * 2) & 3))
}

/// The lowest two bits of the codes of 8 blocks.
pub(super) fn join<'a>(codes: impl IntoIterator<Item = &'a [u8; BLOCK]>) -> TwoBits {
    let mut qs = [[0; BLOCK]; 2];
    for (j, codes) in codes.into_iter().enumerate() {
        let bytes = qs[j / 4].iter_mut().zip(codes);
        bytes.for_each(|(byte, code)| *byte |= (code & 3) << (j % 4 * 2));
    }
    qs
}

/// Where code `i` of a block lies for the shaders: its byte, and how many bits are below it.
pub(super) const fn place(i: usize) -> (usize, usize) {
    (i / 16 * 4 + i % 4, i % 16 / 4 * 2)
}

/// The codes of a block to what the shaders read.
pub(super) fn pack(codes: &[u8; BLOCK]) -> [u8; BLOCK / 4] {
    let mut bytes = [0; BLOCK / 4];
    for (i, code) in codes.iter().enumerate() {
        let (byte, shift) = place(i);
        bytes[byte] |= (code & 3) << shift;
    }
    bytes
}

/// The codes of 8 blocks, as [`pack`] has them, to words.
pub(super) fn repack(qs: &TwoBits, words: &mut [u32; 16]) {
    for (codes, words) in split(qs).iter().zip(words.as_chunks_mut::<2>().0) {
        copy_words(&pack(codes), words);
    }
}
