//! What a training run is made of.

use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, Factor, Target};
use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::kernels::adamw::AdamW;

use super::buffers::{Optimizer, TrainShape};
use super::data::{DataOptions, TrainLength};
use super::recipe;
use super::schedule::{Decay, Warmup};

/// Settings of a run. The defaults are those of [`recipe`]; `docs/learning.md` shows what they
/// reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// r of every module.
    pub rank: usize,
    /// The scaling is `lora_alpha / rank`, or `lora_alpha / sqrt(rank)` with
    /// [`TrainOptions::use_rslora`].
    pub lora_alpha: f64,
    /// See [`TrainOptions::lora_alpha`].
    pub use_rslora: bool,
    /// Linears of each layer that get factors: names such as `q_proj`, `attention` for its four,
    /// `all-linear` for all.
    pub target_modules: Vec<String>,
    /// A factor that stays as it is, so that the other is trained alone: A in FFA-LoRA (Sun et al.
    /// 2024, arXiv:2403.12313), the two in turn in `RoLoRA` (Chen et al. 2025, arXiv:2502.01755).
    pub freeze: Option<Factor>,
    /// Rate after the warm-up; `None`: by the sizes of model and adapter,
    /// [`recipe::learning_rate`].
    pub learning_rate: Option<f64>,
    /// That of B in parts of that of A (LoRA+); 1 is the same.
    pub lora_plus_ratio: f64,
    /// How a step is taken.
    pub optimizer: Optimizer,
    /// Of [`Optimizer::Momentum`].
    pub momentum: f64,
    /// Decoupled with `AdamW`, added to the gradient with SGD.
    pub weight_decay: f64,
    /// mu of `FedProx` (Li et al. 2020, arXiv:1812.06127): half of it, times the squared distance
    /// from where the run began, is added to what is minimised, though not to the losses that are
    /// told. 0 is off.
    pub proximal_mu: f64,
    /// Gradients are scaled down to this norm; `None` leaves them.
    pub max_grad_norm: Option<f64>,
    /// How the rate goes on after its warm-up.
    pub decay: Decay,
    /// Steps in which it rises.
    pub warmup: Warmup,
    /// When to end.
    pub duration: TrainLength,
    /// Examples of a step, times [`TrainOptions::gradient_accumulation_steps`]. They are packed
    /// into as few passes as hold them, which changes no result.
    pub batch_size: usize,
    /// Batches whose gradients make a step.
    pub gradient_accumulation_steps: usize,
    /// A pass through the model takes as many tokens as this many of the longest examples: memory
    /// against speed.
    pub micro_batch: usize,
    /// Most tokens of an example.
    pub seq_len: usize,
    /// Keep the input of every k-th layer and compute the rest again; `None` keeps everything.
    pub checkpoint_every: Option<usize>,
    /// Of the first A, and of the order of the examples.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            lora_alpha: 16.0,
            use_rslora: false,
            target_modules: Target::ALL[..7]
                .iter()
                .map(|target| target.name().to_string())
                .collect(),
            freeze: None,
            learning_rate: None,
            lora_plus_ratio: 1.0,
            optimizer: Optimizer::AdamW,
            momentum: 0.9,
            weight_decay: 0.0,
            proximal_mu: 0.0,
            max_grad_norm: Some(1.0),
            decay: Decay::Linear,
            warmup: Warmup::Fraction(0.05),
            duration: TrainLength::Auto,
            batch_size: recipe::BATCH_SIZE,
            gradient_accumulation_steps: 1,
            micro_batch: 1,
            seq_len: 512,
            checkpoint_every: Some(1),
            seed: 0,
        }
    }
}

impl TrainOptions {
    /// The defaults for one long text: each step a row of it, once through.
    pub fn for_text() -> Self {
        Self { batch_size: 1, duration: TrainLength::Epochs(1), ..Self::default() }
    }

    /// The same with the rank, scaling and targets of an adapter, which a run starts from.
    pub fn starting_from(self, init: &Adapter) -> Self {
        let sits_on = |target: &&Target| init.modules.iter().any(|m| m.path.target == **target);
        let names = Target::ALL.iter().filter(sits_on).map(|target| target.name().to_string());
        Self {
            rank: init.config.r,
            lora_alpha: init.config.lora_alpha,
            use_rslora: init.config.use_rslora,
            target_modules: names.collect(),
            ..self
        }
    }

    /// What a module's product is multiplied by.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// How examples for this run are made: of its length, so that it is said once.
    pub fn data_options(&self) -> DataOptions {
        DataOptions { seq_len: self.seq_len, ..DataOptions::default() }
    }

    /// Examples of a step.
    pub fn step_examples(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// The same with what was left to the recipe decided, for `examples` on a model of `config`.
    pub fn resolved(&self, config: &ModelConfig, examples: usize) -> Self {
        let by_size =
            || recipe::learning_rate(config.hidden_size, self.rank, self.scaling(), examples);
        let learning_rate = Some(self.learning_rate.unwrap_or_else(by_size));
        Self { learning_rate, duration: self.duration.resolved(examples), ..self.clone() }
    }

    /// The targets, in the order of use.
    ///
    /// Errors: [`Error::InvalidArgument`] for a name that is neither a linear of a layer nor a set
    /// of them, or no name.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let known = &Target::ALL[..7];
        let is_meant = |name: &str, target: &Target| match name {
            "all-linear" => true,
            "attention" => {
                matches!(target, Target::QProj | Target::KProj | Target::VProj | Target::OProj)
            }
            name => name == target.name(),
        };
        let is_unknown = |name: &&String| !known.iter().any(|target| is_meant(name, target));
        let unknown = self.target_modules.iter().find(is_unknown).map(String::as_str);
        if let Some(name) = unknown.or(self.target_modules.is_empty().then_some("")) {
            let names = known.iter().map(|target| target.name()).collect::<Vec<_>>().join(", ");
            let reason = format!("`{name}` is none of {names}, attention, all-linear");
            return Err(Error::InvalidArgument { name: "targets", reason });
        }
        let wanted =
            |target: &Target| self.target_modules.iter().any(|name| is_meant(name, target));
        Ok(known.iter().copied().filter(wanted).collect())
    }

    /// What decides the size of a run on the device.
    ///
    /// Errors: as [`TrainOptions::targets`].
    pub fn shape(&self) -> Result<TrainShape> {
        Ok(TrainShape {
            micro_batch: self.micro_batch,
            seq_len: self.seq_len,
            checkpoint_every: self.checkpoint_every,
            rank: self.rank,
            targets: self.targets()?,
            optimizer: self.optimizer,
            freeze: self.freeze,
            proximal: self.proximal_mu > 0.0,
        })
    }

    pub(crate) fn adamw(&self) -> AdamW {
        AdamW { weight_decay: self.weight_decay, ..AdamW::default() }
    }

    /// Errors: [`Error::InvalidArgument`] naming a setting that makes no sense.
    pub fn check(&self) -> Result<()> {
        let invalid = |name, value: f64, allowed: &str| {
            Err(Error::InvalidArgument { name, reason: format!("{value}; {allowed}") })
        };
        if let Some(rate) = self.learning_rate.filter(|rate| !(rate.is_finite() && *rate > 0.0)) {
            return invalid("learning_rate", rate, "a number above 0, such as 5e-4, is needed");
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return invalid(
                "lora_alpha",
                self.lora_alpha,
                "a number above 0, such as twice the rank, is needed",
            );
        }
        if !(self.lora_plus_ratio.is_finite() && self.lora_plus_ratio > 0.0) {
            return invalid(
                "lora_plus_ratio",
                self.lora_plus_ratio,
                "a number above 0 is needed; 1 is off",
            );
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return invalid(
                "weight_decay",
                self.weight_decay,
                "0 or a small number above is needed",
            );
        }
        if !(self.proximal_mu.is_finite() && self.proximal_mu >= 0.0) {
            return invalid(
                "proximal_mu",
                self.proximal_mu,
                "0 or a number above, such as 0.01, is needed",
            );
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return invalid("momentum", self.momentum, "0 to below 1 is needed");
        }
        match self.max_grad_norm {
            Some(norm) if !(norm.is_finite() && norm > 0.0) => {
                invalid("max_grad_norm", norm, "a number above 0 is needed")
            }
            _ => Ok(()),
        }
    }
}
