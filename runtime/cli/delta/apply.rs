//! `epiphyte delta apply`: a published version becomes an adapter on this device.

use std::path::PathBuf;

use clap::Args;

use super::{Report, public_keys};
use crate::ModelFile;
use crate::adapter::BaseFile;
use crate::paths::{Files, Kind};
use epiphyte::dtype::DType;
use epiphyte::error::Result;
use epiphyte::federated::{Accept, Published};

/// Check a published version and write it as an adapter's folder
#[derive(Args)]
pub(super) struct ApplyArgs {
    /// The version
    version: PathBuf,
    /// The adapter's folder
    out: PathBuf,
    /// Public keys that may publish: a PEM, or a line each as `delta key` prints them
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// What the adapter is called
    #[arg(long, value_name = "NAME")]
    id: String,
    /// The version in use: only a higher one is taken
    #[arg(long, value_name = "N")]
    current: Option<u64>,
    /// Largest norm of what it adds to the base
    #[arg(long, value_name = "NORM")]
    max_norm: Option<f64>,
    #[command(flatten)]
    model: ModelFile,
    #[command(flatten)]
    report: Report,
}

pub(super) fn run(args: &ApplyArgs) -> Result<()> {
    let files = Files::default().model(&args.model)?.reads("the version", "VERSION", &args.version);
    let files = files.reads("the keys", "--trust", &args.trust);
    files.writes("OUT", &args.out, Kind::AdapterFolder).check(None)?;
    let base = BaseFile::open(&args.model)?;
    let version = Published::open(&args.version)?;
    version.accept(&Accept {
        trusted: &public_keys(&args.trust)?,
        base_fingerprint: &base.fingerprint,
        adapter: &args.id,
        current: args.current,
        max_norm: args.max_norm,
    })?;
    version.adapter(&base.shape)?.save_peft(&args.out, DType::F32, &base.shape)?;
    let (out, n, norm) = (args.out.display(), version.manifest.version, version.norm());
    let line = format!("{out}: version {n} of {}, norm {norm:.4}", args.id);
    let object =
        serde_json::json!({ "out": args.out, "adapter": args.id, "version": n, "norm": norm });
    args.report.print(&line, &object)
}
