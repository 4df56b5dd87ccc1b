//! `epiphyte eval`: how well the model, with adapters or without, does what examples ask for.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters, Weighted};
use super::{ModelArgs, TemplateArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::engine::Engine;
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::{
    Answer, Combine, EvaluateOptions, EvaluateProgress, Evaluation, Examples, evaluate,
    evaluate_ensemble,
};
use epiphyte::train::data::{DataOptions, Encoder};

/// Weight of a prompt's tokens in the loss.
pub(crate) const PROMPT_LOSS_WEIGHT: f32 = 0.1;

/// Measure loss and exact answers on examples
#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Adapters that answer together, each beside the others, instead of `--adapter`
    #[arg(long, value_name = "PATH[=WEIGHT],...", value_delimiter = ',',
        value_parser = Weighted::parser(), conflicts_with = "adapters")]
    ensemble: Vec<Weighted>,
    /// How they become one: the mean of their logits, token by token, or what most of them answer
    #[arg(long, value_name = "HOW", default_value = "logits", requires = "ensemble",
        value_parser = ["logits", "majority"])]
    combine: String,
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
    #[arg(long, value_name = "W", default_value_t = PROMPT_LOSS_WEIGHT)]
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
    /// How the adapters answer together; null for what they make as one.
    combine: Option<Combine>,
    device: String,
    seconds: f64,
}

impl EvalArgs {
    /// `None` without an ensemble.
    fn combine(&self) -> Option<Combine> {
        let combine = match self.combine.as_str() {
            "majority" => Combine::Majority,
            _ => Combine::Logits,
        };
        (!self.ensemble.is_empty()).then_some(combine)
    }
}

pub(super) fn run(args: &EvalArgs, gpu: GpuOptions) -> Result<()> {
    let engine = args.model.open_with(gpu, &args.template)?;
    let start = Instant::now();
    let combine = args.combine();
    let adapters = match combine {
        None => Adapters::load(&args.adapters, &engine)?,
        Some(_) => Adapters::of(&args.ensemble, &engine, args.adapters.force)?,
    };
    let examples = ExampleFile {
        path: &args.data,
        skip_bad: args.skip_bad,
        prompt_loss_weight: args.prompt_loss_weight,
    };
    let examples = examples.read(&engine)?;
    let stop = interrupt::listen("stopping; again to leave at once");
    let options = EvaluateOptions { max_tokens: args.max_tokens, cancel: stop.token.clone() };
    let bar = output::bar(0, "{pos}/{len} {wide_bar} {eta} left");
    let mut progress = |progress: EvaluateProgress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    };
    let evaluation = match combine {
        None => {
            let mut template = engine.session();
            adapters.apply(&mut template)?;
            evaluate(&template, &examples, &options, &mut progress)
        }
        Some(combine) => {
            let members = adapters.members(&engine)?;
            evaluate_ensemble(&members, combine, &examples, &options, &mut progress)
        }
    };
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
        combine,
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

/// Which examples, and how.
pub(crate) struct ExampleFile<'a> {
    pub(crate) path: &'a Path,
    pub(crate) skip_bad: bool,
    pub(crate) prompt_loss_weight: f32,
}

impl ExampleFile<'_> {
    /// The examples, whole.
    pub(crate) fn read(&self, engine: &Engine) -> Result<Examples> {
        let base = engine.base();
        let options = DataOptions {
            seq_len: engine.context(),
            prompt_loss_weight: Some(self.prompt_loss_weight),
            truncate: false,
            skip_bad: self.skip_bad,
            ..DataOptions::default()
        };
        let context = engine.context();
        let encoder = Encoder::new(&base.tokenizer, &base.chat_template, context, options)?;
        let examples = Examples::read_jsonl(self.path, &encoder)?;
        let report = &examples.data.report;
        if let Some(first) = &report.first_skipped {
            output::note(&format!("warning: {} lines were skipped; {first}", report.skipped));
        }
        Ok(examples)
    }
}
