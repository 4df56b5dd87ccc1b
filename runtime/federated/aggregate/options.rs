//! How many deltas become one version.

use serde::Serialize;

use super::super::manifest::Factors;
use super::super::published::RoundPlan;
use crate::error::{Error, Result};

/// What is averaged, and what that is exact about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A and B each on its own (`FedIT`). Not exact: the product of means is not the mean of
    /// products; the report estimates by how much.
    FedAvg,
    /// One factor a round, in turn, the other common to all (RoLoRA): exact.
    RoLora,
    /// B alone, A as it began (FFA-LoRA): exact.
    Ffa,
    /// The mean of the products, cut back to the parent's rank (FlexLoRA): the best of its rank.
    /// Ranks may differ.
    Svd,
    /// The products side by side (FLoRA): exact, at a rank that is the sum of all. Ranks may
    /// differ.
    Stack,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 5] = [Self::FedAvg, Self::RoLora, Self::Ffa, Self::Svd, Self::Stack];

    /// As options and reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FedAvg => "fedavg",
            Self::RoLora => "rolora",
            Self::Ffa => "ffa",
            Self::Svd => "svd",
            Self::Stack => "stack",
        }
    }

    /// What the result is, for people.
    pub const fn exactness(self) -> &'static str {
        match self {
            Self::FedAvg => "means of A and of B; their product is not the mean of the products",
            Self::RoLora | Self::Ffa => "the mean of the products, exactly: one factor is common",
            Self::Svd => "the closest of the parent's rank to the mean of the products",
            Self::Stack => "the mean of the products, exactly, at the sum of the ranks",
        }
    }

    /// Whether a round of these factors is one of this mode.
    pub(super) fn takes(self, factors: Factors) -> bool {
        match self {
            Self::FedAvg | Self::Svd | Self::Stack => factors == Factors::Both,
            Self::RoLora => factors != Factors::Both,
            Self::Ffa => factors == Factors::B,
        }
    }

    /// The factors of the round after one of `factors`.
    pub fn next(self, factors: Factors) -> Factors {
        match self {
            Self::FedAvg | Self::Svd | Self::Stack => Factors::Both,
            Self::RoLora => factors.other(),
            Self::Ffa => Factors::B,
        }
    }

    /// Whether it adds numbers up, delta by delta, rather than needing all of them at once.
    pub const fn is_sum(self) -> bool {
        matches!(self, Self::FedAvg | Self::RoLora | Self::Ffa)
    }
}

/// How much a delta counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// All alike.
    Uniform,
    /// By its examples, a power of two, up to a cap.
    Examples {
        /// The most that one counts.
        cap: u64,
    },
}

/// What becomes of a delta whose norm is above what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OverNorm {
    /// It is left out.
    Refuse,
    /// It is shrunk to what is allowed.
    Shrink,
}

/// Means that a few liars can't move far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Robust {
    /// The weighted mean.
    Mean,
    /// Of each number without the largest and the smallest `fraction` of all.
    TrimmedMean {
        /// From 0 to below 0.5.
        fraction: f64,
    },
    /// The middle of each number.
    Median,
    /// The weighted mean of those closest to their neighbours (multi-Krum), by the change of the
    /// product `B A`.
    Krum {
        /// Liars that are reckoned with; more than twice as many and two deltas are needed.
        byzantine: usize,
    },
}

/// What the server does with the mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerOptimizer {
    /// `x += lr g`.
    Sgd {
        /// 1 for plain averaging.
        lr: f64,
    },
    /// `m = momentum m + g`, `x += lr m` (`FedAvgM`).
    Momentum {
        /// Learning rate.
        lr: f64,
        /// How much of the last step is kept.
        momentum: f64,
    },
    /// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `x += lr m / (sqrt v + tau)`
    /// (`FedAdam`).
    Adam {
        /// Learning rate.
        lr: f64,
        /// Decay of the mean.
        b1: f64,
        /// Decay of the squares.
        b2: f64,
        /// Added to the root.
        tau: f64,
    },
}

/// Noise that the server adds to the sum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CentralNoise {
    /// Its standard deviation, in clip norms.
    pub sigma: f64,
    /// What the sum is divided by, whoever came: the number that was expected.
    pub expected: u64,
}

/// How many deltas become one version.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AggregateOptions {
    /// What is averaged.
    pub mode: Mode,
    /// How much each counts.
    pub weights: Weights,
    /// What becomes of those above the plan's clip norm.
    pub over_norm: OverNorm,
    /// Versions that a delta's parent may be behind; each lowers its weight to
    /// `1 / sqrt(1 + versions)` (`FedBuff`).
    pub max_staleness: u64,
    /// Which mean.
    pub robust: Robust,
    /// Deltas are left out whose cosine to the mean of all is below.
    pub min_cosine: Option<f64>,
    /// Fewer than these publish nothing.
    pub min_clients: u64,
    /// Whether each delta's cosine to the mean is reported, which reads the deltas again.
    pub cosines: bool,
    /// Noise for differential privacy.
    pub noise: Option<CentralNoise>,
    /// What becomes of the mean.
    pub optimizer: ServerOptimizer,
}

impl Default for AggregateOptions {
    fn default() -> Self {
        Self {
            mode: Mode::RoLora,
            weights: Weights::Examples { cap: 64 },
            over_norm: OverNorm::Refuse,
            max_staleness: 0,
            robust: Robust::Mean,
            min_cosine: None,
            min_clients: 10,
            cosines: true,
            noise: None,
            optimizer: ServerOptimizer::Sgd { lr: 1.0 },
        }
    }
}

impl AggregateOptions {
    /// Errors: [`Error::InvalidArgument`] for options that make no sense together.
    pub(super) fn check(&self, plan: &RoundPlan) -> Result<()> {
        if !self.mode.takes(plan.factors) {
            let reason = format!(
                "the round is of {}, which {} does not average",
                plan.factors.name(),
                self.mode.name()
            );
            return Err(Error::InvalidArgument { name: "mode", reason });
        }
        let refuse =
            |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
        let by_number = matches!(self.robust, Robust::TrimmedMean { .. } | Robust::Median);
        if by_number && !matches!(self.mode, Mode::RoLora | Mode::Ffa) {
            return refuse(
                "robust",
                "the median of A and that of B are not those of their product; use rolora or ffa, \
                where one factor is common, or krum",
            );
        }
        if matches!(self.robust, Robust::TrimmedMean { fraction } if !(0.0..0.5).contains(&fraction))
        {
            return refuse("trim", "0 to below 0.5 is allowed");
        }
        if !self.mode.is_sum() && self.optimizer != (ServerOptimizer::Sgd { lr: 1.0 }) {
            return refuse("optimizer", "svd and stack give factors in new directions; leave it");
        }
        if !self.mode.is_sum() && (self.max_staleness > 0 || self.min_cosine.is_some()) {
            return refuse("mode", "staleness and cosines are for fedavg, rolora and ffa");
        }
        let plain = self.robust == Robust::Mean;
        if !plain && (self.max_staleness > 0 || self.min_cosine.is_some()) {
            return refuse("robust", "not together with staleness or cosines");
        }
        if let Some(noise) = self.noise {
            let apt = plain && self.mode.is_sum() && self.weights == Weights::Uniform;
            if !apt || self.max_staleness > 0 || self.min_cosine.is_some() {
                return refuse(
                    "noise",
                    "the bound on what one device can do holds for the plain mean of fedavg, \
                    rolora or ffa with uniform weights",
                );
            }
            if plan.clip_norm.is_none()
                || noise.expected == 0
                || noise.sigma.is_nan()
                || noise.sigma <= 0.0
            {
                return refuse("noise", "it needs the plan's clip norm and an expected number");
            }
            if plan.sigma > 0.0 {
                return refuse("noise", "the devices add their own in this round");
            }
            if self.over_norm != OverNorm::Shrink {
                return refuse("noise", "deltas must be held to the clip norm: over-norm shrink");
            }
        }
        if matches!(self.weights, Weights::Examples { cap } if !(1..=1024).contains(&cap)) {
            return refuse("cap", "1 to 1024 is allowed");
        }
        Ok(())
    }

    /// What a delta of so many examples counts.
    pub(super) fn weight(&self, examples: u64, staleness: u64) -> f64 {
        let weight = match self.weights {
            Weights::Uniform => 1.0,
            Weights::Examples { cap } => examples.min(cap) as f64,
        };
        if staleness == 0 { weight } else { weight / (1.0 + staleness as f64).sqrt() }
    }

    /// What must be the same in all parts of a round.
    pub(super) fn key(&self) -> String {
        serde_json::json!([
            self.mode,
            self.weights,
            self.over_norm,
            self.max_staleness,
            self.robust,
            self.noise
        ])
        .to_string()
    }
}
