//! `epiphyte adapter check`: whether an adapter loads, and changes what the model says.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{LoadedAdapter, Weighted};
use crate::{ModelArgs, output};
use epiphyte::GpuOptions;
use epiphyte::engine::Probe;
use epiphyte::error::Result;

/// Load an adapter, and compare the model's predictions with and without it
#[derive(Args)]
pub(super) struct CheckArgs {
    /// LoRA adapter (PEFT folder, safetensors or GGUF)
    path: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// The text to predict the next token of
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        default_value = "The most important thing is"
    )]
    prompt: String,
    /// Check an adapter that was made for another base model, too
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    adapter: LoadedAdapter,
    #[serde(flatten)]
    probe: Probe,
    device: String,
}

pub(super) fn run(args: &CheckArgs, gpu: GpuOptions) -> Result<()> {
    let engine = args.model.open(gpu)?;
    let adapter = Weighted { path: args.path.clone(), weight: 1.0 }.load(&engine, args.force)?;
    let probe = engine.probe_adapter(&args.path.display().to_string(), &args.prompt)?;
    let report = Report { adapter, probe, device: engine.device() };
    if args.json {
        return output::json(&report);
    }
    let Probe { tokens, max_abs_difference, rms_difference, changes_next_token, .. } = report.probe;
    output::line(&format!(
        "logits after {tokens} tokens move by {max_abs_difference:.3e} at most, \
        {rms_difference:.3e} rms"
    ))?;
    output::line(if changes_next_token {
        "the best next token is another"
    } else {
        "the best next token stays"
    })
}
