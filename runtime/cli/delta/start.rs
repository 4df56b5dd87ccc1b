//! `epiphyte delta start`: version 1 of an adapter that will be averaged.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{KeyFile, PlanArgs, Report};
use crate::ModelFile;
use crate::adapter::BaseFile;
use crate::paths::{Files, Kind};
use epiphyte::adapter::Adapter;
use epiphyte::error::Result;
use epiphyte::federated::{Factors, start};
use epiphyte::format::write_whole;

/// Make an adapter version 1 of what devices train on
#[derive(Args)]
pub(super) struct StartArgs {
    /// LoRA adapter to begin with (PEFT folder, safetensors or GGUF)
    adapter: PathBuf,
    /// The version to write (safetensors, signed)
    out: PathBuf,
    /// What the adapter is called in all its versions
    #[arg(long, value_name = "NAME")]
    id: String,
    /// Factors of the first round: b for rolora and ffa, ab for fedavg, svd and stack
    #[arg(long, default_value = "b")]
    factors: First,
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    model: ModelFile,
    #[command(flatten)]
    report: Report,
}

#[derive(Clone, Copy, ValueEnum)]
enum First {
    A,
    B,
    Ab,
}

pub(super) fn run(args: &StartArgs) -> Result<()> {
    let files = Files::default().model(&args.model)?.reads("the adapter", "PATH", &args.adapter);
    let files = files.reads("the key", "--key", &args.key.key);
    files.writes("OUT", &args.out, Kind::Version).check(None)?;
    let base = BaseFile::open(&args.model)?;
    let mut adapter = Adapter::load(&args.adapter, base.adapted())?;
    adapter.check_base(&base.fingerprint)?;
    adapter.base_fingerprint = Some(base.fingerprint);
    let factors = match args.factors {
        First::A => Factors::A,
        First::B => Factors::B,
        First::Ab => Factors::Both,
    };
    let version = start(&args.id, &adapter, args.plan.plan(None, factors), &args.key.read()?)?;
    write_whole(&args.out, version.bytes())?;
    let n = adapter.modules.len();
    let line = format!("{}: version 1 of {}, {n} modules", args.out.display(), args.id);
    let object = serde_json::json!({
        "out": args.out, "adapter": args.id, "version": 1, "modules": n,
    });
    args.report.print(&line, &object)
}
