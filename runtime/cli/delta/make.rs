//! `epiphyte delta make`: what training changed, as a file to upload.

use std::path::PathBuf;

use clap::Args;

use super::{KeyFile, Kind as Numbers, Report};
use crate::ModelFile;
use crate::adapter::BaseFile;
use crate::paths::{Files, Kind};
use epiphyte::adapter::Adapter;
use epiphyte::error::Result;
use epiphyte::federated::{Delta, DeltaOptions, Losses, Published, Residual, make};
use epiphyte::format::write_whole;

/// Write what training changed since a version, clipped, quantised and signed
#[derive(Args)]
pub(super) struct MakeArgs {
    /// The version that was trained from
    parent: PathBuf,
    /// The trained adapter (PEFT folder, safetensors or GGUF)
    trained: PathBuf,
    /// The delta to write
    out: PathBuf,
    /// Examples it was trained on; only the power of two below is told
    #[arg(long, value_name = "N", default_value_t = 1)]
    examples: u64,
    /// Loss on held-out examples before and after
    #[arg(long, value_names = ["BEFORE", "AFTER"], num_args = 2, allow_negative_numbers = true)]
    losses: Option<Vec<f64>>,
    /// In place of what the round asks for
    #[arg(long, value_name = "KIND")]
    quantisation: Option<Numbers>,
    /// Keep what quantising loses here, and add what was lost before
    #[arg(long, value_name = "FILE")]
    residual: Option<PathBuf>,
    /// Leave out what changed in a factor that the round freezes
    #[arg(long)]
    drop_frozen: bool,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    model: ModelFile,
    #[command(flatten)]
    report: Report,
}

pub(super) fn run(args: &MakeArgs) -> Result<()> {
    let files = Files::default().model(&args.model)?.reads("the parent", "PARENT", &args.parent);
    let files = files.reads("the trained adapter", "TRAINED", &args.trained);
    let mut files = files.reads("the key", "--key", &args.key.key);
    files = files.writes("OUT", &args.out, Kind::Delta);
    if let Some(residual) = &args.residual {
        files = files.writes("--residual", residual, Kind::Residual);
    }
    files.check(None)?;
    let parent = Published::open(&args.parent)?;
    let trained = Adapter::load(&args.trained, BaseFile::open(&args.model)?.adapted())?;
    let losses = args.losses.as_deref().and_then(|losses| match losses {
        [before, after] => Some(Losses { before: *before, after: *after }),
        _ => None,
    });
    let options = DeltaOptions {
        examples: args.examples,
        losses,
        quantisation: args.quantisation.map(Numbers::quantisation),
        drop_frozen: args.drop_frozen,
        seed: None,
    };
    let mut residual = args.residual.as_ref().map(Residual::open).transpose()?;
    let bytes = make(&parent, &trained, &options, residual.as_mut(), &args.key.read()?)?;
    write_whole(&args.out, &bytes)?;
    if let Some((residual, path)) = residual.zip(args.residual.as_ref()) {
        residual.save(path)?;
    }
    let delta = Delta::from_bytes(bytes)?;
    let (out, n, norm) = (args.out.display(), delta.n_bytes(), delta.norm());
    let was_clipped = delta.manifest.clip.is_some_and(|clip| clip.was_clipped);
    let clipped = if was_clipped { ", clipped" } else { "" };
    let line = format!("{out}: {n} bytes, norm {norm:.4}{clipped}");
    let object = serde_json::json!({
        "out": args.out, "name": delta.name(), "bytes": n, "norm": norm, "was_clipped": was_clipped,
    });
    args.report.print(&line, &object)
}
