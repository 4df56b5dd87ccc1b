//! What rounding took, in sums over weights.

/// Squares of errors and of weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    errors: f64,
    weights: f64,
}

impl Loss {
    /// Of whole rows; with the importance of their columns each square counts as much.
    pub(super) fn of(weights: &[f32], values: &[f32], importance: Option<&[f32]>) -> Self {
        let mut loss = Self::default();
        let rows = importance.map_or(weights.len(), <[f32]>::len).max(1);
        for (weights, values) in weights.chunks(rows).zip(values.chunks(rows)) {
            for (i, (w, v)) in weights.iter().zip(values).enumerate() {
                let cost = importance.map_or(1.0, |importance| f64::from(importance[i]));
                let (w, v) = (f64::from(*w), f64::from(*v));
                loss.errors += cost * (w - v) * (w - v);
                loss.weights += cost * w * w;
            }
        }
        loss
    }

    /// The squares of the weights.
    pub(super) fn weights(self) -> f64 {
        self.weights
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self { errors: self.errors + other.errors, weights: self.weights + other.weights }
    }

    /// The errors' sum over the weights'.
    pub(super) fn relative(self) -> f64 {
        if self.errors == 0.0 { 0.0 } else { self.errors / self.weights }
    }

    /// Root mean square of the errors over that of the weights.
    pub(super) fn relative_rms(self) -> f64 {
        self.relative().sqrt()
    }
}
