//! What a delta says of itself.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::invalid;
use super::layout::Layout;
use super::quantise::Quantisation;
use super::sign::PublicKey;
use crate::adapter::Factor;
use crate::error::Result;
use crate::format::twice::Twice;

/// Bytes of a manifest; a real one has about a thousand.
const MAX_MANIFEST: usize = 1 << 20;
/// Letters of a name in it.
const MAX_TEXT: usize = 256;

/// Which of a module's factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Factors {
    /// A alone.
    A,
    /// B alone.
    B,
    /// Both.
    #[serde(rename = "AB")]
    Both,
}

impl Factors {
    /// Whether a factor is among them.
    pub(super) fn has(self, factor: Factor) -> bool {
        matches!((self, factor), (Self::Both, _) | (Self::A, Factor::A) | (Self::B, Factor::B))
    }

    /// The factor that a round of these freezes, if any: `TrainOptions::freeze` of the trainer.
    pub fn frozen(self) -> Option<Factor> {
        match self {
            Self::A => Some(Factor::B),
            Self::B => Some(Factor::A),
            Self::Both => None,
        }
    }

    /// The other one; both for both.
    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
            Self::Both => Self::Both,
        }
    }

    /// As manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::Both => "AB",
        }
    }
}

/// The version of an adapter that something was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its number.
    pub version: u64,
    /// The digest of its factors.
    pub digest: String,
}

/// How a delta's norm was bounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// The largest L2 norm over all numbers of the delta.
    pub norm: f64,
    /// Whether it was larger before.
    pub was_clipped: bool,
}

/// Noise that the device added after clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// `gaussian`.
    pub mechanism: String,
    /// Its standard deviation a number, in clip norms.
    pub sigma: f64,
}

/// Loss in nats a token on the device's own held-out examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// Of the parent.
    pub before: f64,
    /// Of what was trained.
    pub after: f64,
}

/// What a delta says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Names among [`Self::others`] that a reader must know to use the delta. This reader knows
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
    /// The adapter's id, the same over all versions.
    pub adapter: String,
    /// The base's fingerprint.
    pub base_fingerprint: String,
    /// What it was trained from.
    pub parent: Parent,
    /// The round it answers.
    pub round: u64,
    /// Which factors it holds.
    pub factors: Factors,
    /// Ranks, scalings and sizes.
    #[serde(flatten)]
    pub layout: Layout,
    /// Examples it was trained on, rounded down to a power of two ([`bucket`]).
    pub examples: u64,
    /// How its norm was bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// What noise was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// How its numbers are written.
    pub quantisation: Quantisation,
    /// What training did to the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Losses>,
    /// What wrote it, e.g. `epiphyte 0.1.0`.
    pub runtime: String,
    /// Seconds since 1970 after which a server refuses it, as the round's plan said: a device's
    /// own clock does not matter.
    pub expires: u64,
    /// Who signed it.
    pub signer: PublicKey,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl Manifest {
    /// Errors: `InvalidDelta` naming the first field that can't be honoured.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let manifest: Self = parse(text)?;
        check_critical(&manifest.critical)?;
        manifest.layout.check()?;
        manifest.quantisation.check()?;
        check_text("adapter", &manifest.adapter)?;
        check_text("base_fingerprint", &manifest.base_fingerprint)?;
        check_text("parent", &manifest.parent.digest)?;
        check_text("runtime", &manifest.runtime)?;
        check_power(manifest.examples)?;
        let numbers = [
            ("clip", manifest.clip.map(|clip| clip.norm)),
            ("noise", manifest.noise.as_ref().map(|noise| noise.sigma)),
        ];
        for (what, number) in numbers {
            if number.is_some_and(|n| !(n.is_finite() && n >= 0.0)) {
                return Err(invalid(what, "a finite number, not below 0, is needed"));
            }
        }
        match &manifest.noise {
            Some(noise) if noise.mechanism != "gaussian" => {
                Err(invalid("noise", "the mechanism is not known here; `gaussian` is"))
            }
            _ => Ok(manifest),
        }
    }
}

/// Reads a manifest of any kind.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    if text.len() > MAX_MANIFEST {
        let reason = format!("{} bytes; at most {MAX_MANIFEST} are read", text.len());
        return Err(invalid("manifest", reason));
    }
    // Not serde's message, which can quote the text.
    let damaged = |e: serde_json::Error| {
        invalid("manifest", format!("damaged, or a field is missing (column {})", e.column()))
    };
    let Twice(twice) = serde_json::from_str(text).map_err(damaged)?;
    match twice {
        Some(_) => Err(invalid("manifest", "it gives a field twice")),
        None => serde_json::from_str(text).map_err(damaged),
    }
}

/// That nothing must be known which is not known here.
pub(super) fn check_critical(critical: &[String]) -> Result<()> {
    match critical.first() {
        None => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(64).collect();
            Err(invalid(name, "it says that readers must know this field; update Epiphyte"))
        }
    }
}

/// That a name is one: short, and nothing that a terminal or a page would act on.
pub(super) fn check_text(what: &str, text: &str) -> Result<()> {
    let plain = |c: char| !c.is_control();
    match text.len() <= MAX_TEXT && !text.is_empty() && text.chars().all(plain) {
        true => Ok(()),
        false => Err(invalid(what, format!("1 to {MAX_TEXT} bytes of plain text are needed"))),
    }
}

fn check_power(examples: u64) -> Result<()> {
    match examples.is_power_of_two() && examples <= MAX_EXAMPLES {
        true => Ok(()),
        false => Err(invalid("examples", "a power of two up to 2^32 is needed")),
    }
}

const MAX_EXAMPLES: u64 = 1 << 32;

/// A count of examples, rounded down to a power of two: how many there were exactly is the user's
/// own. At least 1.
pub fn bucket(examples: u64) -> u64 {
    match examples {
        0 => 1,
        n => 1 << n.ilog2().min(MAX_EXAMPLES.ilog2()),
    }
}
