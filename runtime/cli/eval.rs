//! `epiphyte eval`: how well the model, with adapters or without, does what examples ask for.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters};
use super::{ModelArgs, TemplateArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::engine::Engine;
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::{Answer, EvaluateOptions, Evaluation, Examples, evaluate};
use epiphyte::train::data::{DataOptions, Encoder};

/// Measure loss and exact answers on examples
#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Examples, as JSONL: as `train` takes them; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,
    /// Leave out lines that can't be used, and say how many
    #[arg(long)]
    skip_bad: bool,
    /// Show up to N wrong answers beside those that are wanted
    #[arg(long, value_name = "N", default_value_t = 0)]
    show: usize,
    /// Most tokens of an answer [default: those of the wanted one, and 8]
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1
    #[arg(long, value_name = "W", default_value_t = 0.1)]
    prompt_loss_weight: f32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    examples: usize,
    /// Lines that could not be used.
    skipped: usize,
    /// Tokens with a weight.
    tokens: usize,
    /// Mean over those by their weights, in nats a token; null when there are none.
    loss: Option<f64>,
    /// Prompts that were answered: of pairs, and of chats that end with the assistant.
    answers: usize,
    /// Answers that equal what is wanted, but for space around them.
    exact: usize,
    /// Their part; null without answers.
    exact_match: Option<f64>,
    /// As many of the others as are to be shown.
    wrong: Vec<&'a Answer>,
    /// It was stopped before the end.
    cancelled: bool,
    adapters: Adapters,
    device: String,
    seconds: f64,
}

pub(super) fn run(args: &EvalArgs, gpu: GpuOptions) -> Result<()> {
    let engine = args.model.open_with(gpu, &args.template)?;
    let start = Instant::now();
    let adapters = Adapters::load(&args.adapters, &engine)?;
    let mut template = engine.session();
    adapters.apply(&mut template)?;
    let examples = read(args, &engine)?;
    let stop = interrupt::listen("stopping; again to leave at once");
    let options = EvaluateOptions { max_tokens: args.max_tokens, cancel: stop.token.clone() };
    let bar = output::bar(0, "{pos}/{len} {wide_bar} {eta} left");
    let evaluation = evaluate(&template, &examples, &options, &mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    });
    bar.finish_and_clear();
    drop(stop);
    let evaluation = evaluation?;
    let report = Report {
        examples: examples.data.examples.len(),
        skipped: examples.data.report.skipped,
        tokens: examples.data.report.trained_tokens,
        loss: evaluation.loss,
        answers: evaluation.answers.len(),
        exact: evaluation.exact(),
        exact_match: evaluation.exact_match(),
        wrong: evaluation.wrong().take(args.show).collect(),
        cancelled: evaluation.cancelled,
        adapters,
        device: engine.device(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json { output::json(&report) } else { print(&report, &evaluation) }?;
    if evaluation.cancelled { Err(Error::Cancelled) } else { Ok(()) }
}

fn print(report: &Report<'_>, evaluation: &Evaluation) -> Result<()> {
    let Report { examples, tokens, answers, exact, seconds, .. } = report;
    for answer in &report.wrong {
        output::line(&format!("line {}", answer.line))?;
        output::line(&format!("  wanted  {}", indented(&answer.wanted)))?;
        output::line(&format!("  got     {}", indented(&answer.got)))?;
    }
    let more = evaluation.answers.len() - evaluation.exact() - report.wrong.len();
    if more > 0 && !report.wrong.is_empty() {
        output::line(&format!("and {more} more wrong answers"))?;
    }
    if let Some(loss) = report.loss {
        output::line(&format!(
            "loss         {loss:.4} nats a token ({tokens} tokens of {examples} examples)"
        ))?;
    }
    if let Some(part) = report.exact_match {
        output::line(&format!(
            "exact match  {:.1} % ({exact} of {answers} answers)",
            100.0 * part
        ))?;
    }
    if report.cancelled {
        output::line("stopped before the end")?;
    }
    output::note(&format!("{seconds:.1} s on {}", report.device));
    Ok(())
}

/// Lines below each other; what would move a terminal's cursor is spelt out.
fn indented(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => "\n          ".to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.trim().chars().map(shown).collect()
}

/// The examples whole.
fn read(args: &EvalArgs, engine: &Engine) -> Result<Examples> {
    let base = engine.base();
    let options = DataOptions {
        seq_len: engine.context(),
        prompt_loss_weight: Some(args.prompt_loss_weight),
        truncate: false,
        skip_bad: args.skip_bad,
        ..DataOptions::default()
    };
    let encoder = Encoder::new(&base.tokenizer, &base.chat_template, engine.context(), options)?;
    let examples = Examples::read_jsonl(&args.data, &encoder)?;
    let report = &examples.data.report;
    if let Some(first) = &report.first_skipped {
        output::note(&format!("warning: {} lines were skipped; {first}", report.skipped));
    }
    Ok(examples)
}
