//! `epiphyte plan`: the memory that answering or training takes, before any of it is taken. Where
//! there is a GPU, on it; else as on a phone's.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::shape::ShapeArgs;
use super::{ModelArgs, library, output};
use epiphyte::adapter::{AdaptedBase, Adapter, BaseWeights, Target};
use epiphyte::base::ModelConfig;
use epiphyte::engine::plan::{Buffer, Caps, Class, MemoryPlan, Serving, human_bytes, tally};
use epiphyte::error::{Error, Result};
use epiphyte::format::gguf::Gguf;
use epiphyte::train::TrainOptions;
use epiphyte::train::buffers::{Optimizer, TrainShape};
use epiphyte::train::plan::{Textbook, Wish, choose};
use epiphyte::{EngineOptions, GpuOptions};

/// Characters of the longest bar.
const BAR: f64 = 40.0;

/// Add up the memory that a model needs, to answer or to train
#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Instead of a model file: its parameters, for the textbook's sum (13e9)
    #[arg(long, value_name = "N", conflicts_with_all = ["model", "context", "rank", "targets", "batch", "accumulate", "rows", "seq_len", "recompute", "kv_tokens"])]
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
    #[command(flatten)]
    shape: ShapeArgs,
    /// Positions of conversations that are kept [default: the context, or 0 with --train]
    #[arg(long, value_name = "N")]
    kv_tokens: Option<usize>,
    /// Conversations that they are of, at most [default: as few as the context lets]
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with_all = ["train", "params"])]
    sessions: usize,
    /// An adapter that is loaded (repeatable; where nothing is trained)
    #[arg(long = "adapter", value_name = "PATH", value_parser = library::adapter(),
        conflicts_with_all = ["train", "params"])]
    adapters: Vec<PathBuf>,
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

#[derive(Serialize)]
struct Report {
    total_bytes: u64,
    /// What the driver is asked for: whole blocks, which small buffers share.
    reserved_bytes: u64,
    budget_bytes: Option<u64>,
    classes: Vec<ClassReport>,
    /// Null without `--params`.
    textbook: Option<Textbook>,
    /// Null unless training a model file.
    training: Option<TrainingReport>,
    /// Parameters of the adapter.
    trainable_parameters: Option<usize>,
    buffers: Vec<BufferReport>,
}

/// What is trained, in pieces of which size.
#[derive(Serialize)]
struct TrainingReport {
    micro_batch: usize,
    seq_len: usize,
    checkpoint_every: Option<usize>,
    rank: usize,
    targets: Vec<TargetReport>,
    optimizer: Optimizer,
    /// Rows of logits at a time.
    logit_rows: usize,
}

/// A linear of each layer: its last name, its rows and its inputs.
#[derive(Serialize)]
struct TargetReport {
    name: &'static str,
    n: usize,
    k: usize,
}

impl TrainingReport {
    fn new(shape: TrainShape, config: &ModelConfig, caps: &Caps) -> Self {
        let base = config.base_shape();
        let target = |&target: &Target| {
            let [n, k] = base.shape(target);
            TargetReport { name: target.name(), n, k }
        };
        Self {
            micro_batch: shape.micro_batch,
            seq_len: shape.seq_len,
            checkpoint_every: shape.checkpoint_every,
            rank: shape.rank,
            targets: shape.targets.iter().map(target).collect(),
            optimizer: shape.optimizer,
            logit_rows: shape.logit_rows(caps),
        }
    }
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

pub(super) fn run(args: &PlanArgs, gpu: GpuOptions) -> Result<()> {
    if !args.train {
        args.shape.check_unused()?;
    }
    let report = match args.params {
        Some(parameters) => textbook(args, parameters)?,
        None => model_file(args, gpu)?,
    };
    if args.json { output::json(&report) } else { print(&report) }
}

fn textbook(args: &PlanArgs, parameters: f64) -> Result<Report> {
    let trained = args.trainable.unwrap_or(parameters);
    for (name, value) in
        [("params", parameters), ("bytes_per_param", args.bytes_per_param), ("trainable", trained)]
    {
        if !(value > 0.0 && value <= 1e18) {
            return Err(Error::InvalidArgument {
                name,
                reason: format!("{value} is not a number above 0, at most 1e18"),
            });
        }
    }
    let states = args.shape.optimizer().states();
    let training = args.train.then_some((trained, states));
    let textbook = Textbook { parameters, bytes_per_param: args.bytes_per_param, training };
    let plan = textbook.plan();
    plan.within(args.memory_budget, || "use fewer bytes a parameter, or a smaller model".into())?;
    Ok(Report { textbook: Some(textbook), ..report(&plan, args) })
}

fn model_file(args: &PlanArgs, gpu: GpuOptions) -> Result<Report> {
    let gguf = Gguf::open(args.model.file.path()?)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let caps = match Caps::open(gpu) {
        Ok(caps) => caps,
        Err(Error::NoGpu { .. }) => {
            output::note("there is no GPU here; the sum is for a phone's");
            Caps::PHONE
        }
        Err(error) => return Err(error),
    };
    if !args.train {
        return answering(args, &gguf, &config, &caps);
    }
    let wish = Wish {
        options: args.shape.options(TrainOptions::default(), config.max_position_embeddings),
        free: args.shape.free(),
        budget_bytes: args.memory_budget,
        kv_tokens: args.kv_tokens.unwrap_or(0),
        kv_f32: args.kv_f32,
    };
    let choice = choose(&gguf, &config, &caps, wish)?;
    let trainable_parameters = Some(choice.shape.parameters(&config));
    let training = Some(TrainingReport::new(choice.shape, &config, &caps));
    Ok(Report { trainable_parameters, training, ..report(&choice.plan, args) })
}

fn answering(args: &PlanArgs, gguf: &Gguf, config: &ModelConfig, caps: &Caps) -> Result<Report> {
    let context = args.model.context.unwrap_or(config.usual_context());
    let base = AdaptedBase { shape: config.base_shape(), weights: BaseWeights::Open(gguf) };
    let load = |path: &PathBuf| Adapter::load(path, base);
    let adapters = args.adapters.iter().map(load).collect::<Result<Vec<_>>>()?;
    let plan = |kv_tokens| {
        let (adapters, adapter_budget) = (&adapters[..], EngineOptions::default().adapter_budget);
        let (kv_f32, sessions) = (args.kv_f32, args.sessions);
        let serving = Serving { context, kv_f32, kv_tokens, sessions, adapters, adapter_budget };
        Ok::<_, Error>(tally(caps, config, Some(gguf), &serving)?.plan())
    };
    let kv_tokens = args.kv_tokens.unwrap_or(context);
    let wanted = plan(kv_tokens)?;
    wanted.within(args.memory_budget, || {
        let fits = |tokens: usize| {
            let bytes = plan(tokens).map_or(u64::MAX, |plan| plan.total_bytes());
            args.memory_budget.is_some_and(|budget| bytes <= budget)
        };
        let pages: Vec<usize> = (1..=kv_tokens / 32).collect();
        match pages.partition_point(|pages| fits(32 * pages)) {
            0 => "use a smaller model".into(),
            pages => format!("`--kv-tokens {}` fits", 32 * pages),
        }
    })?;
    Ok(report(&wanted, args))
}

fn report(plan: &MemoryPlan, args: &PlanArgs) -> Report {
    let buffer = |buffer: &Buffer| BufferReport {
        name: buffer.name.clone(),
        class: buffer.class,
        shape: buffer.shape.clone(),
        bytes: buffer.bytes(),
    };
    Report {
        total_bytes: plan.total_bytes(),
        reserved_bytes: plan.reserved_bytes,
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
        let line = format!(
            "{:<18}{:>11} {:>4.0} %  {bar}",
            class.label(),
            human_bytes(*bytes),
            100.0 * part
        );
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
    if report.textbook.is_none() {
        let blocks = human_bytes(report.reserved_bytes);
        output::line(&format!("{:<18}{blocks:>11}", "from the driver"))?;
    }
    let Some(shape) = &report.training else { return Ok(()) };
    let recompute = match shape.checkpoint_every {
        None => "none".into(),
        Some(1) => "every layer".into(),
        Some(k) => format!("runs of {k} layers"),
    };
    output::line(&format!("pass              {} x {} tokens", shape.micro_batch, shape.seq_len))?;
    output::line(&format!("computed again    {recompute}"))?;
    let targets = shape.targets.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    let parameters = report.trainable_parameters.unwrap_or(0);
    output::line(&format!(
        "adapter           rank {} on {targets}: {parameters} parameters",
        shape.rank
    ))
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
    if (1.0..=1e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("a size is between 1 byte and 1e9 GB".into())
    }
}
