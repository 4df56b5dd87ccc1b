//! Frequencies of rotary position embeddings and their scaling for long contexts.
//!
//! Source: Su et al., `RoFormer`, arXiv 2104.09864; linear scaling: Chen et al., arXiv 2306.15595;
//! Llama 3.1's scaling: `_compute_llama3_parameters` of Hugging Face's transformers; `YaRN`: Peng et
//! al., arXiv 2309.00071; `LongRoPE`: Ding et al., arXiv 2402.13753.

use std::f64::consts::TAU;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;

use super::read_gguf::Keys;

const KIND: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
const OLD_FACTOR: &str = "rope.scale_linear";
const ATTENTION: &str = "rope.scaling.attn_factor";
const FREQS: &str = "rope_freqs.weight";
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

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
    /// `LongRoPE`'s.
    Long(LongRope),
    /// A divisor a frequency, `[rotary_dim / 2]`: GGUF's `rope_freqs.weight`, where converters put
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

/// Divisors of the frequencies that searching has found: one set within the original context,
/// another for longer ones. Which of them it is has to be known before the first key is cached, so
/// the room for positions decides, as in llama.cpp; in transformers the length of the text does.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// A divisor a frequency, `[rotary_dim / 2]`, for contexts of no more than the original.
    pub short: Vec<f32>,
    /// The same for longer ones.
    pub long: Vec<f32>,
    /// Tokens of the context before the change.
    pub original_max_position_embeddings: usize,
    /// What rotated dimensions are multiplied by, whichever it is.
    pub attention_factor: f32,
}

/// The paper's, and everybody's default.
const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

/// One of a model's rotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a token, `[head_dim / 2]`; pairs with zeros stay as they are.
    pub frequencies: Vec<f32>,
    /// What the other pairs are multiplied by.
    pub scale: f32,
}

impl RopeScaling {
    /// From the metadata and the tensors of factors, which must hold `n` each.
    pub(super) fn from_gguf(keys: Keys<'_>, n: usize) -> Result<Self> {
        let kind = keys.find::<&str>(KIND)?;
        let stretched = match kind {
            Some("none" | "longrope") => Self::None,
            Some("yarn") => Self::yarn(keys)?,
            None | Some("linear") => Self::linear(keys, kind.is_some())?,
            Some(kind) => {
                let hint = "none, linear, yarn, longrope and llama-3 scaling are".into();
                return Err(Error::Unsupported { what: format!("rope scaling `{kind}`"), hint });
            }
        };
        let is_there = |name: &&str| keys.gguf.tensor(name).is_some();
        let tensors: Vec<&str> = [FREQS, SHORT, LONG].into_iter().filter(is_there).collect();
        let own = keys.find::<f32>(ATTENTION)?.filter(|&factor| factor != 0.0 && factor != 1.0);
        match (stretched, &tensors[..]) {
            (_, tensors)
                if !tensors.contains(&LONG)
                    && let Some(factor) = own =>
            {
                let what = format!("`{}` = {factor}", keys.name(ATTENTION));
                Err(Error::Unsupported { what, hint: "with longrope scaling it is".into() })
            }
            (Self::None, [SHORT, LONG]) => Self::long(keys, n),
            // Its tensors are missing, which is said by name.
            (Self::None, []) if kind == Some("longrope") => Self::long(keys, n),
            (Self::None, [FREQS]) => Ok(Self::Factors(factors(keys.gguf, FREQS, n)?)),
            (stretched, []) => Ok(stretched),
            (_, [name, ..]) => Err(Error::Unsupported {
                what: format!("`{name}` together with other rope scaling, or without its twin,"),
                hint: "one kind of scaling alone, with all of its tensors, is".into(),
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
        let original = original_context(keys)?;
        Ok(Self::Yarn(Yarn {
            beta_fast: factor(keys, "rope.scaling.yarn_beta_fast")?.unwrap_or(BETA_FAST),
            beta_slow: factor(keys, "rope.scaling.yarn_beta_slow")?.unwrap_or(BETA_SLOW),
            ..Yarn::new(longer, original)
        }))
    }

    fn long(keys: Keys<'_>, n: usize) -> Result<Self> {
        let original = original_context(keys)?;
        let longer = f64::from(keys.get::<u32>("context_length")?) / original as f64;
        let usual = LongRope::usual_factor(longer, original);
        Ok(Self::Long(LongRope {
            short: factors(keys.gguf, SHORT, n)?,
            long: factors(keys.gguf, LONG, n)?,
            original_max_position_embeddings: original,
            attention_factor: factor(keys, ATTENTION)?.unwrap_or(usual),
        }))
    }

    /// What rotated dimensions are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        match self {
            Self::Yarn(yarn) => yarn.attention_factor,
            Self::Long(long) => long.attention_factor,
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

impl LongRope {
    /// What rotated dimensions are multiplied by where nothing is said, of a context that became
    /// `longer` times as long.
    pub(super) fn usual_factor(longer: f64, original_max_position_embeddings: usize) -> f32 {
        let original = original_max_position_embeddings as f64;
        if longer <= 1.0 { 1.0 } else { (1.0 + longer.ln() / original.ln()).sqrt() as f32 }
    }

    /// The divisors where there is room for `positions`.
    fn factors(&self, positions: usize) -> &[f32] {
        if self.is_long(positions) { &self.long } else { &self.short }
    }

    pub(super) fn is_long(&self, positions: usize) -> bool {
        positions > self.original_max_position_embeddings
    }
}

/// Tokens of the context before the change.
fn original_context(keys: Keys<'_>) -> Result<usize> {
    let [now, older] = ["original_context_length", "orig_ctx_len"]
        .map(|key| keys.find::<u32>(&format!("rope.scaling.{key}")));
    let original = match now?.or(older?) {
        Some(tokens) => tokens,
        None => keys.get("context_length")?,
    };
    let key = || keys.name("rope.scaling.original_context_length");
    check_original(original as usize, key)
}

/// Logarithms are taken of it.
pub(super) fn check_original(tokens: usize, key: impl Fn() -> String) -> Result<usize> {
    let wrong =
        || Error::InvalidMetadata { key: key(), reason: format!("{tokens}; 2 is the least") };
    if tokens >= 2 { Ok(tokens) } else { Err(wrong()) }
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

pub(super) fn usable(factor: f32) -> bool {
    factor.is_finite() && factor > 0.0
}

fn factors(gguf: &Gguf, name: &str, n: usize) -> Result<Vec<f32>> {
    let tensor = gguf.require(name)?;
    let invalid = |reason| Err(Error::InvalidTensor { name: name.into(), reason });
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
        Ok(factors)
    } else {
        invalid("its factors are not all numbers above 0".into())
    }
}

/// `theta^(-2 i / dims)` for i below `dims / 2`, scaled where there is room for `positions`;
/// radians a token.
pub(super) fn inverse_frequencies(
    dims: usize,
    theta: f32,
    scaling: &RopeScaling,
    positions: usize,
) -> Vec<f32> {
    let plain = |i: usize| f64::from(theta).powf(-2.0 * i as f64 / dims as f64);
    let divided = |i: usize, by: &[f32]| plain(i) / by.get(i).map_or(1.0, |&factor| factor.into());
    let scaled = |i: usize| match scaling {
        RopeScaling::None => plain(i),
        RopeScaling::Linear { factor } => plain(i) / f64::from(*factor),
        RopeScaling::Factors(factors) => divided(i, factors),
        RopeScaling::Long(long) => divided(i, long.factors(positions)),
        RopeScaling::Yarn(yarn) => {
            let kept = yarn.kept(i, dims, theta);
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
    (0..dims / 2).map(|i| scaled(i) as f32).collect()
}
