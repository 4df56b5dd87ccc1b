//! `epiphyte plan`: the memory that answering or training takes, before any of it is taken. Where
//! there is a GPU, on it; else as on a phone's.

use clap::Args;
use serde::Serialize;

use super::shape::ShapeArgs;
use super::{ModelArgs, output};
use epiphyte::GpuOptions;
use epiphyte::base::ModelConfig;
use epiphyte::error::{Error, Result};
use epiphyte::format::gguf::Gguf;
use epiphyte::train::TrainOptions;
use epiphyte::train::buffers::{Class, TrainShape};
use epiphyte::train::plan::{Device, MemoryPlan, Model, Textbook, Wish, choose, human_bytes};

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
    let states = args.shape.optimizer().states().len();
    let training = args.train.then_some((trained, states));
    let textbook = Textbook { parameters, bytes_per_param: args.bytes_per_param, training };
    let plan = textbook.plan();
    within(&plan, args.memory_budget, || "use fewer bytes a parameter, or a smaller model".into())?;
    Ok(Report { textbook: Some(textbook), ..report(&plan, args) })
}

fn model_file(args: &PlanArgs, gpu: GpuOptions) -> Result<Report> {
    let gguf = Gguf::open(args.model.file.path()?)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let mut device = match Device::open(gpu) {
        Ok(device) => device,
        Err(Error::NoGpu { .. }) => {
            output::note("there is no GPU here; the sum is for a phone's");
            Device::ASSUMED
        }
        Err(error) => return Err(error),
    };
    device.f16 &= !args.kv_f32;
    if !args.train {
        return inference(args, &device.model(&gguf, &config, 0)?, device.pass_rows);
    }
    let wish = Wish {
        options: args.shape.options(TrainOptions::default(), None, config.max_position_embeddings),
        free: args.shape.free(),
        budget_bytes: args.memory_budget,
        kv_tokens: args.kv_tokens.unwrap_or(0),
    };
    let choice = choose(&gguf, &config, &device, wish)?;
    let trainable_parameters = Some(choice.shape.parameters(&config));
    Ok(Report { trainable_parameters, training: Some(choice.shape), ..report(&choice.plan, args) })
}

fn inference(args: &PlanArgs, model: &Model<'_>, pass_rows: usize) -> Result<Report> {
    let context = model.config.max_position_embeddings;
    let kv_tokens = args.kv_tokens.or(args.model.context).unwrap_or(context.min(8192));
    let plan = MemoryPlan::inference(model, pass_rows, kv_tokens);
    within(&plan, args.memory_budget, || {
        let fits = |tokens: usize| {
            let bytes = MemoryPlan::inference(model, pass_rows, tokens).total_bytes();
            args.memory_budget.is_some_and(|budget| bytes <= budget)
        };
        match (1..=kv_tokens / 32).rev().map(|pages| 32 * pages).find(|&tokens| fits(tokens)) {
            Some(tokens) => format!("`--kv-tokens {tokens}` fits"),
            None => "use a smaller model".into(),
        }
    })?;
    Ok(report(&plan, args))
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
    let buffer = |buffer: &epiphyte::train::buffers::Buffer| BufferReport {
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
    let Some(shape) = &report.training else { return Ok(()) };
    let recompute = match shape.checkpoint_every {
        None => "none".into(),
        Some(1) => "every layer".into(),
        Some(k) => format!("runs of {k} layers"),
    };
    output::line(&format!("pass              {} x {} tokens", shape.micro_batch, shape.seq_len))?;
    output::line(&format!("computed again    {recompute}"))?;
    let targets =
        shape.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
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
