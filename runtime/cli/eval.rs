//! `epiphyte eval`: how well the model, with an adapter or without, does what examples ask for.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::perplexity::log_softmax;
use super::{ModelArgs, TemplateArgs, output};
use crate::chat::Prompt;
use crate::engine::{Change, Engine, GenerateOptions, Session, generate_batch};
use crate::error::Result;
use crate::gpu::GpuOptions;
use crate::tokenizer::EncodeOptions;
use crate::train::data::{DataOptions, Dataset, Encoder, Example, Record};

/// Sequences that are answered at once.
const BATCH: usize = 8;
/// Tokens an answer may take more than the one that is wanted, since texts can be spelled in several ways.
const SLACK: usize = 8;

/// Measure loss and exact answers on examples
#[derive(Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// Examples, as JSONL: as `train` takes them
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,
    /// LoRA adapter to measure with
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,
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
struct Report {
    examples: usize,
    /// Tokens with a weight.
    tokens: usize,
    /// Mean over those by their weights, in nats a token.
    loss: f64,
    /// Prompts that were answered: of pairs, and of chats that end with the assistant.
    answers: usize,
    /// Answers that equal what is wanted, but for space around them.
    exact: usize,
    /// Their part; null without answers.
    exact_match: Option<f64>,
    adapter: Option<PathBuf>,
    device: String,
    seconds: f64,
}

pub(super) fn run(args: &EvalArgs, gpu: GpuOptions) -> Result<()> {
    let engine = args.model.open_with(gpu, &args.template)?;
    let start = Instant::now();
    let mut template = engine.session();
    if let Some(path) = &args.adapter {
        engine.load_adapter("adapter", path)?;
        template.set_adapters(&Change { adapters: &[("adapter", 1.0)], ..Change::default() })?;
    }
    let (data, records) = read(args, &engine)?;
    let questions = records.iter().filter_map(Question::of).collect::<Vec<_>>();
    let bar = output::bar((data.examples.len() + questions.len()) as u64, "{pos}/{len} {wide_bar} {eta} left");
    let exact = answer(&questions, &template, args.max_tokens, &|count| bar.inc(count))?;
    let loss = loss(&data.examples, &template, &|| bar.inc(1))?;
    bar.finish_and_clear();
    let report = Report {
        examples: data.examples.len(),
        tokens: data.report.trained_tokens,
        loss,
        answers: questions.len(),
        exact,
        exact_match: (!questions.is_empty()).then(|| exact as f64 / questions.len() as f64),
        adapter: args.adapter.clone(),
        device: engine.gpu().description(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json { output::json(&report) } else { print(&report) }
}

fn print(report: &Report) -> Result<()> {
    let Report { examples, tokens, loss, answers, exact, seconds, .. } = report;
    output::line(&format!("loss         {loss:.4} nats a token ({tokens} tokens of {examples} examples)"))?;
    if let Some(part) = report.exact_match {
        output::line(&format!("exact match  {:.1} % ({exact} of {answers} answers)", 100.0 * part))?;
    }
    output::note(&format!("{seconds:.1} s on {}", report.device));
    Ok(())
}

/// The examples whole, with the records that they are of.
fn read(args: &EvalArgs, engine: &Engine) -> Result<(Dataset, Vec<Record>)> {
    let base = engine.base();
    let options = DataOptions {
        seq_len: engine.context(),
        prompt_loss_weight: args.prompt_loss_weight,
        truncate: false,
        ..DataOptions::default()
    };
    let encoder = Encoder::new(&base.tokenizer, &base.chat_template, engine.context(), options)?;
    let mut records = Vec::new();
    let data = Dataset::read_jsonl_with(&args.data, &encoder, |record| records.push(record))?;
    Ok((data, records))
}

/// A prompt, and the answer that is wanted.
struct Question<'a> {
    asked: Asked<'a>,
    wanted: String,
}

enum Asked<'a> {
    Text(&'a str),
    Chat(Prompt<'a>),
}

impl<'a> Question<'a> {
    /// `None` for records that ask nothing.
    fn of(record: &'a Record) -> Option<Self> {
        match record {
            Record::Pair { prompt, completion } => {
                Some(Self { asked: Asked::Text(prompt), wanted: completion.clone() })
            }
            Record::Chat { messages, context } => {
                let (last, messages) = messages.split_last()?;
                // A call of a tool is no text to compare, and what is not learnt is not wanted.
                let is_text = last.content.is_some() && !last.extra.contains_key("tool_calls");
                let counts = last.loss_weight() != Ok(Some(0.0));
                let asked = last.role == "assistant" && !messages.is_empty() && is_text && counts;
                let prompt = Prompt { messages, context, add_generation_prompt: true };
                asked.then(|| Self { asked: Asked::Chat(prompt), wanted: last.text() })
            }
            Record::FillInTheMiddle { .. } | Record::Text { .. } => None,
        }
    }

    /// A session that holds the prompt, with the adapters of `template`.
    fn ask(&self, template: &Session) -> Result<Session> {
        let mut session = template.fork();
        match &self.asked {
            Asked::Text(text) => session.push_text(text)?,
            Asked::Chat(prompt) => session.set_prompt(prompt)?,
        }
        Ok(session)
    }

    fn max_tokens(&self, engine: &Engine) -> Result<usize> {
        let options = EncodeOptions { add_bos: Some(false), ..EncodeOptions::default() };
        Ok(engine.base().tokenizer.encode(&self.wanted, options)?.len() + SLACK)
    }
}

/// Answers that are exact; greedy, a batch at a time.
fn answer(
    questions: &[Question<'_>],
    template: &Session,
    max_tokens: Option<usize>,
    done: &dyn Fn(u64),
) -> Result<usize> {
    let engine = template.engine();
    let mut exact = 0;
    for batch in questions.chunks(BATCH) {
        let mut sessions = batch.iter().map(|question| question.ask(template)).collect::<Result<Vec<_>>>()?;
        let mut sequences = Vec::with_capacity(batch.len());
        for (session, question) in sessions.iter_mut().zip(batch) {
            let max_tokens = max_tokens.map_or_else(|| question.max_tokens(engine), Ok)?;
            sequences.push((session, GenerateOptions { max_tokens, ..GenerateOptions::default() }));
        }
        let mut answers = vec![String::new(); batch.len()];
        generate_batch(sequences, |index, token| {
            answers[index].push_str(&token.text);
            ControlFlow::Continue(())
        })?;
        exact += answers.iter().zip(batch).filter(|(answer, question)| answer.trim() == question.wanted.trim()).count();
        done(batch.len() as u64);
    }
    Ok(exact)
}

/// Mean loss by the tokens' weights.
fn loss(examples: &[Example], template: &Session, done: &dyn Fn()) -> Result<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for Example { ids, weights: of } in examples {
        let weight = |index: usize| f64::from(of.get(index + 1).copied().unwrap_or(0.0));
        let first = (0..ids.len()).find(|&index| weight(index) > 0.0).unwrap_or(ids.len());
        let mut session = template.fork();
        // The last token is predicted, it predicts none.
        session.push_tokens(&ids[..ids.len() - 1])?;
        session.logits(first, |index, logits| {
            if weight(index) > 0.0 {
                sum -= weight(index) * log_softmax(logits, ids[index + 1]);
                weights += weight(index);
            }
        })?;
        done();
    }
    Ok(sum / weights)
}
