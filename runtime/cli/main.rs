//! The command line: arguments in, answers on stdout, everything else on stderr.
//!
//! Exit codes: see `EXIT_CODES`. With `--json` stdout holds exactly one object, or nothing after an
//! error; an object that says that something is refused or interrupted comes with the exit code for
//! it.

mod adapter;
mod aggregate;
mod bench;
mod chat;
mod checkpoint;
mod classify;
mod delta;
mod doctor;
mod embed;
mod eval;
mod federate;
mod flower;
mod formats;
mod generate;
mod imatrix;
mod inspect;
mod interrupt;
mod library;
mod lines;
mod merge;
mod output;
mod paths;
mod perplexity;
mod plan;
mod privacy;
mod prompt;
mod quantize;
mod response;
mod shape;
mod shell;
mod stack;
mod tools;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use epiphyte::GpuOptions;
use epiphyte::chat::ChatTemplate;
use epiphyte::engine::{ContextPolicy, Engine, EngineOptions, Sampling};
use epiphyte::error::{Error, Result};
use epiphyte::library::EntryKind;

/// What the help ends with.
const EXIT_CODES: &str = "Exit codes:
  0    done
  1    it failed: a file, the device, or what was asked about is refused
  2    bad use: an option, or a value of one
  130  interrupted (Ctrl-C, SIGTERM, SIGHUP); what there was is printed or saved";

/// Runs a 4-bit language model on this machine's GPU.
#[derive(Parser)]
#[command(name = "epiphyte", version, max_term_width = 120, after_help = EXIT_CODES)]
struct Cli {
    /// Which GPU: discrete, integrated, software, or part of its name
    #[arg(long, global = true, value_name = "NAME", env = "EPIPHYTE_GPU")]
    gpu: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Perplexity(perplexity::PerplexityArgs),
    Bench(bench::BenchArgs),
    Adapter(adapter::AdapterCommandArgs),
    Merge(Box<merge::MergeArgs>),
    Formats(formats::FormatsArgs),
    Quantize(quantize::QuantizeArgs),
    Imatrix(imatrix::ImatrixArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    Stack(stack::StackArgs),
    Inspect(inspect::InspectArgs),
    List(library::ListArgs),
    Add(library::AddArgs),
    Remove(library::RemoveArgs),
    Train(Box<train::TrainArgs>),
    Eval(eval::EvalArgs),
    Embed(embed::EmbedArgs),
    Classify(classify::ClassifyArgs),
    Plan(plan::PlanArgs),
    Delta(delta::DeltaArgs),
    Aggregate(Box<aggregate::AggregateArgs>),
    Federate(federate::FederateArgs),
    Flower(flower::FlowerArgs),
    Privacy(privacy::PrivacyArgs),
    Doctor(doctor::DoctorArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Which model.
#[derive(Args, Clone)]
struct ModelFile {
    /// Model file (GGUF; of several shards the first), or a name that `list` shows, such as
    /// `gemma-3-270m` [default: the one that `make model` fetches]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// Which model, and how much of it.
#[derive(Args)]
struct ModelArgs {
    #[command(flatten)]
    file: ModelFile,
    /// Most tokens of prompt and answer together [default: what the model allows, at most 8192;
    /// with longrope scaling its original context]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
}

/// How chats are rendered.
#[derive(Args)]
struct TemplateArgs {
    /// Render chats with this Jinja file instead of the model's own template
    #[arg(long = "chat-template", id = "chat-template", value_name = "FILE")]
    path: Option<PathBuf>,
}

impl TemplateArgs {
    /// The template, which parses.
    fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.path else { return Ok(None) };
        let invalid = |reason| Error::InvalidFile { path: path.clone(), reason };
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = String::from_utf8(bytes).map_err(|_| invalid("not UTF-8; convert it".into()))?;
        ChatTemplate::new(Some(&text), "", "").map_err(|error| invalid(error.to_string()))?;
        Ok(Some(text))
    }

    /// Refuses a template where nothing would be rendered with it.
    fn only_with(&self, renders: bool, option: &str) -> Result<()> {
        if renders || self.path.is_none() {
            return Ok(());
        }
        Err(Error::InvalidArgument { name: "chat-template", reason: format!("needs `{option}`") })
    }
}

/// How to choose tokens.
#[derive(Args)]
struct SamplingArgs {
    /// 0 takes the best token, 1 leaves the model's probabilities as they are
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Choose from the K best tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Choose from the smallest set with this probability; 1 is all
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Leave out tokens less probable than this part of the best one; 0 is none
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that were already said less likely; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// The same seed gives the same answer
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// See [`ContextPolicy`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum Policy {
    /// End the answer, and refuse what comes after
    Error,
    /// Go on without the oldest turns; the system message stays
    DropOldest,
}

impl From<Policy> for ContextPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Error => Self::Error,
            Policy::DropOldest => Self::DropOldest,
        }
    }
}

#[derive(Args)]
struct LookupArgs {
    /// Most tokens to propose at a time from what followed the last ones earlier in the text; the
    /// answer stays the same. 0 is none [default: 3 as long as that is faster]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=7))]
    prompt_lookup_num_tokens: Option<u8>,
}

impl LookupArgs {
    fn most(&self) -> Option<usize> {
        self.prompt_lookup_num_tokens.map(usize::from)
    }
}

impl SamplingArgs {
    /// Errors: [`Error::InvalidArgument`], before a model is loaded in vain.
    fn sampling(&self) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            logit_bias: Vec::new(),
            seed: self.seed,
        };
        sampling.check(usize::MAX)?;
        Ok(sampling)
    }
}

impl ModelArgs {
    /// Loads the model, with a progress bar if that takes long.
    fn open(&self, gpu: GpuOptions) -> Result<Arc<Engine>> {
        self.open_with(gpu, &TemplateArgs { path: None })
    }

    /// As [`ModelArgs::open`], to render chats with `template`.
    fn open_with(&self, gpu: GpuOptions, template: &TemplateArgs) -> Result<Arc<Engine>> {
        let (path, chat_template) = (self.file.path()?, template.read()?);
        // Adapters are those that the user names, so only the device sets a limit.
        let (context, adapter_budget) = (self.context, u64::MAX);
        let options = EngineOptions {
            gpu,
            context,
            adapter_budget,
            chat_template,
            ..EngineOptions::default()
        };
        let mut bar = output::LoadingBar::default();
        Engine::open_with(path, options, &mut |progress| bar.update(progress))
    }
}

impl ModelFile {
    fn path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.model {
            return library::resolve(EntryKind::Model, path.clone());
        }
        let path = epiphyte::default_model().ok_or_else(|| Error::InvalidArgument {
            name: "model",
            reason: "there is no cache folder to find the default in; name a file with `-m`".into(),
        })?;
        let reason = "the default model is not there; run `make demo` or `make model`, or name a \
            file with `-m`";
        if path.exists() {
            Ok(path)
        } else {
            Err(Error::InvalidFile { path, reason: reason.into() })
        }
    }
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::parse();
    match interrupt::install().and_then(|()| run_command(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Cancelled) => ExitCode::from(interrupt::EXIT_CODE),
        // Whoever reads has had enough.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Err(error) => {
            output::note(&format!("error: {error}"));
            ExitCode::from(if matches!(error, Error::InvalidArgument { .. }) { 2 } else { 1 })
        }
    }
}

fn run_command(cli: Cli) -> Result<()> {
    let name = cli.gpu.filter(|name| !name.is_empty());
    let gpu = GpuOptions { name, ..GpuOptions::from_env()? };
    match cli.command {
        Command::Generate(args) => generate::run(&args, gpu),
        Command::Chat(args) => chat::run(&args, gpu),
        Command::Perplexity(args) => perplexity::run(&args, gpu),
        Command::Bench(args) => bench::run(&args, gpu),
        Command::Adapter(args) => adapter::run(&args, gpu),
        Command::Merge(args) => merge::run(&args, gpu),
        Command::Stack(args) => stack::run(&args),
        Command::Formats(args) => formats::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Imatrix(args) => imatrix::run(&args, gpu),
        Command::Checkpoint(args) => checkpoint::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::List(args) => library::list(&args),
        Command::Add(args) => library::add(&args),
        Command::Remove(args) => library::remove(&args),
        Command::Train(args) => train::run(&args, gpu),
        Command::Eval(args) => eval::run(&args, gpu),
        Command::Embed(args) => embed::run(&args, gpu),
        Command::Classify(args) => classify::run(&args, gpu),
        Command::Plan(args) => plan::run(&args, gpu),
        Command::Delta(args) => delta::run(&args, gpu),
        Command::Aggregate(args) => aggregate::run(&args),
        Command::Federate(args) => federate::run(&args, gpu),
        Command::Flower(args) => flower::run(&args, gpu),
        Command::Privacy(args) => privacy::run(&args),
        Command::Doctor(args) => doctor::run(&args, gpu),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}
