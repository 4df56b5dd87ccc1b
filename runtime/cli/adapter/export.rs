//! `epiphyte adapter export`: base and adapters merged into one GGUF, for tools that know no
//! adapters. Needs no GPU.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{BaseFile, Weighted};
use crate::paths::{Files, Kind};
use crate::{ModelFile, output};
use epiphyte::adapter::Adapter;
use epiphyte::dtype::DType;
use epiphyte::error::Result;
use epiphyte::export::{ExportReport, export_gguf};

/// Write a model file with adapters merged in, for tools that know no adapters
#[derive(Args)]
pub(super) struct ExportArgs {
    /// LoRA adapters (PEFT folders, safetensors or GGUF), and how much of each [default: 1]
    #[arg(required = true, num_args = 1.., value_name = "PATH[=WEIGHT]", value_parser = Weighted::parser())]
    adapters: Vec<Weighted>,
    /// The new model file; a merged model that is there is replaced
    #[arg(required = true, value_name = "OUT.gguf")]
    out: PathBuf,
    /// Replace a file that is no merged model, too
    #[arg(long)]
    overwrite: bool,
    /// Type of the tensors that adapters change; the others stay as they are
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    dtype: Type,
    /// Merge adapters that were made for another base model, too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelFile,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    #[value(name = "f16")]
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    #[serde(flatten)]
    report: ExportReport,
}

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    let mut files = Files::default().model(&args.model)?;
    for adapter in &args.adapters {
        files = files.reads("the adapter", "PATH", &adapter.path);
    }
    files.writes("OUT.gguf", &args.out, Kind::MergedModel).check(Some(args.overwrite))?;
    let base = BaseFile::open(&args.model)?;
    let mut adapters = Vec::with_capacity(args.adapters.len());
    for Weighted { path, weight } in &args.adapters {
        let adapter = Adapter::load(path, base.adapted())?;
        match adapter.check_base(&base.fingerprint) {
            Err(mismatch) if args.force => {
                output::note(&format!("warning: {}: {mismatch}", path.display()))
            }
            checked => checked?,
        }
        adapters.push((adapter, *weight));
    }
    let adapters: Vec<(&Adapter, f32)> =
        adapters.iter().map(|(adapter, weight)| (adapter, *weight)).collect();
    let dtype = match args.dtype {
        Type::F16 => DType::F16,
        Type::Q8_0 => DType::Q8_0,
    };
    let bar = output::bar(1, "merging {percent} % {wide_bar} {eta} left");
    let progress = &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let report = export_gguf(&base.gguf, &base.shape, &adapters, (&args.out, dtype), progress);
    bar.finish_and_clear();
    let report = Report { out: &args.out, report: report? };
    if args.json { output::json(&report) } else { print(&report) }
}

fn print(Report { out, report }: &Report<'_>) -> Result<()> {
    let (n, bytes) = (report.merged.len(), output::human_bytes(report.n_bytes));
    output::line(&format!(
        "{}: {bytes}, {n} tensors merged and rounded to {}",
        out.display(),
        report.dtype
    ))?;
    let (max, rms) = (report.max_error_over_delta, report.rms_error_over_delta);
    output::line(&format!(
        "rounding   {:.3} % of what the adapters add (rms over rms), {max:.3} times it at most",
        100.0 * rms
    ))?;
    if rms > 0.5 {
        output::note(
            "warning: rounding hides much of what the adapters add; give --type f16, or run them \
            beside the base",
        );
    }
    if report.untied {
        output::line(
            "head       written apart: one matrix no longer serves as embedding and head",
        )?;
    }
    Ok(())
}
