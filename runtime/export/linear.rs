//! `W + sum weight * scaling * B A` of one tensor, row by row in f32, rounded to the type of the
//! file.

use std::ops::Range;

use crate::adapter::LoraModule;
use crate::base::Target;
use crate::dtype::DType;
use crate::quant;

/// One tensor's LoRA: modules with the weights of their adapters and the rows that they change.
pub(super) type Loras<'a> = Vec<(&'a LoraModule, f32, Range<usize>)>;

/// What rounding did to a merged tensor, in sums over its weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    pub(super) n_weights: u64,
    /// Squares of what the adapters add.
    pub(super) delta_squares: f64,
    pub(super) error_squares: f64,
    pub(super) max_error: f64,
}

impl Loss {
    /// Both tensors together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            n_weights: self.n_weights + other.n_weights,
            delta_squares: self.delta_squares + other.delta_squares,
            error_squares: self.error_squares + other.error_squares,
            max_error: self.max_error.max(other.max_error),
        }
    }

    /// Root mean square of what the adapters add.
    pub(super) fn delta_rms(&self) -> f64 {
        (self.delta_squares / self.n_weights.max(1) as f64).sqrt()
    }

    /// Root mean square of the rounding errors.
    pub(super) fn rms_error(&self) -> f64 {
        (self.error_squares / self.n_weights.max(1) as f64).sqrt()
    }
}

/// Adds the adapters to `weights`, `[rows, K]` in f32, of which row i is the tensor's row `row(i)`;
/// gives the rounded bytes. `None` when one is too large for `dtype`.
pub(super) fn merge(
    weights: &mut [f32],
    k: usize,
    loras: &Loras<'_>,
    row: impl Fn(usize) -> usize,
    dtype: DType,
    loss: &mut Loss,
) -> Option<Vec<u8>> {
    let mut delta = vec![0.0_f32; k];
    for (i, weights) in weights.chunks_exact_mut(k).enumerate() {
        delta.fill(0.0);
        for (module, weight, rows) in loras.iter().filter(|(.., rows)| rows.contains(&row(i))) {
            add_row(module, *weight, row(i) - rows.start, &mut delta);
        }
        weights.iter_mut().zip(&delta).for_each(|(w, d)| *w += d);
        loss.delta_squares += delta.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>();
    }
    let bytes = quant::quantize(dtype, weights, None)?;
    let mut rounded = vec![0.0_f32; weights.len()];
    quant::format(dtype).dequantize(&bytes, &mut rounded);
    for (w, rounded) in weights.iter().zip(&rounded) {
        let error = (f64::from(*w) - f64::from(*rounded)).abs();
        loss.error_squares += error * error;
        loss.max_error = loss.max_error.max(error);
    }
    loss.n_weights += weights.len() as u64;
    Some(bytes)
}

/// Adds row `row` of `weight * scaling * B A`, for an embedding of its transpose, `[V, D]`, to
/// `delta`.
fn add_row(module: &LoraModule, weight: f32, row: usize, delta: &mut [f32]) {
    let (rank, scale) = (module.rank, weight * module.scaling);
    if module.path.target == Target::EmbedTokens {
        let vocab = module.a.len() / rank;
        let u: Vec<f32> = (0..rank).map(|r| scale * module.a[r * vocab + row]).collect();
        for (d, b) in delta.iter_mut().zip(module.b.chunks_exact(rank)) {
            *d += b.iter().zip(&u).map(|(b, u)| b * u).sum::<f32>();
        }
        return;
    }
    for (b, a) in module.b[row * rank..][..rank].iter().zip(module.a.chunks_exact(delta.len())) {
        let c = scale * b;
        delta.iter_mut().zip(a).for_each(|(d, a)| *d += c * a);
    }
}
