//! Frequencies of rotary position embeddings and their scaling for long contexts.
//!
//! Source: Su et al., `RoFormer`, arXiv 2104.09864; linear scaling: Chen et al., arXiv 2306.15595;
//! Llama 3.1's scaling: `_compute_llama3_parameters` of Hugging Face's transformers; `YaRN`: Peng et
//! al., arXiv 2309.00071.

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
    /// `YaRN`'s.
    Yarn(Yarn),
    /// A divisor a frequency, `[head_dim / 2]`: GGUF's `rope_freqs.weight`, where converters put
    /// Llama 3.1's scaling.
    Factors(Vec<f32>),
}

/// Pairs that turn often in the original context keep their frequency, those that turn seldom have it
/// divided, and those between blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer the context became.
    pub factor: f32,
    /// Tokens of the context before the change.
    pub original_max_position_embeddings: usize,
    /// Turns from which a frequency is kept.
    pub beta_fast: f32,
    /// Turns up to which it is divided whole.
    pub beta_slow: f32,
    /// What rotated heads are multiplied by; by default 1 and a tenth of the factor's logarithm.
    pub attention_factor: f32,
}

/// The paper's, and everybody's default.
const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

/// One of a model's rotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a token, `[head_dim / 2]`; zeros turn nothing.
    pub frequencies: Vec<f32>,
    /// What rotated heads are multiplied by.
    pub scale: f32,
}

impl RopeScaling {
    /// From the metadata and `rope_freqs.weight`, which must hold `n` factors.
    pub(super) fn from_gguf(keys: Keys<'_>, n: usize) -> Result<Self> {
        let stretched = match keys.find::<&str>(KIND)? {
            Some("none") => Self::None,
            Some("yarn") => Self::yarn(keys)?,
            kind @ (None | Some("linear")) => Self::linear(keys, kind.is_some())?,
            Some(kind) => {
                let hint = "none, linear, yarn and llama-3 scaling are".into();
                return Err(Error::Unsupported { what: format!("rope scaling `{kind}`"), hint });
            }
        };
        match (stretched, explicit_factors(keys.gguf, n)?) {
            (stretched, None) => Ok(stretched),
            (Self::None, Some(factors)) => Ok(Self::Factors(factors)),
            (_, Some(_)) => Err(Error::Unsupported {
                what: "rope scaling together with `rope_freqs.weight`".into(),
                hint: "either alone is".into(),
            }),
        }
    }

    /// By the newer of the two keys, as in llama.cpp. One that was asked for has to be there.
    fn linear(keys: Keys<'_>, is_asked_for: bool) -> Result<Self> {
        let found = match factor(keys, FACTOR)? {
            None => factor(keys, OLD_FACTOR)?,
            found => found,
        };
        if found.is_none() && is_asked_for {
            keys.get::<f32>(FACTOR)?;
        }
        let linear = found.filter(|&factor| factor != 1.0);
        Ok(linear.map_or(Self::None, |factor| Self::Linear { factor }))
    }

    fn yarn(keys: Keys<'_>) -> Result<Self> {
        let Some(longer) = factor(keys, FACTOR)? else {
            // Asked for, so there has to be one.
            return keys.get::<f32>(FACTOR).map(|_| Self::None);
        };
        let fixed =
            [("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)];
        for (key, usual) in fixed {
            let key = format!("rope.scaling.{key}");
            if let Some(other) = keys.find::<f32>(&key)?.filter(|&value| value != usual) {
                let what = format!("`{}` = {other}", keys.name(&key));
                return Err(Error::Unsupported { what, hint: format!("{usual} is") });
            }
        }
        let [now, older] = ["original_context_length", "orig_ctx_len"]
            .map(|key| keys.find::<u32>(&format!("rope.scaling.{key}")));
        let original = match now?.or(older?) {
            Some(tokens) => tokens,
            None => keys.get("context_length")?,
        };
        Ok(Self::Yarn(Yarn {
            beta_fast: factor(keys, "rope.scaling.yarn_beta_fast")?.unwrap_or(BETA_FAST),
            beta_slow: factor(keys, "rope.scaling.yarn_beta_slow")?.unwrap_or(BETA_SLOW),
            ..Yarn::new(longer, original as usize)
        }))
    }

    /// What rotated heads are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        match self {
            Self::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        }
    }
}

impl Yarn {
    pub(super) fn new(factor: f32, original_max_position_embeddings: usize) -> Self {
        let attention_factor = (1.0 + 0.1 * f64::from(factor.max(1.0)).ln()) as f32;
        let (beta_fast, beta_slow) = (BETA_FAST, BETA_SLOW);
        Self { factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor }
    }

    /// How much of the frequency of pair `i` is kept as it was, of pairs of `head_dim` dimensions.
    fn kept(&self, i: usize, head_dim: usize, theta: f32) -> f64 {
        let (dims, original) = (head_dim as f64, self.original_max_position_embeddings as f64);
        // The pair that turns so often in the original context.
        let pair = |turns: f32| {
            dims * (original / (f64::from(turns) * TAU)).ln() / (2.0 * f64::from(theta).ln())
        };
        let low = pair(self.beta_fast).floor().max(0.0);
        let high = pair(self.beta_slow).ceil().min(dims - 1.0);
        1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
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
        RopeScaling::Yarn(yarn) => {
            let kept = yarn.kept(i, head_dim, theta);
            plain(i) * (kept + (1.0 - kept) / f64::from(yarn.factor))
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
