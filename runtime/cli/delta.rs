//! `epiphyte delta`: what leaves a device, and what comes back. Needs no GPU, but for a canary.

mod apply;
mod inspect;
mod key;
mod make;
mod start;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};

use crate::output;
use epiphyte::GpuOptions;
use epiphyte::error::{Error, Result};
use epiphyte::federated::{Factors, PublicKey, Quantisation, RoundPlan, SigningKey};

/// Make, check and apply what federated averaging sends
#[derive(Args)]
pub(super) struct DeltaArgs {
    #[command(subcommand)]
    command: DeltaCommand,
}

#[derive(Subcommand)]
enum DeltaCommand {
    Key(key::KeyArgs),
    Start(start::StartArgs),
    Make(make::MakeArgs),
    Inspect(inspect::InspectArgs),
    Verify(inspect::VerifyArgs),
    Apply(apply::ApplyArgs),
}

pub(super) fn run(args: &DeltaArgs, gpu: GpuOptions) -> Result<()> {
    match &args.command {
        DeltaCommand::Key(args) => key::run(args),
        DeltaCommand::Start(args) => start::run(args),
        DeltaCommand::Make(args) => make::run(args),
        DeltaCommand::Inspect(args) => inspect::run(args),
        DeltaCommand::Verify(args) => inspect::verify(args),
        DeltaCommand::Apply(args) => apply::run(args, gpu),
    }
}

/// The key that signs.
#[derive(Args)]
pub(super) struct KeyFile {
    /// Private key that signs (PEM, PKCS#8; Ed25519 or P-256)
    #[arg(long, value_name = "FILE")]
    pub(super) key: PathBuf,
}

impl KeyFile {
    pub(super) fn read(&self) -> Result<SigningKey> {
        SigningKey::from_pem(&text(&self.key)?)
    }
}

/// What was done, for programs.
#[derive(Args)]
pub(super) struct Report {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Report {
    /// Prints `object`, or the line for people.
    pub(super) fn print(&self, line: &str, object: &serde_json::Value) -> Result<()> {
        if self.json { output::json(object) } else { output::line(line) }
    }
}

/// Public keys: a PEM, or a line each as `delta key` prints them; `#` begins a comment.
pub(super) fn public_keys(path: &Path) -> Result<Vec<PublicKey>> {
    let text = text(path)?;
    if text.trim_start().starts_with("-----BEGIN") {
        return Ok(vec![PublicKey::from_pem(&text)?]);
    }
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::parse).collect()
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What devices are asked for in the next round.
#[derive(Args)]
pub(super) struct PlanArgs {
    /// Days in which deltas are taken
    #[arg(long, value_name = "N", default_value_t = 7)]
    days: u64,
    /// Largest norm of a delta; 0 for none [default: the parent's, at first 1]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Noise that each device adds, in clip norms [default: the parent's, at first 0]
    #[arg(long, value_name = "SIGMA")]
    device_noise: Option<f64>,
    /// How devices write numbers [default: the parent's, at first int8]
    #[arg(long, value_name = "KIND")]
    quantisation: Option<Kind>,
}

/// How numbers are written.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kind {
    F32,
    F16,
    Int8,
    Ternary,
    /// The largest hundredth
    TopK,
}

impl Kind {
    pub(super) fn quantisation(self) -> Quantisation {
        match self {
            Self::F32 => Quantisation::F32,
            Self::F16 => Quantisation::F16,
            Self::Int8 => Quantisation::Int8,
            Self::Ternary => Quantisation::Ternary,
            Self::TopK => Quantisation::TopK { fraction: 0.01 },
        }
    }
}

impl PlanArgs {
    /// The plan after `before`; its round and factors are the aggregator's to set.
    pub(super) fn plan(&self, before: Option<&RoundPlan>, factors: Factors) -> RoundPlan {
        let clip = self.clip.map(|norm| (norm > 0.0).then_some(norm));
        let quantisation = self.quantisation.map(Kind::quantisation);
        RoundPlan {
            round: before.map_or(1, |plan| plan.round),
            factors,
            clip_norm: clip.unwrap_or_else(|| before.map_or(Some(1.0), |plan| plan.clip_norm)),
            sigma: self.device_noise.unwrap_or_else(|| before.map_or(0.0, |plan| plan.sigma)),
            quantisation: quantisation
                .unwrap_or_else(|| before.map_or(Quantisation::Int8, |plan| plan.quantisation)),
            expires: now().saturating_add(self.days.saturating_mul(24 * 60 * 60)),
        }
    }
}
