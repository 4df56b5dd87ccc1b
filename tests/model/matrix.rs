//! Values and weights in f64, and how far f32 arithmetic may end up from them.
//!
//! Every number carries the variance of its error: what came in goes through the operation's
//! derivative, and each rounding adds a share of its own, taken as independent (Higham & Mary 2019,
//! "A New Approach to Probabilistic Rounding Error Analysis"). Within [`SIGMAS`] standard
//! deviations is what a correct kernel gives.

use epiphyte::adapter::{LoraModule, Target};
use epiphyte::format::gguf::Gguf;
use epiphyte::quant;

const SIGMAS: f64 = 8.0;
/// An operation of f32, relative; the rounding mode is the device's.
pub(super) const EPS: f64 = f32::EPSILON as f64;
/// Rounding to f16, relative.
pub(super) const HALF_EPS: f64 = 1.0 / 2048.0;

/// How far off f16 may have a factor of a product: it may be cut off, not rounded, and flushed
/// where it is subnormal.
fn half_error(v: f64) -> f64 {
    v.abs() * if v.abs() < 1.0 / 16384.0 { 1.0 } else { 2.0 * HALF_EPS }
}

/// A value and the variance of its error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Near {
    pub(super) value: f64,
    pub(super) variance: f64,
}

impl Near {
    /// How far off a correct result may be.
    pub(super) fn bound(self) -> f64 {
        SIGMAS * self.variance.sqrt()
    }

    pub(super) fn rounded(self, relative: f64) -> Self {
        Self { variance: self.variance + (relative * self.value).powi(2), ..self }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { value: self.value + other.value, variance: self.variance + other.variance }
            .rounded(EPS)
    }
}

pub(super) type Row = Vec<Near>;

/// Weights `[N, K]`, dequantised, with the largest of each block of 32.
#[derive(Clone)]
pub(super) struct Matrix {
    pub(super) k: usize,
    pub(super) weights: Vec<f64>,
    pub(super) peaks: Vec<f64>,
    /// Added to its product, each with the weight of its adapter.
    pub(super) loras: Vec<(LoraModule, f64)>,
    /// By weight, the deviation of its rounding; empty for weights that are exact.
    pub(super) deviations: Vec<f64>,
}

impl Matrix {
    pub(super) fn read(gguf: &Gguf, name: &str) -> Self {
        let view = gguf.require(name).unwrap();
        let mut values = vec![0.0_f32; view.n_weights()];
        quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
        let weights: Vec<f64> = values.into_iter().map(f64::from).collect();
        let peaks = weights.chunks(32).map(peak).collect();
        Self { k: view.row_len(), weights, peaks, loras: Vec::new(), deviations: Vec::new() }
    }

    /// Adds the adapters to the weights: `[N, K]`, an embedding's `[V, D]` their transpose.
    pub(super) fn merge(&mut self, rounding: Rounding) {
        let k = self.k;
        for (lora, weight) in std::mem::take(&mut self.loras) {
            let (scale, rank) = (weight * f64::from(lora.scaling), lora.rank);
            let (rows, columns) = (self.weights.len() / k, lora.a.len() / rank);
            for (n, m) in (0..rows).flat_map(|n| (0..k).map(move |m| (n, m))) {
                let (out, column) =
                    if lora.path.target == Target::EmbedTokens { (m, n) } else { (n, m) };
                let term = |r: usize| {
                    f64::from(lora.b[out * rank + r]) * f64::from(lora.a[r * columns + column])
                };
                self.weights[n * k + m] += scale * (0..rank).map(term).sum::<f64>();
            }
        }
        self.peaks = self.weights.chunks(32).map(peak).collect();
        let deviation = |(i, w): (usize, &f64)| rounding(*w, self.peaks[i / 32]);
        self.deviations = self.weights.iter().enumerate().map(deviation).collect();
    }

    pub(super) fn row(&self, n: usize) -> &[f64] {
        &self.weights[n * self.k..][..self.k]
    }

    /// W x, perhaps with both rounded to f16.
    pub(super) fn times(&self, x: &[Near], halves: bool) -> Row {
        let mut y: Row = (0..self.weights.len() / self.k).map(|n| self.dot(n, x, halves)).collect();
        for (lora, weight) in &self.loras {
            let scale = weight * f64::from(lora.scaling);
            let u: Row = lora.a.chunks(x.len()).map(|a| factor_dot(a, x, scale)).collect();
            add_expanded(&mut y, &lora.b, &u);
        }
        y
    }

    pub(super) fn dot(&self, n: usize, x: &[Near], halves: bool) -> Near {
        let mut out = Near::default();
        let mut squares = 0.0;
        for (k, (w, x)) in self.row(n).iter().zip(x).enumerate() {
            out.value += w * x.value;
            out.variance += w * w * x.variance;
            out.variance +=
                self.deviations.get(n * self.k + k).map_or(0.0, |dev| (dev * x.value).powi(2));
            if halves {
                out.variance +=
                    (half_error(*w) * x.value).powi(2) + (w * half_error(x.value)).powi(2);
            }
            // Kernels sum codes and offsets apart; each sum is at most three times the block's
            // largest weight.
            squares += (3.0 * self.peaks[(n * self.k + k) / 32] * x.value).powi(2);
        }
        // K additions, each rounding a sum of such terms.
        out.variance += EPS * EPS * self.k as f64 * squares;
        out
    }
}

fn peak(block: &[f64]) -> f64 {
    block.iter().fold(0.0, |peak, w| peak.max(w.abs()))
}

/// How far rounding may move a weight, by its value and its block's largest.
pub(super) type Rounding = fn(f64, f64) -> f64;

/// scale * sum f x, for factors rounded to f16 and f32 sums.
fn factor_dot(factors: &[f32], x: &[Near], scale: f64) -> Near {
    let mut out = Near::default();
    for (f, x) in factors.iter().zip(x) {
        let f = f64::from(*f) * scale;
        out.value += f * x.value;
        // A power of two is taken out of the factors: what f16 can't hold below is 2^-24 of the
        // largest.
        let own = (f * x.value).powi(2) * (HALF_EPS * HALF_EPS + factors.len() as f64 * EPS * EPS);
        out.variance += f * f * x.variance + own;
    }
    out
}

/// y += B u.
pub(super) fn add_expanded(y: &mut [Near], b: &[f32], u: &[Near]) {
    for (y, b) in y.iter_mut().zip(b.chunks(u.len())) {
        *y = y.plus(factor_dot(b, u, 1.0));
    }
}
