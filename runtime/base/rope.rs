//! Frequencies of rotary position embeddings and their scaling for long contexts.
//!
//! Source: Su et al., `RoFormer`, arXiv 2104.09864; linear scaling: Chen et al., arXiv 2306.15595;
//! Llama 3.1's scaling: `_compute_llama3_parameters` of Hugging Face's transformers.

use std::f64::consts::TAU;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;

use super::read_gguf::Keys;

const KIND: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
const OLD_FACTOR: &str = "rope.scale_linear";

/// How inverse frequencies are changed for contexts longer than those trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context became.
        factor: f32,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// How many times longer the context became.
        factor: f32,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled whole.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Tokens of the context before the change.
        original_max_position_embeddings: usize,
    },
    /// A divisor a frequency, `[head_dim / 2]`: GGUF's `rope_freqs.weight`, where converters put
    /// Llama 3.1's scaling.
    Factors(Vec<f32>),
}

impl RopeScaling {
    /// From the metadata and `rope_freqs.weight`, which must hold `n` factors.
    pub(super) fn from_gguf(keys: Keys<'_>, n: usize) -> Result<Self> {
        // As llama.cpp: linear where no type is given, by the newer of the two keys.
        let linear = match keys.find::<&str>(KIND)? {
            Some("none") => None,
            None | Some("linear") => match factor(keys, FACTOR)? {
                None => factor(keys, OLD_FACTOR)?,
                found => found,
            },
            Some(kind) => {
                let hint = "none, linear and llama-3 scaling are".into();
                return Err(Error::Unsupported { what: format!("rope scaling `{kind}`"), hint });
            }
        };
        if linear.is_none() && keys.find::<&str>(KIND)? == Some("linear") {
            // Asked for, so there has to be one.
            keys.get::<f32>(FACTOR)?;
        }
        match (linear.filter(|&factor| factor != 1.0), explicit_factors(keys.gguf, n)?) {
            (None, None) => Ok(Self::None),
            (Some(factor), None) => Ok(Self::Linear { factor }),
            (None, Some(factors)) => Ok(Self::Factors(factors)),
            (Some(_), Some(_)) => Err(Error::Unsupported {
                what: "linear rope scaling together with `rope_freqs.weight`".into(),
                hint: "either alone is".into(),
            }),
        }
    }
}

/// A key's factor; 0 is none, as in llama.cpp.
fn factor(keys: Keys<'_>, key: &str) -> Result<Option<f32>> {
    let factor = keys.find::<f32>(key)?.filter(|&factor| factor != 0.0);
    let wrong = |factor| Error::InvalidMetadata {
        key: keys.name(key),
        reason: format!("{factor} is not a number above 0"),
    };
    factor.map(|factor| if usable(factor) { Ok(factor) } else { Err(wrong(factor)) }).transpose()
}

fn usable(factor: f32) -> bool {
    factor.is_finite() && factor > 0.0
}

fn explicit_factors(gguf: &Gguf, n: usize) -> Result<Option<Vec<f32>>> {
    let Some(tensor) = gguf.tensor("rope_freqs.weight") else { return Ok(None) };
    let invalid = |reason| Err(Error::InvalidTensor { name: tensor.name.into(), reason });
    if tensor.dtype != DType::F32 || tensor.shape != [n] {
        return invalid(format!(
            "F32 [{n}] is needed, found {} {:?}",
            tensor.dtype.name(),
            tensor.shape
        ));
    }
    let factors: Vec<f32> =
        tensor.bytes().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    if factors.iter().all(|&factor| usable(factor)) {
        Ok(Some(factors))
    } else {
        invalid("its factors are not all numbers above 0".into())
    }
}

/// `theta^(-2 i / head_dim)` for i below `head_dim / 2`, scaled; radians a token.
pub(super) fn inverse_frequencies(head_dim: usize, theta: f32, scaling: &RopeScaling) -> Vec<f32> {
    let plain = |i: usize| f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64);
    let scaled = |i: usize| match scaling {
        RopeScaling::None => plain(i),
        RopeScaling::Linear { factor } => plain(i) / f64::from(*factor),
        RopeScaling::Factors(factors) => {
            plain(i) / factors.get(i).map_or(1.0, |&factor| factor.into())
        }
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            // Turns that the pair makes in the original context: 1 at the longest wavelength that
            // fits.
            let turns = original_max_position_embeddings as f64 * plain(i) / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            plain(i) * (kept + (1.0 - kept) / f64::from(factor))
        }
    };
    (0..head_dim / 2).map(|i| scaled(i) as f32).collect()
}
