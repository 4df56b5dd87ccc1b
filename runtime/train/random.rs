//! Random numbers by counter: the i-th is a function of the key and i, so nothing has to be saved
//! to resume.

/// `SplitMix64` (Steele et al. 2014, doi:10.1145/2660193.2660195), which is a hash of a counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct CounterRng {
    key: u64,
}

impl CounterRng {
    /// Streams of one seed are independent of each other.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self { key: mix(mix(seed).wrapping_add(stream)) }
    }

    /// The 64 bits at `index`.
    pub(super) fn bits(self, index: u64) -> u64 {
        mix(self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number below `n`, uniform to within `n / 2^64`.
    fn below(self, index: u64, n: usize) -> usize {
        ((u128::from(self.bits(index)) * n as u128) >> 64) as usize
    }

    /// A permutation of `0..n` (Fisher and Yates, in Durstenfeld's form).
    pub(super) fn permutation(self, n: usize) -> Vec<usize> {
        let mut order = (0..n).collect::<Vec<_>>();
        for last in (1..n).rev() {
            order.swap(last, self.below(last as u64, last + 1));
        }
        order
    }
}

fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
