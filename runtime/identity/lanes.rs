//! SHA-256 of several texts at once. The instructions for it wait for each other within a text, so
//! that a core has time for four.

use super::{Hash, sha256};

/// Texts at once.
const LANES: usize = 4;

/// The hash of each text. Those of one length go together.
pub(crate) fn sha256_of_each(texts: &[&[u8]]) -> Vec<Hash> {
    let length = |i: &usize| texts[*i].len();
    let mut order: Vec<_> = (0..texts.len()).collect();
    order.sort_by_key(length);
    let mut hashes = vec![Hash::default(); texts.len()];
    for alike in order.chunk_by(|a, b| length(a) == length(b)) {
        let (fours, rest) = alike.as_chunks::<LANES>();
        for four in fours {
            let found = of_four(four.map(|i| texts[i]));
            four.iter().zip(found).for_each(|(i, hash)| hashes[*i] = hash);
        }
        rest.iter().for_each(|i| hashes[*i] = sha256([texts[*i]]));
    }
    hashes
}

/// Of texts of one length.
fn of_four(texts: [&[u8]; LANES]) -> [Hash; LANES] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
        // SAFETY: the processor has both.
        return unsafe { x86::of_four(texts) };
    }
    texts.map(|text| sha256([text]))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::array::from_fn;

    use sha2::block_api::compress256;

    use super::{Hash, LANES};

    /// Bytes of a block.
    const BLOCK: usize = 64;

    type State = [u32; 8];

    /// FIPS 180-4, 5.3.3.
    const START: State = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
        0x5be0cd19,
    ];

    /// FIPS 180-4, 4.2.2.
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2,
    ];

    /// A state as the instructions have it: a, b, e, f and c, d, g, h.
    type Halves = [__m128i; 2];

    /// Of texts of one length.
    #[target_feature(enable = "sha,sse4.1")]
    pub(super) fn of_four(texts: [&[u8]; LANES]) -> [Hash; LANES] {
        let states = compress(texts.map(|text| text.as_chunks().0));
        from_fn(|lane| finish(states[lane], texts[lane]))
    }

    /// The hash of a text whose whole blocks are in the state.
    fn finish(mut state: State, text: &[u8]) -> Hash {
        let rest = text.as_chunks::<BLOCK>().1;
        let mut last = [0; 2 * BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()] = 0x80;
        let end = if rest.len() + 9 <= BLOCK { BLOCK } else { 2 * BLOCK };
        last[end - 8..end].copy_from_slice(&(8 * text.len() as u64).to_be_bytes());
        compress256(&mut state, last[..end].as_chunks().0);
        let mut hash = Hash::default();
        let words = hash.as_chunks_mut().0.iter_mut();
        words.zip(state).for_each(|(bytes, word)| *bytes = word.to_be_bytes());
        hash
    }

    /// The states after as many whole blocks of each text as the first has.
    #[target_feature(enable = "sha,sse4.1")]
    fn compress(texts: [&[[u8; BLOCK]]; LANES]) -> [State; LANES] {
        let [a, b, c, d, e, f, g, h] = START.map(u32::cast_signed);
        let start = [_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h)];
        let mut states = [start; LANES];
        for (i, _) in texts[0].iter().enumerate() {
            let before = states;
            let mut words: [_; LANES] = from_fn(|lane| words_of(&texts[lane][i]));
            for round in 0..16 {
                for (state, words) in states.iter_mut().zip(&mut words) {
                    if round >= 4 {
                        extend(words, round % 4);
                    }
                    four_rounds(state, words[round % 4], round);
                }
            }
            for (state, before) in states.iter_mut().zip(before) {
                *state = from_fn(|half| _mm_add_epi32(state[half], before[half]));
            }
        }
        states.map(|[abef, cdgh]| {
            let [a, b, e, f] = numbers(abef);
            let [c, d, g, h] = numbers(cdgh);
            [a, b, c, d, e, f, g, h]
        })
    }

    /// The highest first.
    #[target_feature(enable = "sse4.1")]
    fn numbers(four: __m128i) -> [u32; 4] {
        [
            _mm_extract_epi32::<3>(four),
            _mm_extract_epi32::<2>(four),
            _mm_extract_epi32::<1>(four),
            _mm_extract_epi32::<0>(four),
        ]
        .map(i32::cast_unsigned)
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn words_of(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let halves: &[[u8; 8]] = block.as_chunks().0;
        let half = |i: usize| i64::from_le_bytes(halves[i]);
        from_fn(|i| _mm_shuffle_epi8(_mm_set_epi64x(half(2 * i + 1), half(2 * i)), big_endian))
    }

    /// Puts the four words that follow in the place of the oldest.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn extend(words: &mut [__m128i; 4], oldest: usize) {
        let [w0, w1, w2, w3] = from_fn(|i| words[(oldest + i) % 4]);
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
        words[oldest] = _mm_sha256msg2_epu32(sum, w3);
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn four_rounds([abef, cdgh]: &mut Halves, words: __m128i, round: usize) {
        let [k0, k1, k2, k3] = from_fn(|i| K[4 * round + i].cast_signed());
        let sum = _mm_add_epi32(words, _mm_set_epi32(k3, k2, k1, k0));
        *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, sum);
        *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32::<0x0e>(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::{sha256, sha256_of_each};

    #[test]
    fn each_text_has_the_hash_that_it_has_alone() {
        let byte = |i: usize, length: usize| (i * i + 31 * length) as u8;
        let text = |length: usize| (0..length).map(|i| byte(i, length)).collect::<Vec<_>>();
        // Every rest of a block; of some lengths enough to go together, and others left over.
        let lengths = (0..200).flat_map(|length| vec![length; length % 7]).rev();
        let mut texts: Vec<_> = lengths.map(text).collect();
        texts.iter_mut().enumerate().for_each(|(i, text)| text.push(i as u8));
        let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        let alone: Vec<_> = texts.iter().map(|text| sha256([text])).collect();
        assert_eq!(sha256_of_each(&texts), alone);
        assert!(sha256_of_each(&[]).is_empty());
    }
}
