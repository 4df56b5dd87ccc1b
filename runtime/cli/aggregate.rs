//! `epiphyte aggregate`: many deltas become the next version. Needs no GPU.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};

use crate::delta::{KeyFile, PlanArgs, now, public_keys};
use crate::output;
use crate::paths::{Files, Kind};
use epiphyte::error::{Error, Result};
use epiphyte::federated::aggregate::{
    AggregateOptions, CentralNoise, Inputs, Mode, OptimizerState, OverNorm, Report, Robust,
    ServerOptimizer, Trust, Weights, aggregate, partial,
};
use epiphyte::federated::{Published, Signer};
use epiphyte::format::write_whole;

/// Average deltas into the next version of an adapter
#[derive(Args)]
pub(super) struct AggregateArgs {
    /// Deltas, parts that --partial wrote, and folders of them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The version that the deltas were made from
    #[arg(long, value_name = "FILE")]
    parent: PathBuf,
    /// The next version to write; with --partial, the part
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    key: KeyFile,
    /// Public keys of the devices that may take part [default: any key, each once a round]
    #[arg(long, value_name = "FILE")]
    devices: Option<PathBuf>,
    /// Public keys that may sign parts, beside the one that signs here
    #[arg(long, value_name = "FILE")]
    workers: Option<PathBuf>,
    /// Write a part of the round, for another run to add to others
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    plan: PlanArgs,
    /// What the server's optimizer remembers: read if it is there, written
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Write the report as a page with plots
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Deltas that the report names: those that were refused first, then those farthest from the
    /// mean; the counts are of all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    entries: usize,
    /// One JSON object, the report
    #[arg(long)]
    json: bool,
}

/// How deltas become one.
#[derive(Args)]
pub(super) struct HowArgs {
    /// fedavg: means of A and B; rolora: one factor a round, in turn; ffa: B alone; svd: the mean
    /// product at the parent's rank; stack: all products side by side
    #[arg(long, default_value = "rolora")]
    mode: ModeName,
    /// What a delta counts at most, by its examples; 0 counts all alike
    #[arg(long, value_name = "N", default_value_t = 64)]
    cap: u64,
    /// Shrink deltas above the clip norm rather than refuse them
    #[arg(long)]
    shrink: bool,
    /// Take deltas of up to N versions ago, at a lower weight
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_staleness: u64,
    /// A mean that a few liars can't move far
    #[arg(long, default_value = "mean")]
    robust: RobustName,
    /// Part that trimmed-mean leaves out at either end
    #[arg(long, default_value_t = 0.1)]
    trim: f64,
    /// Liars that krum reckons with
    #[arg(long, value_name = "N", default_value_t = 1)]
    liars: usize,
    /// Leave out deltas whose cosine to the mean is below
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    min_cosine: Option<f64>,
    /// Do not read the deltas again for their cosines
    #[arg(long, conflicts_with = "min_cosine")]
    no_cosines: bool,
    /// Fewer than these publish nothing
    #[arg(long, value_name = "N", default_value_t = 10)]
    min_clients: u64,
    /// Noise on the sum, in clip norms; with --expected, --cap 0 and --shrink
    #[arg(long, value_name = "SIGMA", requires = "expected")]
    noise: Option<f64>,
    /// What the sum is divided by under noise: the number of deltas that was expected
    #[arg(long, value_name = "N")]
    expected: Option<u64>,
    /// What the server does with the mean
    #[arg(long, default_value = "sgd")]
    optimizer: OptimizerName,
    /// The server's learning rate [default: 1; adam 0.1]
    #[arg(long)]
    server_lr: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeName {
    Fedavg,
    Rolora,
    Ffa,
    Svd,
    Stack,
}

#[derive(Clone, Copy, ValueEnum)]
enum RobustName {
    Mean,
    TrimmedMean,
    Median,
    Krum,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    Sgd,
    Momentum,
    Adam,
}

impl HowArgs {
    pub(super) fn options(&self) -> AggregateOptions {
        let lr = self.server_lr;
        AggregateOptions {
            mode: match self.mode {
                ModeName::Fedavg => Mode::FedAvg,
                ModeName::Rolora => Mode::RoLora,
                ModeName::Ffa => Mode::Ffa,
                ModeName::Svd => Mode::Svd,
                ModeName::Stack => Mode::Stack,
            },
            weights: match self.cap {
                0 => Weights::Uniform,
                cap => Weights::Examples { cap },
            },
            over_norm: if self.shrink { OverNorm::Shrink } else { OverNorm::Refuse },
            max_staleness: self.max_staleness,
            robust: match self.robust {
                RobustName::Mean => Robust::Mean,
                RobustName::TrimmedMean => Robust::TrimmedMean { fraction: self.trim },
                RobustName::Median => Robust::Median,
                RobustName::Krum => Robust::Krum { byzantine: self.liars },
            },
            min_cosine: self.min_cosine,
            min_clients: self.min_clients,
            cosines: !self.no_cosines,
            noise: self
                .noise
                .zip(self.expected)
                .map(|(sigma, expected)| CentralNoise { sigma, expected }),
            optimizer: match self.optimizer {
                OptimizerName::Sgd => ServerOptimizer::Sgd { lr: lr.unwrap_or(1.0) },
                OptimizerName::Momentum => {
                    ServerOptimizer::Momentum { lr: lr.unwrap_or(1.0), momentum: 0.9 }
                }
                OptimizerName::Adam => {
                    ServerOptimizer::Adam { lr: lr.unwrap_or(0.1), b1: 0.9, b2: 0.99, tau: 1e-3 }
                }
            },
        }
    }
}

pub(super) fn run(args: &AggregateArgs) -> Result<()> {
    args.check_files()?;
    let (parent, key) = (Published::open(&args.parent)?, args.key.read()?);
    let mut workers = args.workers.as_deref().map_or_else(|| Ok(Vec::new()), public_keys)?;
    workers.push(key.public_key());
    let devices = args.devices.as_deref().map(public_keys).transpose()?;
    let devices = devices.map(|keys| keys.into_iter().collect());
    let trust = Trust { devices, workers, now: now() };
    let (options, files) = (args.how.options(), all_files(&args.files)?);
    let inputs = Inputs { parent: &parent, options: &options, trust: &trust, files: &files };
    let start = Instant::now();
    let mut report = if args.partial {
        let (bytes, report) = partial(&inputs, &key)?;
        write_whole(&args.out, &bytes)?;
        report
    } else {
        let mut state =
            args.state.as_ref().map_or_else(|| Ok(OptimizerState::new()), OptimizerState::open)?;
        let before = &parent.manifest.next;
        let next = args.plan.plan(Some(before), before.factors);
        let outcome = aggregate(&inputs, next, &mut state, &key)?;
        if let Some(version) = &outcome.version {
            write_whole(&args.out, version.bytes())?;
            args.state.as_ref().map_or(Ok(()), |path| state.save(path))?;
        }
        outcome.report
    };
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &args.html {
        write_whole(path, report.to_html().as_bytes())?;
    }
    report.keep_worst(args.entries);
    if let Some(path) = &args.report {
        write_whole(path, report.to_json().as_bytes())?;
    }
    if args.json {
        output::json(&report)?;
    } else {
        show(&report, &args.out, seconds)?;
    }
    match &report.not_published {
        // Exit code 1: there is no version.
        Some(reason) => {
            let reason = format!("nothing was published: {reason}");
            Err(Error::InvalidDelta { what: "round".into(), reason })
        }
        None => Ok(()),
    }
}

impl AggregateArgs {
    fn check_files(&self) -> Result<()> {
        let mut files = Files::default().reads("the parent", "--parent", &self.parent);
        files = files.reads("the key", "--key", &self.key.key);
        for path in &self.files {
            files = files.reads("a delta", "FILES", path);
        }
        let kind = if self.partial { Kind::Part } else { Kind::Version };
        files = files.writes("--out", &self.out, kind);
        let others = [
            ("--state", &self.state, Kind::ServerState),
            ("--report", &self.report, Kind::Report),
            ("--html", &self.html, Kind::Report),
        ];
        for (option, path, kind) in others {
            files = path.iter().fold(files, |files, path| files.writes(option, path, kind));
        }
        files.check(None)
    }
}

/// Files as given, and those directly in given folders; hidden ones are on their way.
fn all_files(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in given {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        let visible = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.is_file() && !name.starts_with('.')
        };
        let mut inside: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        inside.retain(visible);
        inside.sort();
        all.extend(inside);
    }
    Ok(all)
}

/// The report as a table: those that were refused, then what was made.
fn show(report: &Report, out: &Path, seconds: f64) -> Result<()> {
    const MOST: usize = 50;
    for entry in report.entries.iter().filter(|entry| !entry.is_taken()).take(MOST) {
        let reason = entry.reason.as_deref().unwrap_or_default();
        output::line(&format!("refused  {:<32} {reason}", entry.file))?;
    }
    if report.refused > MOST {
        let kinds = report.refusals.iter().map(|(why, count)| format!("{count} {why}"));
        output::line(&format!("refused  {}", kinds.collect::<Vec<_>>().join(", ")))?;
    }
    let Report { taken, shrunk, refused, .. } = report;
    let speed = report.n_bytes as f64 / seconds / 1e9;
    output::line(&format!(
        "{taken} taken ({shrunk} shrunk), {refused} refused; {} in {seconds:.1} s, {speed:.2} GB/s",
        output::human_bytes(report.n_bytes)
    ))?;
    if let Some(peak) = output::peak_host_bytes() {
        output::line(&format!("at most {} of memory", output::human_bytes(peak)))?;
    }
    if let Some(error) = report.mode_error {
        let kind = if error.is_estimate { ", estimated" } else { "" };
        let percent = 100.0 * error.relative();
        output::line(&format!("{percent:.3} % from the exact mean{kind}"))?;
    }
    match report.version {
        Some(version) => {
            let (mode, exactness) = (report.mode, report.exactness);
            output::line(&format!("{}: version {version} ({mode}: {exactness})", out.display()))
        }
        None if report.not_published.is_none() => {
            output::line(&format!("{}: a part of round {}", out.display(), report.round))
        }
        None => Ok(()),
    }
}
