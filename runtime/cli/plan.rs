//! `epiphyte plan`: the memory that answering or training takes, before any of it is taken. Needs no GPU.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{ModelArgs, output};
use crate::adapter;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::model::config::ModelConfig;
use crate::train::TrainOptions;
use crate::train::buffers::{Class, Optimizer, Target, TrainShape};
use crate::train::plan::{Free, MemoryPlan, Model, Textbook, engine_bytes, fit, human_bytes, weight_bytes};

/// Rows of a pass when the engine answers, and of logits when it trains, on hardware.
const PASS_ROWS: usize = 512;
const LOGIT_ROWS: usize = 64;
/// What is tried first where a budget decides.
const MOST_ROWS: usize = 8;
const SEQ_LEN: usize = 512;
/// Context of an engine that only trains: sessions are not what it is for.
pub(super) const TRAIN_CONTEXT: usize = 32;
/// Characters of the longest bar.
const BAR: f64 = 40.0;

/// Add up the memory that a model needs, to answer or to train
#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Instead of a model file: its parameters, for the textbook's sum (13e9)
    #[arg(long, value_name = "N", conflicts_with_all = ["model", "context", "rank", "targets", "batch", "seq_len", "recompute", "kv_tokens"])]
    params: Option<f64>,
    /// Bytes of a parameter: 2 is 16 bit, 0.5 is 4 bit
    #[arg(long, value_name = "N", default_value_t = 2.0, requires = "params")]
    bytes_per_param: f64,
    /// Of the parameters of `--params`, those that are trained [default: all]
    #[arg(long, value_name = "N", requires = "params", requires = "train")]
    trainable: Option<f64>,
    /// Plan for training
    #[arg(long)]
    train: bool,
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = 8, requires = "train")]
    rank: usize,
    /// Linears to adapt: attention, all-linear or names such as `q_proj,v_proj`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all-linear", requires = "train")]
    targets: Vec<String>,
    /// Rows of a micro-batch [default: 1, or what fits up to 8]
    #[arg(long, value_name = "N", requires = "train")]
    batch: Option<usize>,
    /// Tokens of a row [default: 512, or what fits up to it]
    #[arg(long, value_name = "N", requires = "train")]
    seq_len: Option<usize>,
    /// Compute activations again in the backward pass instead of keeping them: none, every-layer, or in runs of K layers
    /// [default: every-layer, or what fits the budget]
    #[arg(long, value_name = "HOW", value_parser = parse_recompute, requires = "train")]
    recompute: Option<Recompute>,
    /// How steps are taken
    #[arg(long, value_enum, default_value_t = OptimizerArg::Adamw, requires = "train")]
    optimizer: OptimizerArg,
    /// Positions of conversations that are kept [default: the context, or 0 with --train]
    #[arg(long, value_name = "N")]
    kv_tokens: Option<usize>,
    /// Keep the KV cache in f32, as on a device without f16
    #[arg(long)]
    kv_f32: bool,
    /// What may be used (6GB, 512MiB): finds a setting that fits, or says what is missing
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory_budget: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum OptimizerArg {
    Sgd,
    Momentum,
    Adamw,
}

impl From<OptimizerArg> for Optimizer {
    fn from(arg: OptimizerArg) -> Self {
        match arg {
            OptimizerArg::Sgd => Self::Sgd,
            OptimizerArg::Momentum => Self::Momentum,
            OptimizerArg::Adamw => Self::AdamW,
        }
    }
}

/// What `--recompute` says; see [`TrainOptions::checkpoint_every`].
#[derive(Clone, Copy)]
pub(super) struct Recompute(pub(super) Option<usize>);

#[derive(Serialize)]
struct Report {
    total_bytes: u64,
    budget_bytes: Option<u64>,
    classes: Vec<ClassReport>,
    /// Null without `--params`.
    textbook: Option<Textbook>,
    /// Null unless training a model file.
    training: Option<TrainShape>,
    /// Parameters of the adapter.
    trainable_parameters: Option<usize>,
    buffers: Vec<BufferReport>,
}

#[derive(Serialize)]
pub(super) struct ClassReport {
    class: Class,
    bytes: u64,
}

#[derive(Serialize)]
struct BufferReport {
    name: String,
    class: Class,
    shape: Vec<u64>,
    bytes: u64,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let report = match args.params {
        Some(parameters) => textbook(args, parameters)?,
        None => model_file(args)?,
    };
    if args.json { output::json(&report) } else { print(&report) }
}

fn textbook(args: &PlanArgs, parameters: f64) -> Result<Report> {
    let trained = args.trainable.unwrap_or(parameters);
    for (name, value) in [("params", parameters), ("bytes_per_param", args.bytes_per_param), ("trainable", trained)] {
        if !(value > 0.0 && value <= 1e18) {
            return Err(Error::InvalidArgument {
                name,
                reason: format!("{value} is not a number above 0, at most 1e18"),
            });
        }
    }
    let states = Optimizer::from(args.optimizer).states().len();
    let training = args.train.then_some((trained, states));
    let textbook = Textbook { parameters, bytes_per_param: args.bytes_per_param, training };
    let plan = textbook.plan();
    within(&plan, args.memory_budget, || "use fewer bytes a parameter, or a smaller model".into())?;
    Ok(Report { textbook: Some(textbook), ..report(&plan, args) })
}

fn model_file(args: &PlanArgs) -> Result<Report> {
    let gguf = Gguf::open(args.model.file.path()?)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let kv_element_bytes = if args.kv_f32 { 4 } else { 2 };
    let mut model =
        Model { config: &config, weight_bytes: weight_bytes(&gguf, &config)?, kv_element_bytes, engine_bytes: 0 };
    if !args.train {
        return inference(args, &model);
    }
    // That of the conversations is counted by itself.
    model.engine_bytes = engine_bytes(&model, PASS_ROWS, TRAIN_CONTEXT);
    training(args, &model)
}

fn inference(args: &PlanArgs, model: &Model<'_>) -> Result<Report> {
    let context = model.config.max_position_embeddings;
    let kv_tokens = args.kv_tokens.or(args.model.context).unwrap_or(context.min(8192));
    let plan = MemoryPlan::inference(model, PASS_ROWS, kv_tokens);
    within(&plan, args.memory_budget, || {
        let fits = |tokens: usize| {
            let bytes = MemoryPlan::inference(model, PASS_ROWS, tokens).total_bytes();
            args.memory_budget.is_some_and(|budget| bytes <= budget)
        };
        match (1..=kv_tokens / 32).rev().map(|pages| 32 * pages).find(|&tokens| fits(tokens)) {
            Some(tokens) => format!("`--kv-tokens {tokens}` fits"),
            None => "use a smaller model".into(),
        }
    })?;
    Ok(report(&plan, args))
}

fn training(args: &PlanArgs, model: &Model<'_>) -> Result<Report> {
    let budget = args.memory_budget;
    let checkpoint_every = match (args.recompute, budget) {
        (Some(Recompute(every)), _) => every,
        // What is not given up is kept.
        (None, Some(_)) => None,
        (None, None) => TrainOptions::default().checkpoint_every,
    };
    let wanted = TrainShape {
        micro_batch: args.batch.unwrap_or(if budget.is_some() { MOST_ROWS } else { 1 }),
        seq_len: args.seq_len.unwrap_or(SEQ_LEN.min(model.config.max_position_embeddings)),
        checkpoint_every,
        rank: args.rank,
        targets: Target::named(model.config, &target_names(&args.targets))?,
        optimizer: args.optimizer.into(),
        logit_rows: LOGIT_ROWS,
    };
    let free = Free {
        micro_batch: args.batch.is_none(),
        checkpoint: args.recompute.is_none(),
        seq_len: args.seq_len.is_none(),
    };
    let kv_tokens = args.kv_tokens.unwrap_or(0);
    let (shape, plan) = match budget {
        Some(budget) => fit(model, &wanted, free, kv_tokens, budget)?,
        None => {
            let plan = MemoryPlan::training(model, &wanted, kv_tokens)?;
            (wanted, plan)
        }
    };
    let trainable_parameters = Some(shape.parameters(model.config));
    Ok(Report { trainable_parameters, training: Some(shape), ..report(&plan, args) })
}

/// Errors: [`Error::OverBudget`].
fn within(plan: &MemoryPlan, budget: Option<u64>, remedy: impl Fn() -> String) -> Result<()> {
    match budget.filter(|&budget| plan.total_bytes() > budget) {
        None => Ok(()),
        Some(budget) => Err(Error::OverBudget {
            needed: human_bytes(plan.total_bytes()),
            budget: human_bytes(budget),
            sum: plan.sum(),
            remedy: remedy(),
        }),
    }
}

fn report(plan: &MemoryPlan, args: &PlanArgs) -> Report {
    let buffer = |buffer: &crate::train::buffers::Buffer| BufferReport {
        name: buffer.name.clone(),
        class: buffer.class,
        shape: buffer.shape.clone(),
        bytes: buffer.bytes(),
    };
    Report {
        total_bytes: plan.total_bytes(),
        budget_bytes: args.memory_budget,
        classes: classes(plan),
        textbook: None,
        training: None,
        trainable_parameters: None,
        buffers: plan.buffers.iter().map(buffer).collect(),
    }
}

/// The sum by class.
pub(super) fn classes(plan: &MemoryPlan) -> Vec<ClassReport> {
    plan.classes().into_iter().map(|(class, bytes)| ClassReport { class, bytes }).collect()
}

/// The sum as a table with bars.
pub(super) fn table(classes: &[ClassReport], budget_bytes: Option<u64>) -> Vec<String> {
    let total = classes.iter().fold(0_u64, |sum, class| sum.saturating_add(class.bytes));
    let line = |ClassReport { class, bytes }: &ClassReport| {
        let part = *bytes as f64 / total.max(1) as f64;
        let bar = "#".repeat((part * BAR).round() as usize);
        let line = format!("{:<18}{:>11} {:>4.0} %  {bar}", class.label(), human_bytes(*bytes), 100.0 * part);
        line.trim_end().to_string()
    };
    let mut lines: Vec<String> = classes.iter().map(line).collect();
    lines.push(format!("{:<18}{:>11}", "total", human_bytes(total)));
    if let Some(budget) = budget_bytes {
        let free = human_bytes(budget.saturating_sub(total));
        lines.push(format!("{:<18}{:>11}  {free} to spare", "budget", human_bytes(budget)));
    }
    lines
}

fn print(report: &Report) -> Result<()> {
    table(&report.classes, report.budget_bytes).iter().try_for_each(|line| output::line(line))?;
    let Some(shape) = &report.training else { return Ok(()) };
    let recompute = match shape.checkpoint_every {
        None => "none".into(),
        Some(1) => "every layer".into(),
        Some(k) => format!("runs of {k} layers"),
    };
    output::line(&format!("micro-batch       {} x {} tokens", shape.micro_batch, shape.seq_len))?;
    output::line(&format!("computed again    {recompute}"))?;
    let targets = shape.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
    let parameters = report.trainable_parameters.unwrap_or(0);
    output::line(&format!("adapter           rank {} on {targets}: {parameters} parameters", shape.rank))
}

/// `6GB`, `512 MiB`, `1e9`: powers of 1000, or of 1024 with an `i`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("units are B, kB, MB, GB, KiB, MiB and GiB".into()),
    };
    let number = digits.trim().parse::<f64>().map_err(|_| "not a size; write 6GB or 512MiB")?;
    let bytes = number * unit;
    if (1.0..=1e18).contains(&bytes) { Ok(bytes as u64) } else { Err("a size is between 1 byte and 1e9 GB".into()) }
}

pub(super) fn parse_recompute(text: &str) -> Result<Recompute, String> {
    match text {
        "none" => Ok(Recompute(None)),
        "every-layer" => Ok(Recompute(Some(1))),
        _ => match text.parse() {
            Ok(k) if k > 0 => Ok(Recompute(Some(k))),
            _ => Err("give none, every-layer, or a number of layers".into()),
        },
    }
}

/// Names of linears, for the sets of them.
pub(super) fn target_names(names: &[String]) -> Vec<String> {
    let of = |targets: &[adapter::Target]| targets.iter().map(|target| target.name().to_string()).collect();
    let set = |name: &String| match name.as_str() {
        "attention" => {
            of(&[adapter::Target::QProj, adapter::Target::KProj, adapter::Target::VProj, adapter::Target::OProj])
        }
        "all-linear" => of(&adapter::Target::ALL[..7]),
        _ => vec![name.clone()],
    };
    names.iter().flat_map(set).collect()
}
