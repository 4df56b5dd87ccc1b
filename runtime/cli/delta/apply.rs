//! `epiphyte delta apply`: a published version becomes an adapter on this device.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Report, public_keys};
use crate::adapter::BaseFile;
use crate::paths::{Files, Kind};
use crate::{ModelArgs, ModelFile, interrupt};
use epiphyte::GpuOptions;
use epiphyte::adapter::{Adapter, Factor};
use epiphyte::dtype::DType;
use epiphyte::error::Result;
use epiphyte::evaluate::{Canary, Examples, try_adapter};
use epiphyte::federated::{Accept, Published};
use epiphyte::train::data::Encoder;

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
    /// Examples (JSONL, as `train` takes them) that the version is tried on before it is written:
    /// its loss must be a number. Loads the model
    #[arg(long, value_name = "FILE")]
    canary: Option<PathBuf>,
    /// The largest loss on them, in nats a token
    #[arg(long, value_name = "LOSS", requires = "canary")]
    canary_loss: Option<f64>,
    /// All answers to them must be exact
    #[arg(long, requires = "canary")]
    canary_exact: bool,
    #[command(flatten)]
    model: ModelFile,
    #[command(flatten)]
    report: Report,
}

pub(super) fn run(args: &ApplyArgs, gpu: GpuOptions) -> Result<()> {
    let files = Files::default().model(&args.model)?.reads("the version", "VERSION", &args.version);
    let files = files.reads("the keys", "--trust", &args.trust);
    let files = args.canary.iter().fold(files, |f, path| f.reads("the canary", "--canary", path));
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
    let adapter = version.adapter(&base.shape)?;
    args.canary.as_ref().map_or(Ok(()), |path| args.try_out(&adapter, path, gpu))?;
    adapter.save_peft(&args.out, DType::F32, &base.shape)?;
    let (out, n, norm) = (args.out.display(), version.manifest.version, version.norm());
    let factors = version.manifest.next.factors;
    let freeze = factors.frozen().map(Factor::name);
    let asks = freeze.map_or_else(String::new, |frozen| format!(" (`train --freeze {frozen}`)"));
    let line = format!(
        "{out}: version {n} of {}, norm {norm:.4}; the round is of {}{asks}",
        args.id,
        factors.name()
    );
    let object = serde_json::json!({
        "out": args.out, "adapter": args.id, "version": n, "norm": norm,
        "factors": factors.name(), "freeze": freeze,
    });
    args.report.print(&line, &object)
}

impl ApplyArgs {
    /// That the version does not break what it is tried on.
    fn try_out(&self, adapter: &Adapter, examples: &Path, gpu: GpuOptions) -> Result<()> {
        let model = ModelArgs { file: self.model.clone(), context: None };
        let engine = model.open(gpu)?;
        let canary = Canary { max_loss: self.canary_loss, exact: self.canary_exact };
        let stop = interrupt::listen("stopping; nothing is written");
        let read = |encoder: &Encoder<'_>| Examples::read_jsonl(examples, encoder);
        try_adapter(&engine, adapter, read, &canary, &stop.token).map(drop)
    }
}
