//! Chance that is a function of its place: the same whatever thread asks, and in whatever order.

/// The odd number nearest to 2^64 over the golden ratio.
pub(super) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// `SplitMix64`'s mixing (Steele et al. 2014).
const fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in [0, 1) from 53 mixed bits.
pub(super) fn unit(state: u64) -> f64 {
    (mix(state) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The stream of one matrix: a word for each of seed, parent, module and factor, in this order.
pub(super) fn stream(words: [u64; 4]) -> u64 {
    words.iter().fold(0, |state, word| mix(state.wrapping_add(STEP) ^ word))
}

/// The draw of element `index` of a stream.
pub(super) fn draw(stream: u64, index: u64) -> f64 {
    unit(stream.wrapping_add(index.wrapping_mul(STEP)))
}
