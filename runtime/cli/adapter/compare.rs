//! `epiphyte adapter compare`: one base, one prompt, answered plainly and under each adapter, swapped in between.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{Adapters, LoadedAdapter, Weighted};
use crate::chat::Message;
use crate::cli::generate::answer;
use crate::cli::{ModelArgs, output};
use crate::engine::{GenerateOptions, Session};
use crate::error::Result;
use crate::gpu::GpuOptions;

/// Answer one prompt without adapters and with each of them, and time the swaps
#[derive(Args)]
pub(super) struct CompareArgs {
    /// LoRA adapters (PEFT folder, safetensors or GGUF), and how much of each [default: 1]
    #[arg(required = true, value_name = "PATH[=WEIGHT]", value_parser = Weighted::parser())]
    adapters: Vec<Weighted>,
    #[command(flatten)]
    model: ModelArgs,
    /// The user's message
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 48)]
    max_tokens: usize,
    /// Load adapters that were made for another base model, too
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    device: String,
    answers: Vec<Answer>,
}

#[derive(Serialize)]
struct Answer {
    /// `None` without adapters.
    adapter: Option<LoadedAdapter>,
    /// Host time of the swap, with the adapter resident.
    swap_seconds: f64,
    text: String,
    ids: Vec<u32>,
}

pub(super) fn run(args: &CompareArgs, gpu: GpuOptions) -> Result<()> {
    let engine = args.model.open(gpu)?;
    let loaded = args.adapters.iter().map(|adapter| adapter.load(&engine, args.force)).collect::<Result<Vec<_>>>()?;
    let mut session = engine.session();
    let mut answers = vec![answer_under(&mut session, args, None)?];
    for adapter in loaded {
        answers.push(answer_under(&mut session, args, Some(adapter))?);
    }
    let device = engine.gpu().description();
    if args.json { output::json(&Report { device, answers }) } else { Ok(()) }
}

fn answer_under(session: &mut Session, args: &CompareArgs, adapter: Option<LoadedAdapter>) -> Result<Answer> {
    let adapters = Adapters(adapter.clone().into_iter().collect());
    let start = Instant::now();
    adapters.apply(session)?;
    let swap_seconds = start.elapsed().as_secs_f64();
    if !args.json {
        match adapter {
            None => output::line("without adapters:")?,
            Some(_) => output::line(&format!("\n{} (swapped in {:.3} ms):", adapters.line(), swap_seconds * 1e3))?,
        }
    }
    session.set_messages(&[Message::new("user", args.prompt.as_str())])?;
    let options = GenerateOptions { max_tokens: args.max_tokens, ..Default::default() };
    let answer = answer(session, options, |text| if args.json { Ok(()) } else { output::text(text) })?;
    if !args.json {
        output::text("\n")?;
    }
    Ok(Answer { adapter, swap_seconds, text: answer.text, ids: answer.ids })
}
