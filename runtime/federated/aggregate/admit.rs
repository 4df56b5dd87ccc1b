//! Which deltas are taken, and why the others are not.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::manifest::{Factors, Manifest};
use super::super::published::Published;
use super::super::sign::PublicKey;
use super::super::wire::Delta;
use super::exact::LARGEST;
use super::options::{AggregateOptions, Mode, OverNorm};

/// What a server knows beside the parent.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys of devices that may take part; `None` takes any key, each once a round.
    pub devices: Option<BTreeSet<PublicKey>>,
    /// Keys that may sign partial sums.
    pub workers: Vec<PublicKey>,
    /// Seconds since 1970.
    pub now: u64,
}

/// Why a delta was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each says what it is when shown")]
pub enum Refusal {
    Unreadable { reason: String },
    UntrustedKey,
    Expired { expires: u64 },
    OtherBase,
    OtherAdapter,
    OtherRound { round: u64, parent_version: u64 },
    OtherParent,
    OtherFactors { factors: Factors },
    OtherModules { module: String },
    OtherNoise,
    TooLarge { norm: f64, allowed: f64 },
    Cosine { cosine: f64, allowed: f64 },
    FarFromOthers,
    SecondOfKey,
    Duplicate,
}

impl Refusal {
    /// Its kind, as reports count it.
    pub const fn why(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::UntrustedKey => "untrusted_key",
            Self::Expired { .. } => "expired",
            Self::OtherBase => "other_base",
            Self::OtherAdapter => "other_adapter",
            Self::OtherRound { .. } => "other_round",
            Self::OtherParent => "other_parent",
            Self::OtherFactors { .. } => "other_factors",
            Self::OtherModules { .. } => "other_modules",
            Self::OtherNoise => "other_noise",
            Self::TooLarge { .. } => "too_large",
            Self::Cosine { .. } => "cosine",
            Self::FarFromOthers => "far_from_others",
            Self::SecondOfKey => "second_of_key",
            Self::Duplicate => "duplicate",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { reason } => f.write_str(reason),
            Self::UntrustedKey => f.write_str("its key is not among the devices'"),
            Self::Expired { expires } => write!(f, "it was to come until {expires}"),
            Self::OtherBase => f.write_str("made for another base model"),
            Self::OtherAdapter => f.write_str("of another adapter"),
            Self::OtherRound { round, parent_version } => {
                write!(f, "of round {round}, from version {parent_version}: too old, or replayed")
            }
            Self::OtherParent => f.write_str("its parent has that number, but other factors"),
            Self::OtherFactors { factors } => {
                write!(f, "it holds {}; the round is of others", factors.name())
            }
            Self::OtherModules { module } => {
                write!(f, "{module}: missing, too many, or of another rank, scaling or size")
            }
            Self::OtherNoise => f.write_str("without the noise that the round asks for"),
            Self::TooLarge { norm, allowed } => {
                write!(f, "norm {norm:.4}; {allowed:.4} is allowed")
            }
            Self::Cosine { cosine, allowed } => {
                write!(f, "cosine to the mean {cosine:.3}; {allowed} is asked for")
            }
            Self::FarFromOthers => f.write_str("farther from the others than krum allows"),
            Self::SecondOfKey => f.write_str("another delta of the same key was taken"),
            Self::Duplicate => f.write_str("the same delta was there before"),
        }
    }
}

/// A delta that is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Admitted {
    pub(super) weight: f64,
    pub(super) staleness: u64,
    /// What its numbers are multiplied by, to be within the norm; mostly 1.
    pub(super) shrink: f64,
}

/// A round, and what is asked of its deltas.
pub(super) struct Round<'a> {
    pub(super) parent: &'a Published,
    pub(super) options: &'a AggregateOptions,
    pub(super) trust: &'a Trust,
}

impl Round<'_> {
    /// Whether a delta whose signature was checked is taken.
    pub(super) fn admit(&self, delta: &Delta) -> Result<Admitted, Refusal> {
        let manifest = &delta.manifest;
        let trusted = self.trust.devices.as_ref();
        if trusted.is_some_and(|keys| !keys.contains(&manifest.signer)) {
            return Err(Refusal::UntrustedKey);
        }
        if manifest.expires < self.trust.now {
            return Err(Refusal::Expired { expires: manifest.expires });
        }
        let staleness = self.staleness(manifest)?;
        self.check_modules(delta)?;
        let shrink = self.shrink(delta)?;
        let weight = self.options.weight(manifest.examples, staleness);
        Ok(Admitted { weight, staleness, shrink })
    }

    fn staleness(&self, manifest: &Manifest) -> Result<u64, Refusal> {
        let ours = &self.parent.manifest;
        if manifest.base_fingerprint != ours.base_fingerprint {
            return Err(Refusal::OtherBase);
        }
        if manifest.adapter != ours.adapter {
            return Err(Refusal::OtherAdapter);
        }
        let (round, parent_version) = (manifest.round, manifest.parent.version);
        let behind = ours.version.checked_sub(parent_version);
        let round_behind = ours.next.round.checked_sub(round);
        let other = Refusal::OtherRound { round, parent_version };
        let staleness =
            behind.filter(|n| *n <= self.options.max_staleness && round_behind == Some(*n));
        let staleness = staleness.ok_or(other)?;
        if staleness == 0 && manifest.parent.digest != ours.digest {
            return Err(Refusal::OtherParent);
        }
        if manifest.factors != ours.next.factors {
            return Err(Refusal::OtherFactors { factors: manifest.factors });
        }
        let sigma = manifest.noise.as_ref().map_or(0.0, |noise| noise.sigma);
        match sigma >= ours.next.sigma {
            true => Ok(staleness),
            false => Err(Refusal::OtherNoise),
        }
    }

    /// That it holds the parent's modules, at its rank where the mode needs that.
    fn check_modules(&self, delta: &Delta) -> Result<(), Refusal> {
        let (theirs, ours) = (&delta.manifest.layout, &self.parent.manifest.layout);
        let paths = delta.modules();
        let other = |path| Refusal::OtherModules { module: format!("{path}") };
        for path in &paths {
            let (their, our) = (theirs.of_module(*path), ours.of_module(*path));
            let mixed = matches!(self.options.mode, Mode::Svd | Mode::Stack);
            let rank_fits = their.rank == our.rank || mixed && their.rank < our.rank;
            let shapes = theirs.shape(path.target) == ours.shape(path.target);
            let known = self.parent.module(*path).is_some();
            if !known || !rank_fits || !shapes || their.scaling != our.scaling {
                return Err(other(*path));
            }
        }
        let missing = self.parent.modules.iter().find(|module| !paths.contains(&module.path));
        missing.map_or(Ok(()), |module| Err(other(module.path)))
    }

    fn shrink(&self, delta: &Delta) -> Result<f64, Refusal> {
        let (plan, norm) = (&self.parent.manifest.next, delta.norm());
        let Some(clip) = plan.clip_norm else {
            let allowed = LARGEST / 1024.0;
            let fits = norm < allowed;
            return fits.then_some(1.0).ok_or(Refusal::TooLarge { norm, allowed });
        };
        let shrinks = self.options.over_norm == OverNorm::Shrink;
        // What differential privacy reckons with has no tolerance.
        let is_exact = shrinks && plan.sigma == 0.0;
        let allowed = if is_exact { clip } else { allowed(clip, plan.sigma, delta.n_numbers()) };
        // However large the plan's: sums have room for so much.
        let allowed = allowed.min(LARGEST / 1024.0);
        match norm > allowed {
            false => Ok(1.0),
            true if shrinks => Ok(allowed / norm),
            true => Err(Refusal::TooLarge { norm, allowed }),
        }
    }
}

/// The norm that rounding and the device's own noise can make of a clipped delta.
fn allowed(clip: f64, sigma: f64, numbers: usize) -> f64 {
    const ROUNDING: f64 = 1.05;
    let noise = sigma * clip * ((numbers as f64).sqrt() + 6.0);
    ROUNDING * (clip + noise)
}
