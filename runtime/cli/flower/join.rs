//! `epiphyte flower join`: a whole node, for laptops and tests. A phone has its own connection and
//! key store around the same client.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::connection::Connection;
use super::node::{Event, Node, now};
use super::worker::{Done, VERSION, Worker, told};
use crate::delta::{KeyFile, public_keys};
use crate::paths::{Files, Kind};
use crate::shape::PieceArgs;
use crate::train::StepArgs;
use crate::{ModelArgs, TemplateArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::engine::{CancelToken, Engine};
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::Examples;
use epiphyte::federated::Signer;
use epiphyte::federated::flower::{Client, End, Leave, Options, Reply, Task, Traffic};
use epiphyte::train::TrainOptions;
use epiphyte::train::data::{DataOptions, Dataset, Encoder};

/// The longest time between two looks at the clock and at signals.
const SLICE: Duration = Duration::from_millis(100);

/// Take part as a node: train the versions that come on examples of this machine, send signed deltas
#[derive(Args)]
pub(super) struct JoinArgs {
    /// URL of the SuperLink (flwr 1.40 or later), whose port is 8000 unless it was told another
    url: String,
    /// Examples: JSONL as `train` takes it. They stay on this machine
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,
    /// What the adapter is called
    #[arg(long, value_name = "NAME")]
    id: String,
    /// Public keys that may publish versions: a PEM, or a line each as `delta key` prints them
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Folder of this node's own: who it is to the SuperLink, the task it is busy with, the last
    /// version. The same one every time
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Root certificates to trust (PEM) [default: Mozilla's]
    #[arg(long, value_name = "FILE")]
    root_certificates: Option<PathBuf>,
    #[command(flatten)]
    key: KeyFile,
    /// Largest norm of what a version adds to the base
    #[arg(long, value_name = "NORM")]
    max_norm: Option<f64>,
    /// Seconds between two signs of life: a node that shows none for twice as long is offline
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=1800))]
    heartbeat: u64,
    /// Seconds without a usable answer after which to give up
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Leave once so many deltas were sent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Leave once nothing came for so many seconds
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1 [default: as `train`]
    #[arg(long, value_name = "W")]
    prompt_loss_weight: Option<f32>,
    #[command(flatten)]
    steps: StepArgs,
    #[command(flatten)]
    pieces: PieceArgs,
    /// Pull the factors towards the version that the round began with (`FedProx`)
    #[arg(long, value_name = "MU", default_value_t = 0.0)]
    proximal_mu: f64,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// What became of a task.
#[derive(Serialize)]
struct TaskReport {
    kind: String,
    round: Option<u64>,
    version: Option<u64>,
    loss: Option<f64>,
    delta_bytes: Option<usize>,
    /// `delivered`, `refused`, `dropped`, or `left` where it was not done.
    end: &'static str,
    reason: Option<String>,
    requests: u64,
    sent_bytes: u64,
    received_bytes: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    node_id: Option<u64>,
    examples: usize,
    tasks: Vec<TaskReport>,
    requests: u64,
    sent_bytes: u64,
    received_bytes: u64,
    device: String,
    seconds: f64,
    cancelled: bool,
}

pub(super) fn run(args: &JoinArgs, gpu: GpuOptions) -> Result<()> {
    let connection = Connection::new(&args.url, args.root_certificates.as_deref())?;
    std::fs::create_dir_all(&args.state).map_err(|e| Error::io(&args.state, e))?;
    args.check_files()?;
    let (key, file) = (args.key.read()?, args.state.join("node"));
    let saved = if file.exists() { Some(read(&file)?) } else { None };
    let client = Client::new(&key.public_key(), saved.as_deref(), args.options())?;
    let stop = interrupt::listen("leaving; again to leave at once");
    let engine = args.model.open_with(gpu, &args.template)?;
    let worker = args.worker(&engine, stop.token.clone())?;
    let examples = worker.data.examples.len();
    output::note(&format!("{examples} examples; waiting for versions of {}", args.id));
    let node =
        Node { client, connection, key: args.key.read()?, file, said: None, was_online: false };
    let mut party = Party {
        node,
        worker,
        stop: stop.token.clone(),
        began: Instant::now(),
        before: Traffic::default(),
        task: None,
        tasks: Vec::new(),
    };
    let done = party.take_part(args);
    let report = party.report();
    done?;
    if args.json { output::json(&report) } else { print(&report) }?;
    if report.cancelled { Err(Error::Cancelled) } else { Ok(()) }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

impl JoinArgs {
    /// That what is kept takes the place of nothing that is read.
    fn check_files(&self) -> Result<()> {
        let files = Files::default().model(&self.model.file)?;
        let files = files.reads("the examples", "--data", &self.data);
        let files = files.reads("the key", "--key", &self.key.key);
        let files = files.reads("the keys", "--trust", &self.trust);
        let kept = self.state.join(VERSION);
        files.writes("--state", &kept, Kind::Version).check(None)
    }

    fn options(&self) -> Options {
        Options {
            heartbeat: Duration::from_secs(self.heartbeat),
            patience: Some(Duration::from_secs(self.patience)),
            ..Options::default()
        }
    }

    fn worker(&self, engine: &Arc<Engine>, cancel: CancelToken) -> Result<Worker> {
        let context = engine.context();
        let defaults = TrainOptions { proximal_mu: self.proximal_mu, ..TrainOptions::default() };
        let options = self.steps.options(defaults, self.steps.duration());
        let options = self.pieces.options(options, context);
        options.check()?;
        let base = engine.base();
        let trained =
            DataOptions { prompt_loss_weight: self.prompt_loss_weight, ..options.data_options() };
        let whole = DataOptions { seq_len: context, truncate: false, ..trained };
        let encoder =
            |options| Encoder::new(&base.tokenizer, &base.chat_template, context, options);
        Ok(Worker {
            engine: Arc::clone(engine),
            data: Arc::new(Dataset::read_jsonl(&self.data, &encoder(trained)?)?),
            examples: Examples::read_jsonl(&self.data, &encoder(whole)?)?,
            options,
            key: self.key.read()?,
            trusted: public_keys(&self.trust)?,
            id: self.id.clone(),
            max_norm: self.max_norm,
            folder: self.state.clone(),
            cancel,
        })
    }
}

/// A node that works.
struct Party {
    node: Node,
    worker: Worker,
    stop: CancelToken,
    began: Instant,
    /// What had gone over the wire when the last task was over.
    before: Traffic,
    task: Option<(Task, Done, Instant)>,
    tasks: Vec<TaskReport>,
}

impl Party {
    fn take_part(&mut self, args: &JoinArgs) -> Result<()> {
        let (mut is_leaving, mut last) = (false, Instant::now());
        loop {
            let deltas = self.tasks.iter().filter(|t| t.kind == "train" && t.end == "delivered");
            let is_done = args.rounds.is_some_and(|rounds| deltas.count() as u64 >= rounds);
            let is_idle = args.idle.is_some_and(|idle| last.elapsed().as_secs() >= idle);
            if !is_leaving && (is_done || is_idle || self.stop.is_cancelled()) {
                is_leaving = true;
                self.node.client.leave(Leave::Offline);
            }
            match self.node.advance()? {
                Event::Idle(time) => std::thread::sleep(time.min(SLICE)),
                Event::Work(task) => {
                    self.work(task)?;
                    last = Instant::now();
                }
                Event::Over(end) => {
                    self.over(&end)?;
                    last = Instant::now();
                }
                Event::Left => break,
            }
        }
        if self.task.is_some() {
            self.note_end("left", None);
        }
        Ok(())
    }

    fn work(&mut self, task: Task) -> Result<()> {
        let (began, node) = (Instant::now(), &mut self.node);
        let mut dropped = None;
        let mut alive = || match node.advance()? {
            Event::Over(end) => {
                dropped = Some(end);
                Err(Error::Cancelled)
            }
            _ => Ok(()),
        };
        let done = self.worker.work(&task, &mut alive);
        let (done, answer) = match done {
            Ok(done) => (done, None),
            Err(Error::Cancelled) => {
                self.task = Some((task, Done::default(), began));
                return dropped.map_or(Ok(()), |end| self.over(&end));
            }
            Err(error @ Error::SuperLink { .. }) => return Err(error),
            Err(error) => {
                output::note(&format!("warning: the task is refused: {error}"));
                (Done::default(), Some(told(&error)))
            }
        };
        match answer {
            Some(reason) => self.node.client.refuse(now(), &reason)?,
            None => {
                let reply = Reply { payload: done.delta.as_deref(), metrics: &done.metrics };
                self.node.client.reply(now(), &reply)?;
            }
        }
        self.task = Some((task, done, began));
        Ok(())
    }

    fn over(&mut self, end: &End) -> Result<()> {
        match end {
            End::Delivered => {
                self.worker.sent()?;
                self.note_end("delivered", None);
            }
            End::Refused(reason) => {
                self.worker.not_sent()?;
                self.note_end("refused", Some(reason.clone()));
            }
            End::Dropped(reason) => {
                output::note(&format!("warning: the task is dropped: {reason}"));
                self.worker.not_sent()?;
                self.note_end("dropped", Some((*reason).into()));
            }
        }
        Ok(())
    }

    /// Notes what became of the last task; of one from before a restart, less is known.
    fn note_end(&mut self, end: &'static str, reason: Option<String>) {
        let (after, before) = (self.node.client.traffic(), self.before);
        self.before = after;
        let (task, done, began) = match self.task.take() {
            Some((task, done, began)) => (Some(task), done, began),
            None => (None, Done::default(), Instant::now()),
        };
        self.tasks.push(TaskReport {
            kind: task.as_ref().map_or_else(|| "before".into(), |task| task.kind.clone()),
            round: task.as_ref().and_then(Task::round),
            version: Some(done.version).filter(|version| *version > 0),
            loss: done.loss,
            delta_bytes: done.delta.as_ref().map(Vec::len),
            end,
            reason,
            requests: after.requests - before.requests,
            sent_bytes: after.sent_bytes - before.sent_bytes,
            received_bytes: after.received_bytes - before.received_bytes,
            seconds: began.elapsed().as_secs_f64(),
        });
    }

    fn report(&mut self) -> Report {
        let Traffic { requests, sent_bytes, received_bytes } = self.node.client.traffic();
        Report {
            node_id: self.node.client.node_id(),
            examples: self.worker.data.examples.len(),
            tasks: std::mem::take(&mut self.tasks),
            requests,
            sent_bytes,
            received_bytes,
            device: self.worker.engine.device(),
            seconds: self.began.elapsed().as_secs_f64(),
            cancelled: self.stop.is_cancelled(),
        }
    }
}

fn print(report: &Report) -> Result<()> {
    let sent = report.tasks.iter().filter(|task| task.end == "delivered").count();
    let (up, down) = (report.sent_bytes, report.received_bytes);
    output::line(&format!(
        "{sent} of {} tasks delivered in {:.0} s; {} sent, {} received in {} requests",
        report.tasks.len(),
        report.seconds,
        output::human_bytes(up),
        output::human_bytes(down),
        report.requests
    ))
}
