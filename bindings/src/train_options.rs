//! What a training run is given.

use epiphyte::adapter::Adapter;
use epiphyte::base::ModelConfig;
use epiphyte::train::buffers::Optimizer as RunOptimizer;
use epiphyte::train::data::{Record, TrainLength, Validation as Part};
use epiphyte::train::run::{RunOptions, ValidationData};
use epiphyte::train::schedule::{Decay, Warmup};

use crate::EpiphyteError;
use crate::error::{count, path as given};
use crate::federated::Factor;
use crate::held::Lease;
use crate::options::{self, Message};

/// What to learn from.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum TrainData {
    /// A file of JSON records, one a line.
    Jsonl {
        /// The file.
        path: String,
    },
    /// One document, plain UTF-8.
    Text {
        /// The file.
        path: String,
    },
    /// In memory. A run that goes on has to be given the same again.
    Examples {
        /// One or more.
        examples: Vec<Example>,
    },
}

/// What one teaches.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Example {
    /// A conversation in the model's template; the assistant's turns are learnt.
    Chat {
        /// From the first on.
        messages: Vec<Message>,
    },
    /// What should follow a prompt, both taken as they are.
    Pair {
        /// What comes before.
        prompt: String,
        /// What is learnt, exactly: with its leading space, if there is one.
        completion: String,
    },
    /// A document, all of which is learnt.
    Text {
        /// The whole of it.
        text: String,
    },
}

impl TryFrom<Example> for Record {
    type Error = EpiphyteError;

    fn try_from(example: Example) -> Result<Self, EpiphyteError> {
        Ok(match example {
            Example::Chat { messages } => {
                let context = serde_json::Map::new();
                Self::Chat { messages: options::messages(messages)?, context }
            }
            Example::Pair { prompt, completion } => Self::Pair { prompt, completion },
            Example::Text { text } => Self::Text { text },
        })
    }
}

/// As the runtime has them.
///
/// Errors: as [`options::messages`].
pub(crate) fn records(examples: Vec<Example>) -> Result<Vec<Record>, EpiphyteError> {
    examples.into_iter().map(Record::try_from).collect()
}

/// What to validate on.
#[derive(Clone, Debug, PartialEq, uniffi::Enum)]
pub enum ValidationSplit {
    /// Nothing.
    Nothing,
    /// This part of the records, 0 to 1, which is then not learnt from.
    Fraction {
        /// The part.
        part: f64,
    },
    /// This many records.
    Count {
        /// The number.
        records: i32,
    },
    /// The examples of another file.
    File {
        /// JSON records, one a line.
        path: String,
    },
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TrainDuration {
    /// By the number of examples.
    Auto,
    /// This many steps.
    Steps {
        /// The number.
        steps: i64,
    },
    /// This many passes over the data.
    Epochs {
        /// The number.
        epochs: i64,
    },
}

/// How a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Optimizer {
    /// No state.
    Sgd,
    /// One number a parameter.
    Momentum,
    /// Two numbers a parameter.
    AdamW,
}

/// How the rate goes on after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LrDecay {
    /// It stays.
    Constant,
    /// In a straight line to 0.
    Linear,
    /// Along half a cosine to 0.
    Cosine,
}

/// Steps in which the rate rises.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Enum)]
pub enum LrWarmup {
    /// This many.
    Steps {
        /// The number.
        steps: i64,
    },
    /// This part of all steps, 0 to 1.
    Fraction {
        /// The part.
        part: f64,
    },
}

/// A training run. Whatever is none is decided by the recipe, which is made for few examples.
#[derive(Clone, Debug, uniffi::Record)]
pub struct TrainOptions {
    /// Where the adapter is written as PEFT lays it out, with what it takes to go on. A new folder,
    /// an empty one, or that of a run that goes on.
    pub folder: String,
    /// What to learn from.
    pub data: TrainData,
    /// When to end.
    #[uniffi(default = None)]
    pub duration: Option<TrainDuration>,
    /// r of every module.
    #[uniffi(default = None)]
    pub rank: Option<i32>,
    /// The scaling is `lora_alpha / rank`, or `lora_alpha / sqrt(rank)` with `use_rslora`.
    #[uniffi(default = None)]
    pub lora_alpha: Option<f64>,
    /// See `lora_alpha`.
    #[uniffi(default = None)]
    pub use_rslora: Option<bool>,
    /// Linears that get factors: names such as `q_proj`, `attention` for its four, `all-linear`.
    #[uniffi(default = None)]
    pub target_modules: Option<Vec<String>>,
    /// Rate after the warm-up.
    #[uniffi(default = None)]
    pub learning_rate: Option<f64>,
    /// That of B in parts of that of A (LoRA+).
    #[uniffi(default = None)]
    pub lora_plus_ratio: Option<f64>,
    /// How a step is taken.
    #[uniffi(default = None)]
    pub optimizer: Option<Optimizer>,
    /// Of `Momentum`.
    #[uniffi(default = None)]
    pub momentum: Option<f64>,
    /// Decoupled with `AdamW`.
    #[uniffi(default = None)]
    pub weight_decay: Option<f64>,
    /// Gradients are scaled down to this norm; 0 leaves them.
    #[uniffi(default = None)]
    pub max_grad_norm: Option<f64>,
    /// How the rate goes on after its warm-up.
    #[uniffi(default = None)]
    pub decay: Option<LrDecay>,
    /// Steps in which it rises.
    #[uniffi(default = None)]
    pub warmup: Option<LrWarmup>,
    /// Examples of a step, times `gradient_accumulation_steps`.
    #[uniffi(default = None)]
    pub batch_size: Option<i32>,
    /// Batches whose gradients make a step.
    #[uniffi(default = None)]
    pub gradient_accumulation_steps: Option<i32>,
    /// A pass takes as many tokens as this many of the longest examples: memory against speed.
    #[uniffi(default = None)]
    pub micro_batch: Option<i32>,
    /// Most tokens of an example.
    #[uniffi(default = None)]
    pub seq_len: Option<i32>,
    /// Compute activations again in runs of this many layers; 0 keeps them all.
    #[uniffi(default = None)]
    pub recompute_layers: Option<i32>,
    /// Of the first factors, and of the order of the examples.
    #[uniffi(default = None)]
    pub seed: Option<i64>,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1.
    #[uniffi(default = None)]
    pub prompt_loss_weight: Option<f32>,
    /// Lines that can't be used are passed over and counted.
    #[uniffi(default = false)]
    pub skip_bad: bool,
    /// What to validate on.
    #[uniffi(default = None)]
    pub validation: Option<ValidationSplit>,
    /// An adapter to start from: a folder or file.
    #[uniffi(default = None)]
    pub init: Option<String>,
    /// The factor that is not trained, as a federated round may ask.
    #[uniffi(default = None)]
    pub freeze: Option<Factor>,
    /// What pulls the factors towards where they began (FedProx).
    #[uniffi(default = None)]
    pub proximal_mu: Option<f64>,
    /// Steps between two checkpoints.
    #[uniffi(default = None)]
    pub checkpoint_every: Option<i64>,
    /// Checkpoints to keep; none: 2, and none once the run is over.
    #[uniffi(default = None)]
    pub keep: Option<i64>,
    /// Steps between two validations.
    #[uniffi(default = None)]
    pub evaluate_every: Option<i64>,
    /// Validations without improvement after which to stop.
    #[uniffi(default = None)]
    pub patience: Option<i32>,
}

impl TrainOptions {
    /// The defaults for a folder and examples.
    pub fn new(folder: impl Into<String>, data: TrainData) -> Self {
        Self {
            folder: folder.into(),
            data,
            duration: None,
            rank: None,
            lora_alpha: None,
            use_rslora: None,
            target_modules: None,
            learning_rate: None,
            lora_plus_ratio: None,
            optimizer: None,
            momentum: None,
            weight_decay: None,
            max_grad_norm: None,
            decay: None,
            warmup: None,
            batch_size: None,
            gradient_accumulation_steps: None,
            micro_batch: None,
            seq_len: None,
            recompute_layers: None,
            seed: None,
            prompt_loss_weight: None,
            skip_bad: false,
            validation: None,
            init: None,
            freeze: None,
            proximal_mu: None,
            checkpoint_every: None,
            keep: None,
            evaluate_every: None,
            patience: None,
        }
    }

    /// As the runtime has them.
    ///
    /// Errors: [`EpiphyteError::InvalidArgument`]; as [`Adapter::load`] for what it starts from.
    pub(crate) fn run_options(self, engine: &Lease) -> Result<RunOptions, EpiphyteError> {
        let mut run = match self.data.clone() {
            TrainData::Jsonl { path } => RunOptions::new(given("data", path)?),
            TrainData::Text { path } => RunOptions::for_text(given("data", path)?),
            TrainData::Examples { examples } => RunOptions::for_records(records(examples)?),
        };
        let load = |path| Adapter::load(path, engine.base().adapted());
        run.init = self.init.as_ref().map(load).transpose()?;
        if let Some(init) = &run.init {
            run.train = run.train.starting_from(init);
        }
        self.settings(&mut run.train, &engine.base().config)?;
        run.prompt_loss_weight = self.prompt_loss_weight;
        run.skip_bad = self.skip_bad;
        run.validation = self.validation.map(validation).transpose()?;
        set(&mut run.checkpoint_every, optional("checkpoint_every", self.checkpoint_every)?);
        run.keep = optional("keep", self.keep)?;
        run.evaluate_every = optional("evaluate_every", self.evaluate_every)?;
        run.patience = optional("patience", self.patience)?;
        Ok(run)
    }

    /// What is said of the trainer's settings, for a model of `config`.
    ///
    /// Errors: [`EpiphyteError::InvalidArgument`] for a number below 0.
    pub(crate) fn settings(
        &self,
        train: &mut epiphyte::train::TrainOptions,
        config: &ModelConfig,
    ) -> Result<(), EpiphyteError> {
        train.freeze = self.freeze.map(Into::into);
        set(&mut train.proximal_mu, self.proximal_mu);
        set(&mut train.rank, optional("rank", self.rank)?);
        set(&mut train.lora_alpha, self.lora_alpha);
        set(&mut train.use_rslora, self.use_rslora);
        set(&mut train.target_modules, self.target_modules.clone());
        train.learning_rate = self.learning_rate.or(train.learning_rate);
        set(&mut train.lora_plus_ratio, self.lora_plus_ratio);
        set(&mut train.optimizer, self.optimizer.map(Into::into));
        set(&mut train.momentum, self.momentum);
        set(&mut train.weight_decay, self.weight_decay);
        set(&mut train.max_grad_norm, self.max_grad_norm.map(above_zero));
        set(&mut train.decay, self.decay.map(Into::into));
        set(&mut train.warmup, self.warmup.map(Warmup::try_from).transpose()?);
        set(&mut train.duration, self.duration.map(TrainLength::try_from).transpose()?);
        set(&mut train.batch_size, optional("batch_size", self.batch_size)?);
        let steps = optional("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        set(&mut train.gradient_accumulation_steps, steps);
        set(&mut train.micro_batch, optional("micro_batch", self.micro_batch)?);
        let most = train.seq_len.min(config.max_position_embeddings);
        train.seq_len = optional("seq_len", self.seq_len)?.unwrap_or(most);
        let layers = optional::<usize>("recompute_layers", self.recompute_layers)?;
        set(&mut train.checkpoint_every, layers.map(|layers| Some(layers).filter(|&k| k > 0)));
        set(&mut train.seed, self.seed.map(i64::cast_unsigned));
        Ok(())
    }
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

fn optional<T: TryFrom<i64>>(
    name: &'static str,
    value: Option<impl Into<i64>>,
) -> Result<Option<T>, EpiphyteError> {
    value.map(|value| count(name, value)).transpose()
}

fn above_zero(norm: f64) -> Option<f64> {
    Some(norm).filter(|&norm| norm != 0.0)
}

fn validation(split: ValidationSplit) -> Result<ValidationData, EpiphyteError> {
    Ok(match split {
        ValidationSplit::Nothing => ValidationData::None,
        ValidationSplit::Fraction { part } => ValidationData::Part(Part::Fraction(part)),
        ValidationSplit::Count { records } => {
            ValidationData::Part(Part::Count(count("validation", records)?))
        }
        ValidationSplit::File { path } => ValidationData::File(path.into()),
    })
}

impl TryFrom<TrainDuration> for TrainLength {
    type Error = EpiphyteError;

    fn try_from(duration: TrainDuration) -> Result<Self, EpiphyteError> {
        Ok(match duration {
            TrainDuration::Auto => Self::Auto,
            TrainDuration::Steps { steps } => Self::Steps(count("steps", steps)?),
            TrainDuration::Epochs { epochs } => Self::Epochs(count("epochs", epochs)?),
        })
    }
}

impl From<Optimizer> for RunOptimizer {
    fn from(optimizer: Optimizer) -> Self {
        match optimizer {
            Optimizer::Sgd => Self::Sgd,
            Optimizer::Momentum => Self::Momentum,
            Optimizer::AdamW => Self::AdamW,
        }
    }
}

impl From<LrDecay> for Decay {
    fn from(decay: LrDecay) -> Self {
        match decay {
            LrDecay::Constant => Self::Constant,
            LrDecay::Linear => Self::Linear,
            LrDecay::Cosine => Self::Cosine,
        }
    }
}

impl TryFrom<LrWarmup> for Warmup {
    type Error = EpiphyteError;

    fn try_from(warmup: LrWarmup) -> Result<Self, EpiphyteError> {
        Ok(match warmup {
            LrWarmup::Steps { steps } => Self::Steps(count("warmup", steps)?),
            LrWarmup::Fraction { part } => Self::Fraction(part),
        })
    }
}
