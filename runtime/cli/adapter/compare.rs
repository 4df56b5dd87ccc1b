//! `epiphyte adapter compare`: one base, one prompt, answered plainly and under each adapter,
//! swapped in between.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{Adapters, LoadedAdapter, Weighted};
use crate::generate::{self, answer};
use crate::prompt::PromptArgs;
use crate::{ModelArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::chat::Message;
use epiphyte::engine::{CancelToken, FinishReason, GenerateOptions, Session};
use epiphyte::error::{Error, Result};

/// Answer one prompt without adapters and with each of them, and time the swaps
#[derive(Args)]
pub(super) struct CompareArgs {
    /// LoRA adapters (PEFT folder, safetensors or GGUF), and how much of each [default: 1]
    #[arg(required = true, value_name = "PATH[=WEIGHT]", value_parser = Weighted::parser())]
    adapters: Vec<Weighted>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
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
    finish_reason: Option<FinishReason>,
}

pub(super) fn run(args: &CompareArgs, gpu: GpuOptions) -> Result<()> {
    let prompt = args.prompt.read()?;
    let engine = args.model.open(gpu)?;
    let loaded = args
        .adapters
        .iter()
        .map(|adapter| adapter.load(&engine, args.force))
        .collect::<Result<Vec<_>>>()?;
    let mut session = engine.session();
    let stop = interrupt::listen("");
    let question = Question {
        prompt,
        max_tokens: args.max_tokens,
        json: args.json,
        cancel: stop.token.clone(),
    };
    let mut answers = Vec::new();
    for adapter in std::iter::once(None).chain(loaded.into_iter().map(Some)) {
        answers.push(question.answer_under(&mut session, adapter)?);
        if stop.token.is_cancelled() {
            break;
        }
    }
    let device = engine.device();
    if args.json {
        output::json(&Report { device, answers })?;
    }
    if stop.token.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// What every adapter is asked.
struct Question {
    prompt: String,
    max_tokens: usize,
    json: bool,
    cancel: CancelToken,
}

impl Question {
    fn answer_under(
        &self,
        session: &mut Session,
        adapter: Option<LoadedAdapter>,
    ) -> Result<Answer> {
        let adapters = Adapters(adapter.clone().into_iter().collect());
        let start = Instant::now();
        adapters.apply(session)?;
        let swap_seconds = start.elapsed().as_secs_f64();
        if !self.json {
            match adapter {
                None => output::line("without adapters:")?,
                Some(_) => output::line(&format!(
                    "\n{} (swapped in {:.3} ms):",
                    adapters.line(),
                    swap_seconds * 1e3
                ))?,
            }
        }
        session.set_messages(&[Message::new("user", self.prompt.as_str())])?;
        let (max_tokens, cancel) = (self.max_tokens, self.cancel.clone());
        let options = GenerateOptions { max_tokens, cancel, ..Default::default() };
        let show = |text: &str| if self.json { Ok(()) } else { output::text(text) };
        let answer = answer(session, options, show).or_else(generate::Answer::cancelled)?;
        if !self.json {
            output::text("\n")?;
        }
        let generate::Answer { text, ids, finish_reason, .. } = answer;
        Ok(Answer { adapter, swap_seconds, text, ids, finish_reason })
    }
}
