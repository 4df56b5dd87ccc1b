//! LoRA on one module: its factors.

use std::fmt;

use crate::base::{BaseShape, ModulePath};
use crate::error::{Error, Result};

/// Whether none is NaN or infinite; without stopping at the first, which would take longer.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |all, v| all & v.is_finite())
}

/// LoRA on one module: `y += scaling * B (A x)` (Hu et al. 2021, arXiv:2106.09685, eq. 3). On an
/// embedding, `A x` is the column of A that belongs to the token.
#[derive(Clone, PartialEq)]
pub struct LoraModule {
    /// The module it sits on.
    pub path: ModulePath,
    /// Rank, r.
    pub rank: usize,
    /// `[r, K]`, row-major. PEFT's `lora_A` or `lora_embedding_A`.
    pub a: Vec<f32>,
    /// `[N, r]`, row-major. PEFT's `lora_B` or `lora_embedding_B`.
    pub b: Vec<f32>,
    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub scaling: f32,
}

impl LoraModule {
    /// Checks the lengths against the base, and that every number is finite.
    ///
    /// Errors: [`Error::InvalidAdapter`] naming the module.
    pub fn check(&self, shape: &BaseShape) -> Result<()> {
        let invalid =
            |reason: String| Error::InvalidAdapter { what: self.path.to_string(), reason };
        if !shape.has(self.path) {
            return Err(invalid(format!(
                "the base has {} layers and no such module",
                shape.num_hidden_layers
            )));
        }
        let [n, k] = shape.shape(self.path.target);
        let fits = |len: usize, width: usize| self.rank.checked_mul(width) == Some(len);
        if self.rank == 0 || !fits(self.a.len(), k) || !fits(self.b.len(), n) {
            let (r, a, b) = (self.rank, self.a.len(), self.b.len());
            return Err(invalid(format!(
                "A has {a} and B {b} weights; rank {r} on a base of [{n}, {k}] needs r K and N r"
            )));
        }
        if !self.scaling.is_finite() || !all_finite(&self.a) || !all_finite(&self.b) {
            return Err(invalid(
                "it holds NaN or infinity; train it again with a smaller learning rate".into(),
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for LoraModule {
    /// Without the values: they are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoraModule({}, rank {}, scaling {})", self.path, self.rank, self.scaling)
    }
}
