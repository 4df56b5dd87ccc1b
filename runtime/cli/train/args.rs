//! The arguments of `epiphyte train`, and the settings that they mean.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::adapter::{Adapter, Target};
use crate::cli::plan::{OptimizerArg, Recompute, parse_bytes, parse_recompute, target_names};
use crate::cli::{ModelFile, TemplateArgs};
use crate::error::{Error, Result};
use crate::train::TrainOptions;
use crate::train::data::{DataOptions, Duration, Validation};
use crate::train::schedule::{Decay, Warmup};

/// Fine-tune a LoRA adapter on this device
#[derive(Args)]
pub(in crate::cli) struct TrainArgs {
    #[command(flatten)]
    pub(super) model: ModelFile,
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    #[command(flatten)]
    pub(super) steps: StepArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,
    /// Print one JSON object at the end
    #[arg(long)]
    pub(super) json: bool,
}

/// What to learn from.
#[derive(Args)]
pub(super) struct DataArgs {
    /// Examples: JSONL with `messages`, `prompt` and `completion`, `prefix`, `middle` and `suffix`, or `text`, or chats
    /// of ShareGPT or Alpaca; `-` reads standard input
    #[arg(short = 'd', long = "data", value_name = "FILE")]
    pub(super) path: PathBuf,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    /// The data is one document, plain UTF-8
    #[arg(long)]
    pub(super) text: bool,
    /// Tokens of a row; longer examples are cut [default: 512, or what fits the budget]
    #[arg(long, value_name = "N")]
    pub(super) seq_len: Option<usize>,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1
    #[arg(long, value_name = "W", default_value_t = 0.1)]
    pub(super) prompt_loss_weight: f32,
    /// Pass over lines that can't be used, and count them
    #[arg(long)]
    pub(super) skip_bad: bool,
    /// Keep this part of the data (0.1), this many records (50) or another file for validation
    #[arg(long, value_name = "PART|N|FILE", value_parser = parse_validation)]
    pub(super) validation: Option<ValidationArg>,
}

/// The adapter.
#[derive(Args)]
pub(super) struct LoraArgs {
    /// Rank [default: 8, or that of --init]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// What B A is multiplied by is alpha / rank [default: 16, or that of --init]
    #[arg(long, value_name = "A")]
    alpha: Option<f64>,
    /// Divide alpha by the rank's square root
    #[arg(long)]
    rslora: bool,
    /// Linears to adapt: attention, all-linear or names such as `q_proj,v_proj` [default: all-linear, or those of --init]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    targets: Option<Vec<String>>,
    /// Start from this adapter instead of a new one
    #[arg(long, value_name = "ADAPTER")]
    pub(super) init: Option<PathBuf>,
}

/// How steps are taken.
#[derive(Args)]
pub(super) struct StepArgs {
    /// Learning rate after the warm-up
    #[arg(long, value_name = "RATE", default_value_t = 5e-4, allow_negative_numbers = true)]
    lr: f64,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "steps")]
    epochs: Option<u64>,
    /// Steps in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Rows that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Batches of a step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// How a step is taken
    #[arg(long, value_enum, default_value_t = OptimizerArg::Adamw)]
    optimizer: OptimizerArg,
    /// The learning rate of B in parts of that of A
    #[arg(long, value_name = "RATIO", default_value_t = 1.0)]
    lora_plus: f64,
    /// Pull the factors towards 0
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    weight_decay: f64,
    /// Scale gradients down to this norm; 0 leaves them
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    max_grad_norm: f64,
    /// How the learning rate goes on after the warm-up
    #[arg(long, value_enum, default_value_t = ScheduleArg::Linear)]
    schedule: ScheduleArg,
    /// Steps in which the learning rate rises, or a part of all
    #[arg(long, value_name = "N|P%", default_value = "5%", value_parser = parse_warmup)]
    warmup: Warmup,
    /// Compute activations again in the backward pass instead of keeping them: none, every-layer, or in runs of K layers
    /// [default: every-layer, or what fits the budget]
    #[arg(long, value_name = "HOW", value_parser = parse_recompute)]
    pub(super) recompute: Option<Recompute>,
    /// Decides the first factors, the order of the data and what is kept for validation
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
}

/// What becomes of the run.
#[derive(Args)]
pub(super) struct RunArgs {
    /// Folder for the adapter (PEFT) and its checkpoints
    #[arg(short, long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Go on with the run in the folder, given the same arguments
    #[arg(long)]
    pub(super) resume: bool,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) checkpoint_every: u64,
    /// Checkpoints to keep
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) keep: u64,
    /// Steps between two validations [default: a tenth of the run]
    #[arg(long, value_name = "STEPS", requires = "validation", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) evaluate_every: Option<u64>,
    /// Stop after this many validations without improvement, and give the best adapter instead of the last
    #[arg(long, value_name = "N", requires = "validation", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) patience: Option<u32>,
    /// Device memory that may be used (800MB, 6GiB): what is not given is chosen so that it fits
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) memory_budget: Option<u64>,
    /// Draw the losses into this file
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,
    /// Write every step to this file [default: checkpoints/steps.jsonl in the folder]
    #[arg(long, value_name = "FILE.jsonl")]
    pub(super) log: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScheduleArg {
    Constant,
    Linear,
    Cosine,
}

/// What `--validation` says.
#[derive(Clone)]
pub(super) enum ValidationArg {
    Part(Validation),
    File(PathBuf),
}

impl TrainArgs {
    /// The settings of the run; what `--init` starts from decides what is not given.
    ///
    /// Errors: as [`TrainOptions::check`] and [`TrainOptions::targets`].
    pub(super) fn options(&self, init: Option<&Adapter>) -> Result<TrainOptions> {
        let (defaults, lora, steps) = (TrainOptions::default(), &self.lora, &self.steps);
        let config = init.map(|adapter| &adapter.config);
        let options = TrainOptions {
            rank: lora.rank.or(config.map(|config| config.r)).unwrap_or(defaults.rank),
            lora_alpha: lora.alpha.or(config.map(|config| config.lora_alpha)).unwrap_or(defaults.lora_alpha),
            use_rslora: lora.rslora || config.is_some_and(|config| config.use_rslora),
            target_modules: match (&lora.targets, init) {
                (Some(names), _) => target_names(names),
                (None, Some(adapter)) => names_of(adapter),
                (None, None) => defaults.target_modules,
            },
            learning_rate: steps.lr,
            lora_plus_ratio: steps.lora_plus,
            optimizer: steps.optimizer.into(),
            weight_decay: steps.weight_decay,
            max_grad_norm: (steps.max_grad_norm != 0.0).then_some(steps.max_grad_norm),
            decay: match steps.schedule {
                ScheduleArg::Constant => Decay::Constant,
                ScheduleArg::Linear => Decay::Linear,
                ScheduleArg::Cosine => Decay::Cosine,
            },
            warmup: steps.warmup,
            duration: match (steps.steps, steps.epochs) {
                (Some(steps), _) => Duration::Steps(steps),
                (None, Some(epochs)) => Duration::Epochs(epochs),
                (None, None) => defaults.duration,
            },
            micro_batch: steps.batch,
            accumulation: steps.accumulate,
            seq_len: self.data.seq_len.unwrap_or(defaults.seq_len),
            checkpoint_every: steps.recompute.map_or(defaults.checkpoint_every, |Recompute(every)| every),
            seed: steps.seed,
            momentum: defaults.momentum,
        };
        options.check()?;
        options.targets()?;
        Ok(options)
    }

    /// How examples of at most `seq_len` tokens are made.
    pub(super) fn data_options(&self, seq_len: usize) -> DataOptions {
        let DataArgs { prompt_loss_weight, skip_bad, .. } = self.data;
        DataOptions { seq_len, prompt_loss_weight, skip_bad, ..DataOptions::default() }
    }
}

/// The linears that an adapter sits on.
fn names_of(adapter: &Adapter) -> Vec<String> {
    let sits_on = |target: &&Target| adapter.modules.iter().any(|module| module.path.target == **target);
    Target::ALL.iter().filter(sits_on).map(|target| target.name().to_string()).collect()
}

fn parse_warmup(text: &str) -> Result<Warmup, String> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Warmup::Fraction(percent / 100.0)),
            _ => Err("a part is 0% to 100%".into()),
        },
        None => text.parse().map(Warmup::Steps).map_err(|_| "give a number of steps, or a part such as 5%".into()),
    }
}

/// A number that is no file's name is a part or a count.
fn parse_validation(text: &str) -> Result<ValidationArg, String> {
    let path = PathBuf::from(text);
    if path.exists() {
        return Ok(ValidationArg::File(path));
    }
    if let Ok(count) = text.parse::<usize>() {
        return Ok(ValidationArg::Part(Validation::Count(count)));
    }
    match text.parse::<f64>() {
        Ok(part) if part > 0.0 && part < 1.0 => Ok(ValidationArg::Part(Validation::Fraction(part))),
        Ok(_) => Err("a part is between 0 and 1".into()),
        Err(_) => Err("there is no such file; give one, a part such as 0.1, or a number of records".into()),
    }
}

/// That `path` can be written: its folder exists.
///
/// Errors: [`Error::InvalidArgument`].
pub(super) fn check_writable(name: &'static str, path: Option<&PathBuf>) -> Result<()> {
    let folder = path.and_then(|path| path.parent()).filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(folder) => {
            let reason = format!("there is no folder {} to write to", folder.display());
            Err(Error::InvalidArgument { name, reason })
        }
    }
}
