//! Random numbers that nobody can foresee: SHA-256 of a seed and a counter.

use std::f64::consts::TAU;

use crate::error::{Error, Result};
use crate::identity::sha256;

/// 32 bytes from the system.
pub(super) fn system_seed() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| Error::Unsupported {
        what: format!("the system's randomness ({e})"),
        hint: "run where the system provides it".into(),
    })?;
    Ok(seed)
}

/// A stream of random numbers.
pub(super) struct Random {
    seed: [u8; 32],
    counter: u64,
    block: [u8; 32],
    /// Numbers of the block that are used up.
    used: usize,
}

impl Random {
    /// The stream of a seed.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0, block: [0; 32], used: 4 }
    }

    fn next(&mut self) -> u64 {
        if self.used == 4 {
            self.block = sha256([&self.seed[..], &self.counter.to_le_bytes()]);
            (self.counter, self.used) = (self.counter + 1, 0);
        }
        let bytes = self.block.as_chunks::<8>().0[self.used];
        self.used += 1;
        u64::from_le_bytes(bytes)
    }

    /// Uniform in [0, 1).
    pub(super) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `n`, which is above 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    /// Puts things into a random order.
    pub(super) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last + 1));
        }
    }

    /// Of the gamma distribution of this shape and scale 1 (Marsaglia and Tsang 2000).
    pub(super) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let below = (1.0 - self.uniform()).powf(1.0 / shape);
            return self.gamma(shape + 1.0) * below;
        }
        let d = shape - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// A standard normal number: half the sum of four, each by Box and Muller, so that its last
    /// bits do not tell what it was added to (Mironov 2012; Holohan and Braghin 2021).
    pub(super) fn normal(&mut self) -> f64 {
        let mut pair = || {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sin, cos) = (TAU * self.uniform()).sin_cos();
            radius * sin + radius * cos
        };
        (pair() + pair()) / 2.0
    }
}
