//! `epiphyte generate`: one prompt, one answer. Ctrl-C ends the answer; what there is of it is
//! printed.

use std::io::IsTerminal;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters};
use super::prompt::PromptArgs;
use super::response::ResponseArgs;
use super::tools::{self, ToolArgs, Tools};
use super::{LookupArgs, ModelArgs, Policy, SamplingArgs, TemplateArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::chat::{Message, Prompt, ToolAnswer};
use epiphyte::engine::{AnswerStats, FinishReason, GenerateOptions, Session};
use epiphyte::error::{Error, Result};

/// Continue a text, or with --chat answer it
#[derive(Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Take the prompt as a user's message and render it with the model's chat template
    #[arg(long)]
    chat: bool,
    /// The system message
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    lookup: LookupArgs,
    #[command(flatten)]
    response: ResponseArgs,
    #[command(flatten)]
    tools: ToolArgs,
    /// What becomes of an answer that fills the context
    #[arg(long, value_enum, value_name = "POLICY", requires = "chat")]
    context_policy: Option<Policy>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Print the prompt as the model sees it, too
    #[arg(long)]
    show_prompt: bool,
    /// Go on when the model says it is done
    #[arg(long)]
    ignore_eos: bool,
    /// Print device, speed and memory on stderr (a terminal always gets them)
    #[arg(long)]
    stats: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: String,
    /// With --tools: what it says beside its calls, and these.
    #[serde(flatten)]
    answer: Option<ToolAnswer>,
    finish_reason: Option<FinishReason>,
    adapters: Adapters,
    device: String,
    /// Tokens a second; null when there was too little to measure.
    prompt_tps: Option<f64>,
    decode_tps: Option<f64>,
    /// Looked up in the text so far, and those that the model says as well.
    drafted_tokens: usize,
    accepted_tokens: usize,
    load_seconds: f64,
    /// From the beginning of the prompt; null without a token.
    first_token_seconds: Option<f64>,
    device_bytes: u64,
    peak_host_bytes: Option<u64>,
}

/// What was generated, and what it took.
pub(super) struct Answer {
    pub(super) ids: Vec<u32>,
    pub(super) text: String,
    pub(super) finish_reason: Option<FinishReason>,
    pub(super) stats: AnswerStats,
}

impl Answer {
    /// No answer, for a session that was cancelled before there was one. Errors: any other.
    pub(super) fn cancelled(error: Error) -> Result<Self> {
        let finish_reason = Some(FinishReason::Cancelled);
        let mut stats = AnswerStats::default();
        stats.finish_reason = finish_reason;
        match error {
            Error::Cancelled => {
                Ok(Self { ids: Vec::new(), text: String::new(), finish_reason, stats })
            }
            other => Err(other),
        }
    }
}

pub(super) fn run(args: &GenerateArgs, gpu: GpuOptions) -> Result<()> {
    let sampling = args.sampling.sampling()?;
    args.template.only_with(args.chat, "--chat")?;
    let response_format = args.response.read()?;
    let tools = args.tools.read()?;
    let prompt = args.prompt.read()?;
    let start = Instant::now();
    let engine = args.model.open_with(gpu, &args.template)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let template = &engine.base().chat_template;
    let calling = tools.as_ref().map(|tools| tools.calling(template)).transpose()?;
    let response_format = match &calling {
        Some(calling) => calling.held(response_format)?,
        None => response_format,
    };
    let mut session = engine.session();
    session.set_context_policy(args.context_policy.map(Into::into).unwrap_or_default());
    let adapters = Adapters::load(&args.adapters, &engine)?;
    adapters.apply(&mut session)?;
    let shown = push(&mut session, args, prompt, tools.as_ref())?.filter(|_| args.show_prompt);
    if let Some(prompt) = shown.as_ref().filter(|_| !args.json) {
        output::text(prompt)?;
    }
    let prompt_ids = session.tokens().to_vec();
    let stop = interrupt::listen("");
    let cancel = stop.token.clone();
    let options = GenerateOptions { sampling, response_format, cancel, ..args.options() };
    // Calls are printed once they are whole.
    let is_quiet = args.json || tools.is_some();
    let show = |text: &str| if is_quiet { Ok(()) } else { output::text(text) };
    let answer = answer(&mut session, options, show).or_else(Answer::cancelled)?;
    // One that was stopped is no call yet.
    let calling = calling.filter(|_| !stop.token.is_cancelled());
    let parsed = calling.map(|calling| calling.parse(&answer.text)).transpose()?;
    let report = Report {
        answer: parsed,
        prompt: shown,
        prompt_ids,
        prompt_tps: answer.stats.prompt_tps(),
        decode_tps: answer.stats.decode_tps(),
        drafted_tokens: answer.stats.drafted_tokens,
        accepted_tokens: answer.stats.accepted_tokens,
        first_token_seconds: answer.stats.first_token_seconds,
        ids: answer.ids,
        text: answer.text,
        finish_reason: answer.finish_reason,
        adapters,
        device: engine.device(),
        load_seconds,
        device_bytes: engine.device_bytes(),
        peak_host_bytes: output::peak_host_bytes(),
    };
    finish(args, &report)?;
    if stop.token.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

impl GenerateArgs {
    /// What is said in a word.
    fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            prompt_lookup_num_tokens: self.lookup.most(),
            ..GenerateOptions::default()
        }
    }
}

fn finish(args: &GenerateArgs, report: &Report) -> Result<()> {
    if args.json {
        output::json(report)?;
    } else if let Some(answer) = &report.answer {
        tools::print(answer)?;
    } else if !report.text.ends_with('\n') {
        output::text("\n")?;
    }
    if args.stats || (std::io::stderr().is_terminal() && !args.json) {
        note_stats(report);
    }
    Ok(())
}

/// Gives the session its prompt; returns the text that the model sees, when someone wants it.
fn push(
    session: &mut Session,
    args: &GenerateArgs,
    text: String,
    tools: Option<&Tools>,
) -> Result<Option<String>> {
    if !args.chat {
        session.push_text(&text)?;
        return Ok(Some(text));
    }
    let system = args.system.iter().map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
    let context = tools.map(Tools::context).unwrap_or_default();
    let prompt = Prompt { messages: &messages, context: &context, add_generation_prompt: true };
    session.set_prompt(&prompt)?;
    session.engine().base().chat_template.render_prompt(&prompt).map(Some)
}

/// Generates, showing the text as it comes.
pub(super) fn answer(
    session: &mut Session,
    options: GenerateOptions,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    let mut generation = session.generate(options)?;
    let (mut ids, mut text) = (Vec::new(), String::new());
    for token in generation.by_ref() {
        let token = token?;
        ids.push(token.id);
        if !token.text.is_empty() {
            text.push_str(&token.text);
            show(&token.text)?;
        }
    }
    let stats = generation.stats();
    Ok(Answer { ids, text, finish_reason: stats.finish_reason, stats })
}

fn note_stats(report: &Report) {
    let tps =
        |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| format!("{rate:.1} tokens/s"));
    output::note(&format!("device   {}", report.device));
    if !report.adapters.0.is_empty() {
        output::note(&format!("adapters {}", report.adapters.line()));
    }
    output::note(&format!(
        "prompt   {} tokens, {}",
        report.prompt_ids.len(),
        tps(report.prompt_tps)
    ));
    output::note(&format!("decode   {} tokens, {}", report.ids.len(), tps(report.decode_tps)));
    if report.drafted_tokens > 0 {
        let (drafted, accepted) = (report.drafted_tokens, report.accepted_tokens);
        output::note(&format!("lookup   {drafted} tokens, of which {accepted} were right"));
    }
    let first = report.first_token_seconds.map_or_else(String::new, |first| {
        format!(", {first:.2} s from the prompt to the first token")
    });
    output::note(&format!("time     {:.2} s to load{first}", report.load_seconds));
    output::note(&format!(
        "memory   {}",
        output::memory(report.device_bytes, report.peak_host_bytes)
    ));
}
