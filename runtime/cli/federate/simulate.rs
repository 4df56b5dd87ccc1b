//! `epiphyte federate simulate`: rounds of many devices on this machine, one after the other, by
//! way of the same files that real ones send.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::devices::DeviceArgs;
use super::picture;
use super::simulation::{Round, Score, Simulation};
use crate::aggregate::HowArgs;
use crate::delta::PlanArgs;
use crate::paths::{Files, Kind};
use crate::shape::SizeArgs;
use crate::{ModelArgs, TemplateArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::adapter::Adapter;
use epiphyte::dtype::DType;
use epiphyte::engine::{CancelToken, Engine};
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::Examples;
use epiphyte::federated::aggregate::{Mode, OptimizerState};
use epiphyte::federated::{Factors, KeyKind, Published, Quantisation, RoundPlan, SigningKey};
use epiphyte::format::write_whole;
use epiphyte::train::data::{DataOptions, Encoder, TrainLength};
use epiphyte::train::schedule::{Decay, Warmup};
use epiphyte::train::{TrainOptions, fresh_adapter};

/// Run rounds of many devices on this machine, by way of the same files
#[derive(Args)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    /// Examples to measure every version on
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Folder for versions, deltas, reports and the last adapter; it must be new or empty
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Devices of a round, drawn at random [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_round: Option<u32>,
    /// Rounds between two measurements
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    evaluate_every: u64,
    /// Also measure the base, each device alone, and one run on all examples, at as many steps
    #[arg(long, requires = "test")]
    baselines: bool,
    #[command(flatten)]
    local: LocalArgs,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    plan: PlanArgs,
    /// Decides the split, the first factors, who takes part and the order of the examples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Draw accuracy (without answers, loss) by round and by bytes into this file
    #[arg(long, value_name = "FILE.svg", requires = "test")]
    plot: Option<PathBuf>,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// What a device does in a round.
#[derive(Args)]
struct LocalArgs {
    /// Passes over its examples
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    local_epochs: u64,
    /// Steps, in place of passes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "local_epochs")]
    local_steps: Option<u64>,
    /// Learning rate, the same in every step [default: by the sizes of model and adapter]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Pull the factors towards the version that the round began with (`FedProx`)
    #[arg(long, value_name = "MU", default_value_t = 0.0)]
    proximal_mu: f64,
    /// What B A is multiplied by is this over the rank
    #[arg(long, value_name = "A", default_value_t = 16.0)]
    lora_alpha: f64,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1 [default: as `train`]
    #[arg(long, value_name = "W")]
    prompt_loss_weight: Option<f32>,
}

#[derive(Serialize)]
struct Report {
    mode: Mode,
    /// Examples of each device.
    clients: Vec<usize>,
    rounds: Vec<Round>,
    baselines: Option<Baselines>,
    uploaded_bytes: u64,
    downloaded_bytes: u64,
    /// The adapter after the last round.
    adapter: PathBuf,
    cancelled: bool,
    options: TrainOptions,
    device: String,
    seconds: f64,
}

#[derive(Serialize)]
struct Baselines {
    base: Option<Score>,
    /// By device.
    local: Vec<Option<Score>>,
    central: Option<Score>,
}

pub(super) fn run(args: &SimulateArgs, gpu: GpuOptions) -> Result<()> {
    args.check_out()?;
    args.check_plot()?;
    let engine = args.model.open_with(gpu, &args.template)?;
    let stop = interrupt::listen("stopping; again to leave at once");
    let began = Instant::now();
    let mut simulation = args.simulation(&engine, stop.token.clone())?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let (shape, fingerprint) = (engine.base().adapter_shape(), &engine.base().fingerprint);
    let init = fresh_adapter(&simulation.options, &shape, fingerprint)?;
    let mut version = simulation.begin(&init, args.first_plan(simulation.how.mode))?;
    let mut report = Report {
        mode: simulation.how.mode,
        clients: simulation.devices.iter().map(|device| device.data.examples.len()).collect(),
        rounds: Vec::new(),
        baselines: None,
        uploaded_bytes: 0,
        downloaded_bytes: 0,
        adapter: args.out.join("adapter"),
        cancelled: false,
        options: simulation.options.clone(),
        device: engine.device(),
        seconds: 0.0,
    };
    let done = args.rounds(&mut simulation, &init, &mut version, &mut report);
    simulation.bar.finish_and_clear();
    report.cancelled = matches!(done, Err(Error::Cancelled));
    if !report.cancelled {
        done?;
    }
    version.adapter(&shape)?.save_peft(&report.adapter, DType::F32, &shape)?;
    report.seconds = began.elapsed().as_secs_f64();
    let scores = scores(&report.rounds);
    if let Some(path) = args.plot.as_ref().filter(|_| !scores.is_empty()) {
        write_whole(path, picture::rounds(&scores)?.as_bytes())?;
    }
    if args.json { output::json(&report) } else { print(&report) }?;
    if report.cancelled { Err(Error::Cancelled) } else { Ok(()) }
}

/// Of the rounds that were measured.
fn scores(rounds: &[Round]) -> Vec<picture::Point> {
    let mut bytes = 0;
    let measured = rounds.iter().filter_map(|round| {
        bytes += round.uploaded_bytes + round.downloaded_bytes;
        Some(picture::Point { round: round.round, bytes, score: round.score? })
    });
    measured.collect()
}

impl SimulateArgs {
    /// That the picture takes the place of nothing that is read.
    fn check_plot(&self) -> Result<()> {
        let Some(plot) = &self.plot else { return Ok(()) };
        let mut files = Files::default().model(&self.model.file)?.reads(
            "the examples",
            "--data",
            &self.devices.data,
        );
        if let Some(path) = &self.test {
            files = files.reads("the test", "--test", path);
        }
        if let Some(path) = &self.template.path {
            files = files.reads("the chat template", "--chat-template", path);
        }
        files.writes("--plot", plot, Kind::Picture).check(None)
    }

    fn check_out(&self) -> Result<()> {
        let out = &self.out;
        let is_free = match std::fs::read_dir(out) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => !out.exists(),
        };
        match is_free {
            true => Ok(()),
            false => {
                let out = out.display();
                let reason = format!("{out} is there and not an empty folder; name a new one");
                Err(Error::InvalidArgument { name: "out", reason })
            }
        }
    }

    fn simulation(&self, engine: &Arc<Engine>, cancel: CancelToken) -> Result<Simulation> {
        let options = self.options(engine.context());
        options.check()?;
        let base = engine.base();
        let data = DataOptions {
            prompt_loss_weight: self.local.prompt_loss_weight,
            ..options.data_options()
        };
        let encoder =
            |options| Encoder::new(&base.tokenizer, &base.chat_template, engine.context(), options);
        let devices = self.devices.read(&encoder(data)?, self.seed)?;
        let whole = DataOptions { seq_len: engine.context(), truncate: false, ..data };
        let read = |path| Examples::read_jsonl(path, &encoder(whole)?);
        let test = self.test.as_ref().map(read).transpose()?;
        let per_round = self.per_round.map_or(devices.len(), |n| n as usize);
        if per_round > devices.len() {
            let reason = format!("{per_round}, but there are {} devices in all", devices.len());
            return Err(Error::InvalidArgument { name: "per-round", reason });
        }
        let mut how = self.how.options();
        // Fewer than a round has can't come.
        how.min_clients = how.min_clients.min(per_round as u64);
        let measured = if test.is_some() { 1 } else { 0 };
        let alone = if self.baselines { 2 * (devices.len() as u64 + 1) + 1 } else { 0 };
        let work = self.rounds * per_round as u64 + measured * self.rounds / self.evaluate_every;
        Ok(Simulation {
            engine: Arc::clone(engine),
            devices,
            test,
            how,
            options,
            per_round,
            evaluate_every: self.evaluate_every,
            server: SigningKey::generate(KeyKind::Ed25519)?,
            out: self.out.clone(),
            cancel,
            bar: output::bar(work + alone, "{pos}/{len} {wide_bar} {eta} left"),
        })
    }

    /// Of a device's training.
    fn options(&self, context: usize) -> TrainOptions {
        let local = &self.local;
        let options = TrainOptions {
            lora_alpha: local.lora_alpha,
            learning_rate: local.lr,
            proximal_mu: local.proximal_mu,
            decay: Decay::Constant,
            warmup: Warmup::Steps(0),
            duration: match local.local_steps {
                Some(steps) => TrainLength::Steps(steps),
                None => TrainLength::Epochs(local.local_epochs),
            },
            seed: self.seed,
            ..TrainOptions::default()
        };
        self.size.options(options, context)
    }

    /// What the first round asks for.
    fn first_plan(&self, mode: Mode) -> RoundPlan {
        let factors = mode.next(Factors::A);
        let free = RoundPlan {
            round: 1,
            factors,
            clip_norm: None,
            sigma: 0.0,
            quantisation: Quantisation::Int8,
            expires: 0,
        };
        self.plan.plan(Some(&free), factors)
    }

    /// Everything that is measured, into `report`, and the last version into `version`.
    fn rounds(
        &self,
        simulation: &mut Simulation,
        init: &Adapter,
        version: &mut Published,
        report: &mut Report,
    ) -> Result<()> {
        if self.baselines {
            let base = simulation.measure(None)?;
            let local = simulation.local(init, self.rounds)?;
            let central = simulation.central(init, self.rounds)?;
            report.baselines = Some(Baselines { base, local, central });
        }
        let mut state = OptimizerState::new();
        for _ in 0..self.rounds {
            let (next, round) = simulation.round(version, &mut state)?;
            report.uploaded_bytes += round.uploaded_bytes;
            report.downloaded_bytes += round.downloaded_bytes;
            report.rounds.push(round);
            match next {
                Some(next) => *version = next,
                None => {
                    let what = "round".into();
                    let reason = "too few deltas were taken; its report in --out says why".into();
                    return Err(Error::InvalidDelta { what, reason });
                }
            }
        }
        Ok(())
    }
}

fn print(report: &Report) -> Result<()> {
    let shown = |score: &Score| {
        let exact = score.exact_match.map(|exact| format!("{:.1} % exact", 100.0 * exact));
        let loss = score.loss.map(|loss| format!("loss {loss:.4}"));
        [exact, loss].into_iter().flatten().collect::<Vec<_>>().join(", ")
    };
    if let Some(Baselines { base, local, central }) = &report.baselines {
        base.iter().try_for_each(|score| output::line(&format!("base      {}", shown(score))))?;
        let mean = |of: fn(&Score) -> Option<f64>| {
            let all: Vec<_> = local.iter().flatten().filter_map(of).collect();
            (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
        };
        let score = Score { loss: mean(|s| s.loss), exact_match: mean(|s| s.exact_match) };
        output::line(&format!("alone     {} (mean of {} devices)", shown(&score), local.len()))?;
        central.iter().try_for_each(|s| output::line(&format!("together  {}", shown(s))))?;
    }
    for (number, round) in (1..).zip(&report.rounds) {
        if let Some(score) = &round.score {
            output::line(&format!("round {number:<3} {}", shown(score)))?;
        }
    }
    let (up, down) = (report.uploaded_bytes, report.downloaded_bytes);
    let rounds = report.rounds.len();
    output::line(&format!(
        "{rounds} rounds of {} in {:.0} s; {} sent, {} received",
        report.mode.name(),
        report.seconds,
        output::human_bytes(up),
        output::human_bytes(down)
    ))?;
    output::line(&format!("the adapter is in {}", report.adapter.display()))
}
