//! An adapter that makes up for what quantising took of its base: of each linear the largest
//! singular values of the error. `LoftQ`'s initialisation (Li et al. 2023, arXiv:2310.08659) after
//! one step of its alternation; the base stays as it is.

use serde::Serialize;

use super::factored::{self, Factored};
use super::rows::{Keep, Matrix, Mix, Rule, Sparse};
use super::{Rank, config, factors};
use crate::adapter::{Adapter, LoraModule};
use crate::base::{ModelConfig, ModulePath, fingerprint};
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::tokenizer::TokenizerSpec;

/// The adapter of [`loftq`], and what it makes up for.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Loftq {
    /// Of the quantised base; every scaling is 1.
    pub adapter: Adapter,
    /// Each linear that quantising has changed.
    pub modules: Vec<LoftqModule>,
}

/// Root mean squares of errors over that of a module's weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoftqModule {
    /// Which linear.
    pub path: ModulePath,
    /// Of the quantised weights.
    pub before: f64,
    /// Of those with the adapter.
    pub after: f64,
}

/// What the linears of `quantized` lost against `full`, a model of the same shape, as an adapter of
/// `quantized`. A linear that lost nothing has none. `progress` hears of linears done and in all.
///
/// Errors: [`Error::InvalidArgument`] for a rank of 0 or above a module's shorter side, and where
/// nothing was lost; [`Error::InvalidTensor`] naming a matrix that is not there or of another
/// shape; as [`ModelConfig::from_gguf`] and [`fingerprint::fingerprint`].
pub fn loftq(
    full: &Gguf,
    quantized: &Gguf,
    rank: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Loftq> {
    let base = ModelConfig::from_gguf(quantized)?;
    let shape = base.base_shape();
    let paths: Vec<ModulePath> = shape.modules().filter(|path| path.layer.is_some()).collect();
    let side = |path: &ModulePath| shape.shape(path.target).into_iter().min().unwrap_or(0);
    let most = paths.iter().map(side).min().unwrap_or(0);
    if rank == 0 || rank > most {
        let reason = format!("1 to {most} are possible in this model");
        return Err(Error::InvalidArgument { name: "rank", reason });
    }
    let (mut modules, mut told) = (Vec::new(), Vec::new());
    progress(0, paths.len());
    for (done, path) in paths.iter().enumerate() {
        if let Some((module, report)) = residual(full, quantized, *path, rank)? {
            modules.push(module);
            told.push(report);
        }
        progress(done + 1, paths.len());
    }
    if modules.is_empty() {
        let reason = "it lost nothing against the other; give the model before it was quantised";
        return Err(Error::InvalidArgument { name: "quantized", reason: reason.into() });
    }
    let tokenizer = TokenizerSpec::from_gguf(quantized)?;
    let fingerprint = fingerprint::fingerprint(quantized, &base, &tokenizer)?;
    let config = config(&[], &modules, &shape);
    let adapter = Adapter::new(config, modules, Some(fingerprint), &shape)?;
    Ok(Loftq { adapter, modules: told })
}

fn residual(
    full: &Gguf,
    quantized: &Gguf,
    path: ModulePath,
    rank: usize,
) -> Result<Option<(LoraModule, LoftqModule)>> {
    let name = format!("{path}.weight");
    let (whole, held) = (full.require(&name)?, quantized.require(&name)?);
    if whole.shape != held.shape {
        let reason = "the two models have it in other shapes; give one model twice".into();
        return Err(Error::InvalidTensor { name, reason });
    }
    let (k, mut values) = (whole.row_len(), whole.to_f32());
    let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let weights = square(&values);
    values.iter_mut().zip(held.to_f32()).for_each(|(value, held)| *value -= held);
    if values.iter().any(|value| !value.is_finite()) {
        let reason = "one of its weights is not a finite number; get the model again".into();
        return Err(Error::InvalidTensor { name, reason });
    }
    if square(&values) == 0.0 {
        return Ok(None);
    }
    let parents = vec![Sparse::new(Matrix::dense(values, k), 1.0, Keep::All)];
    let mix = Mix { parents, rule: Rule::Sum { divisor: 1.0 }, lambda: 1.0 };
    let Factored { rank, a, b, squares, lost } = factored::compress(&mix, Rank::Fixed(rank));
    let part = |squares: f64| if weights > 0.0 { (squares / weights).sqrt() } else { 0.0 };
    let report = LoftqModule { path, before: part(squares), after: part(lost) };
    Ok(Some((factors(path, rank, a, b), report)))
}
