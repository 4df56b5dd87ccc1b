//! `epiphyte imatrix`: which columns of a model's matrices count, by a text.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{ModelArgs, ModelFile, interrupt, output};
use crate::paths::{Files, Kind};
use epiphyte::GpuOptions;
use epiphyte::error::{Error, Result};
use epiphyte::importance::{ImportanceOptions, importance};

/// Measure which columns of a model's matrices count, for `quantize --imatrix`
#[derive(Args)]
pub(super) struct ImatrixArgs {
    #[command(flatten)]
    model: ModelFile,
    /// The text, UTF-8
    #[arg(short, long)]
    file: PathBuf,
    /// The new file (GGUF, as llama-imatrix writes it); one that is there is replaced
    #[arg(short, long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// Replace another file, too
    #[arg(long)]
    overwrite: bool,
    /// Tokens of a window
    #[arg(short = 'c', long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Windows [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Leave out how much the loss depends on each matrix, which takes a pass back a window
    #[arg(long)]
    columns_only: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    matrices: usize,
    windows: usize,
    tokens: u64,
    device: String,
    seconds: f64,
}

pub(super) fn run(args: &ImatrixArgs, gpu: GpuOptions) -> Result<()> {
    let files = Files::default().model(&args.model)?.reads("the text", "--file", &args.file);
    files.writes("--out", &args.out, Kind::Imatrix).check(Some(args.overwrite))?;
    let text = super::perplexity::read(&args.file)?;
    if args.window == 0 {
        let reason = "a window has 1 token or more".into();
        return Err(Error::InvalidArgument { name: "window", reason });
    }
    let engine = ModelArgs { file: args.model.clone(), context: Some(args.window) }.open(gpu)?;
    let start = Instant::now();
    let stop = interrupt::listen("stopping; again to leave at once");
    let (window, chunks, cancel) = (args.window, args.chunks, stop.token.clone());
    let options = ImportanceOptions { window, chunks, slopes: !args.columns_only, cancel };
    let bar = output::bar(1, "{pos}/{len} windows {wide_bar} {eta} left");
    let measured = importance(&engine, &text, &options, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let measured = measured?;
    let dataset = args.file.file_name().unwrap_or_default().to_string_lossy();
    measured.save(&args.out, &dataset)?;
    let report = Report {
        out: &args.out,
        matrices: measured.n_matrices(),
        windows: measured.chunks(),
        tokens: measured.tokens(),
        device: engine.device(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return output::json(&report);
    }
    let Report { matrices, tokens, seconds, .. } = report;
    let out = args.out.display();
    output::line(&format!("{out}: {matrices} matrices over {tokens} tokens, {seconds:.1} s"))
}
