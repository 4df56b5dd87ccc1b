//! The arguments of `epiphyte train`, and the settings that they mean.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::paths::{Files, Kind};
use crate::plan::parse_bytes;
use crate::shape::ShapeArgs;
use crate::{ModelFile, TemplateArgs};
use epiphyte::adapter::Adapter;
use epiphyte::error::{Error, Result};
use epiphyte::format::is_in_place;
use epiphyte::train::data::TrainLength;
use epiphyte::train::run::ValidationData;
use epiphyte::train::schedule::{Decay, Warmup};
use epiphyte::train::{RunOptions, TrainOptions};

/// Fine-tune a LoRA adapter on this device
#[derive(Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(super) model: ModelFile,
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    pub(super) shape: ShapeArgs,
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
    /// Examples: JSONL with `messages`, `prompt` and `completion`, `prefix`, `middle` and `suffix`,
    /// or `text`, or chats of `ShareGPT` or `Alpaca`; `-` reads standard input
    #[arg(short = 'd', long = "data", value_name = "FILE")]
    pub(super) path: PathBuf,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    /// The data is one document, plain UTF-8
    #[arg(long)]
    pub(super) text: bool,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1 [default: 0.1, and 0
    /// for under 200 records]
    #[arg(long, value_name = "W")]
    pub(super) prompt_loss_weight: Option<f32>,
    /// Pass over lines that can't be used, and count them
    #[arg(long)]
    pub(super) skip_bad: bool,
    /// Keep this part of the data (0.1), this many records (50), another file, or none for
    /// validation [default: a tenth, where there are 500 records and the length of the run is left
    /// open]
    #[arg(long, value_name = "PART|N|FILE", value_parser = clap::value_parser!(ValidationData))]
    pub(super) validation: Option<ValidationData>,
}

/// The adapter.
#[derive(Args)]
pub(super) struct LoraArgs {
    /// What B A is multiplied by is alpha / rank [default: 16, or that of --init]
    #[arg(long, value_name = "A")]
    alpha: Option<f64>,
    /// Divide alpha by the rank's square root
    #[arg(long)]
    rslora: bool,
    /// Start from this adapter instead of a new one
    #[arg(long, value_name = "ADAPTER")]
    pub(super) init: Option<PathBuf>,
    /// Start from --init even if it was made for another base model
    #[arg(long, requires = "init")]
    pub(super) force: bool,
}

/// How steps are taken.
#[derive(Args)]
pub(crate) struct StepArgs {
    /// Learning rate after the warm-up [default: by the sizes of model and adapter]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Passes over the data [default: by how many examples there are; of a text 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "steps")]
    pub(super) epochs: Option<u64>,
    /// Steps in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) steps: Option<u64>,
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
    /// Go on with the run in the folder, given the same arguments; more --steps or --epochs make it
    /// longer
    #[arg(long)]
    pub(super) resume: bool,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) checkpoint_every: u64,
    /// Checkpoints to keep [default: 2, and none once the run is over]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) keep: Option<u64>,
    /// Steps between two validations [default: a tenth of the run]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) evaluate_every: Option<u64>,
    /// Stop after this many validations without improvement, and give the best adapter instead of
    /// the last [default: 3 where validation is not asked for but the default]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
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

impl StepArgs {
    /// How long a run is.
    pub(crate) fn duration(&self) -> TrainLength {
        match (self.steps, self.epochs) {
            (Some(steps), _) => TrainLength::Steps(steps),
            (None, Some(epochs)) => TrainLength::Epochs(epochs),
            (None, None) => TrainLength::Auto,
        }
    }

    /// `defaults` with what was given, for a run of this length.
    pub(crate) fn options(&self, defaults: TrainOptions, duration: TrainLength) -> TrainOptions {
        TrainOptions {
            learning_rate: self.lr,
            lora_plus_ratio: self.lora_plus,
            weight_decay: self.weight_decay,
            max_grad_norm: (self.max_grad_norm != 0.0).then_some(self.max_grad_norm),
            decay: match self.schedule {
                ScheduleArg::Constant => Decay::Constant,
                ScheduleArg::Linear => Decay::Linear,
                ScheduleArg::Cosine => Decay::Cosine,
            },
            warmup: self.warmup,
            duration,
            seed: self.seed,
            ..defaults
        }
    }
}

impl TrainArgs {
    /// What the run is given, but for its settings, of which only the length is known yet.
    pub(super) fn run_options(&self) -> RunOptions {
        let (data, run) = (&self.data, &self.run);
        let mut options = RunOptions::new(&data.path);
        options.text = data.text;
        options.prompt_loss_weight = data.prompt_loss_weight;
        options.skip_bad = data.skip_bad;
        options.validation = data.validation.clone();
        options.chat_template = data.template.path.clone();
        options.train.duration = self.steps.duration();
        options.checkpoint_every = run.checkpoint_every;
        options.keep = run.keep;
        options.evaluate_every = run.evaluate_every;
        options.patience = run.patience;
        options.log = run.log.clone();
        options
    }

    /// The settings of a run of this length; what `--init` starts from decides what is not given.
    pub(super) fn options(
        &self,
        init: Option<&Adapter>,
        duration: TrainLength,
        context: usize,
    ) -> TrainOptions {
        let lora = &self.lora;
        let defaults =
            if self.data.text { TrainOptions::for_text() } else { TrainOptions::default() };
        let defaults = match init {
            Some(init) => defaults.starting_from(init),
            None => defaults,
        };
        let options = TrainOptions {
            lora_alpha: lora.alpha.unwrap_or(defaults.lora_alpha),
            use_rslora: lora.rslora || defaults.use_rslora,
            ..self.steps.options(defaults, duration)
        };
        self.shape.options(options, context)
    }
}

fn parse_warmup(text: &str) -> Result<Warmup, String> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => {
                Ok(Warmup::Fraction(percent / 100.0))
            }
            _ => Err("a part is 0% to 100%".into()),
        },
        None => text
            .parse()
            .map(Warmup::Steps)
            .map_err(|_| "give a number of steps, or a part such as 5%".into()),
    }
}

impl TrainArgs {
    /// That nothing it writes is something it reads, or can't be written; `validation` is that of
    /// the run.
    ///
    /// Errors: as [`Files::check`]; [`Error::InvalidArgument`] for a picture that is no SVG.
    pub(super) fn check_files(&self, validation: Option<&ValidationData>) -> Result<()> {
        let RunArgs { out, plot, log, .. } = &self.run;
        let mut files =
            Files::default().model(&self.model)?.reads("the data", "--data", &self.data.path);
        if let Some(ValidationData::File(path)) = validation {
            files = files.reads("the validation data", "--validation", path);
        }
        if let Some(path) = &self.data.template.path {
            files = files.reads("the chat template", "--chat-template", path);
        }
        if let Some(path) = &self.lora.init {
            files = files.reads("the adapter", "--init", path);
        }
        files = files.writes("--out", out, Kind::AdapterFolder);
        if let Some(path) = log {
            files = files.writes("--log", path, Kind::StepLog);
        }
        if let Some(path) = plot {
            files = files.writes("--plot", path, Kind::Picture);
            let other = path
                .extension()
                .filter(|end| !end.eq_ignore_ascii_case("svg") && !is_in_place(path));
            if let Some(other) = other.map(|end| end.to_string_lossy()) {
                let reason = format!(
                    "pictures are drawn as SVG, not {other}; name a file that ends in .svg"
                );
                return Err(Error::InvalidArgument { name: "plot", reason });
            }
        }
        files.check(None)
    }
}
