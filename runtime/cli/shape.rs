//! The arguments of `plan --train` and `train` that decide how much memory a run takes.

use clap::{Args, ValueEnum};

use epiphyte::adapter::Factor;
use epiphyte::error::{Error, Result};
use epiphyte::train::TrainOptions;
use epiphyte::train::buffers::Optimizer;
use epiphyte::train::plan::Free;

/// What is trained, and how a step is taken.
#[derive(Args)]
pub(super) struct ShapeArgs {
    #[command(flatten)]
    pub(super) size: SizeArgs,
    /// How a step is taken [default: adamw]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerArg>,
    /// Leave this factor as it is and train the other alone: what a round of `rolora` or `ffa` asks
    /// for
    #[arg(long, value_name = "FACTOR")]
    freeze: Option<FactorArg>,
    /// Pull the factors towards where the run began (`FedProx`) [default: 0]
    #[arg(long, value_name = "MU", allow_negative_numbers = true)]
    proximal_mu: Option<f64>,
}

/// The factors, and in what pieces they are trained.
#[derive(Args)]
pub(super) struct SizeArgs {
    /// Rank [default: 8, or that of --init]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Linears to adapt: attention, all-linear or names such as `q_proj,v_proj` [default:
    /// all-linear, or those of --init]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    targets: Option<Vec<String>>,
    #[command(flatten)]
    pieces: PieceArgs,
}

/// In what pieces factors are trained.
#[derive(Args)]
pub(super) struct PieceArgs {
    /// Examples of a batch; of one long text, rows [default: 8; of a text 1]
    #[arg(long, value_name = "N", value_parser = size)]
    batch: Option<usize>,
    /// Batches of a step [default: 1]
    #[arg(long, value_name = "N", value_parser = size)]
    accumulate: Option<usize>,
    /// Longest examples that a pass through the model has room for: speed for memory, with no other
    /// effect [default: 1, or what fits the budget]
    #[arg(long, value_name = "N", value_parser = size)]
    rows: Option<usize>,
    /// Most tokens of an example; longer ones are cut [default: 512, or what fits the budget]
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Compute activations again in the backward pass instead of keeping them: none, every-layer,
    /// or in runs of K layers [default: every-layer, or what fits the budget]
    #[arg(long, value_name = "HOW", value_parser = parse_recompute)]
    recompute: Option<Recompute>,
}

#[derive(Clone, Copy, ValueEnum)]
enum FactorArg {
    A,
    B,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerArg {
    Sgd,
    Momentum,
    Adamw,
}

/// What `--recompute` says; see [`TrainOptions::checkpoint_every`].
#[derive(Clone, Copy)]
struct Recompute(Option<usize>);

impl SizeArgs {
    /// `defaults` with what was given, for a model of `context` positions.
    pub(super) fn options(&self, defaults: TrainOptions, context: usize) -> TrainOptions {
        let pieces = self.pieces.options(defaults, context);
        TrainOptions {
            rank: self.rank.unwrap_or(pieces.rank),
            target_modules: self.targets.clone().unwrap_or(pieces.target_modules),
            ..pieces
        }
    }
}

impl PieceArgs {
    /// `defaults` with what was given, for a model of `context` positions.
    pub(super) fn options(&self, defaults: TrainOptions, context: usize) -> TrainOptions {
        TrainOptions {
            batch_size: self.batch.unwrap_or(defaults.batch_size),
            gradient_accumulation_steps: self
                .accumulate
                .unwrap_or(defaults.gradient_accumulation_steps),
            micro_batch: self.rows.unwrap_or(defaults.micro_batch),
            seq_len: self.seq_len.unwrap_or(defaults.seq_len.min(context)),
            checkpoint_every: self
                .recompute
                .map_or(defaults.checkpoint_every, |Recompute(every)| every),
            ..defaults
        }
    }
}

impl ShapeArgs {
    /// As [`SizeArgs::options`].
    pub(super) fn options(&self, defaults: TrainOptions, context: usize) -> TrainOptions {
        let defaults = self.size.options(defaults, context);
        TrainOptions {
            optimizer: self.optimizer(),
            freeze: self.freeze.map(|factor| match factor {
                FactorArg::A => Factor::A,
                FactorArg::B => Factor::B,
            }),
            proximal_mu: self.proximal_mu.unwrap_or(defaults.proximal_mu),
            ..defaults
        }
    }

    /// What a budget may decide.
    pub(super) fn free(&self) -> Free {
        Free {
            micro_batch: self.size.pieces.rows.is_none(),
            checkpoint: self.size.pieces.recompute.is_none(),
            seq_len: self.size.pieces.seq_len.is_none(),
        }
    }

    pub(super) fn optimizer(&self) -> Optimizer {
        match self.optimizer {
            Some(OptimizerArg::Sgd) => Optimizer::Sgd,
            Some(OptimizerArg::Momentum) => Optimizer::Momentum,
            Some(OptimizerArg::Adamw) | None => Optimizer::AdamW,
        }
    }

    /// Refuses what was given where nothing is trained.
    ///
    /// Errors: [`Error::InvalidArgument`].
    pub(super) fn check_unused(&self) -> Result<()> {
        let (size, pieces) = (&self.size, &self.size.pieces);
        let given = [
            ("rank", size.rank.is_some()),
            ("targets", size.targets.is_some()),
            ("batch", pieces.batch.is_some()),
            ("accumulate", pieces.accumulate.is_some()),
            ("rows", pieces.rows.is_some()),
            ("seq-len", pieces.seq_len.is_some()),
            ("recompute", pieces.recompute.is_some()),
            ("optimizer", self.optimizer.is_some()),
            ("freeze", self.freeze.is_some()),
            ("proximal-mu", self.proximal_mu.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((name, _)) => Err(Error::InvalidArgument {
                name,
                reason: "it is for `--train`, which is missing".into(),
            }),
        }
    }
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("a whole number from 1 on is needed".into()),
    }
}

fn parse_recompute(text: &str) -> Result<Recompute, String> {
    match text {
        "none" => Ok(Recompute(None)),
        "every-layer" => Ok(Recompute(Some(1))),
        _ => match text.parse() {
            Ok(k) if k > 0 => Ok(Recompute(Some(k))),
            _ => Err("give none, every-layer, or a number of layers".into()),
        },
    }
}
