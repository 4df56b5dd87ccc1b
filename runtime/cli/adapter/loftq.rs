//! `epiphyte adapter loftq`: an adapter that makes up for what quantising took. Needs no GPU.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::output;
use crate::paths::{Files, Kind};
use epiphyte::base::ModelConfig;
use epiphyte::dtype::DType;
use epiphyte::error::Result;
use epiphyte::format::gguf::{Gguf, shards_of};
use epiphyte::merge::{Loftq, LoftqModule, loftq};

/// Make an adapter of what quantising took of a model, for `train --init` (`LoftQ`)
#[derive(Args)]
pub(super) struct LoftqArgs {
    /// The model before it was quantised (GGUF)
    full: PathBuf,
    /// The model after
    quantized: PathBuf,
    /// The new adapter: a folder, or a file that ends in .gguf; an adapter that is there is
    /// replaced
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = 16)]
    rank: usize,
    /// Replace a file that is no adapter, too
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    rank: usize,
    /// Root mean squares over all modules.
    before: f64,
    after: f64,
    modules: &'a [LoftqModule],
}

pub(super) fn run(args: &LoftqArgs) -> Result<()> {
    let is_gguf = args.out.extension().is_some_and(|end| end == "gguf");
    let kind = if is_gguf { Kind::Adapter } else { Kind::AdapterFolder };
    let mut files = Files::default();
    for (noun, option, path) in
        [("the model", "FULL", &args.full), ("the quantised model", "QUANTIZED", &args.quantized)]
    {
        for shard in shards_of(path) {
            files = files.reads(noun, option, &shard);
        }
    }
    files.writes("--out", &args.out, kind).check(Some(args.overwrite))?;
    let (full, quantized) = (Gguf::open(&args.full)?, Gguf::open(&args.quantized)?);
    let bar = output::bar(1, "decomposing {pos}/{len} modules {wide_bar} {eta} left");
    let made = loftq(&full, &quantized, args.rank, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let Loftq { adapter, modules, .. } = made?;
    let shape = ModelConfig::from_gguf(&quantized)?.base_shape();
    match is_gguf {
        true => adapter.save_gguf(&args.out, DType::F32, &shape)?,
        false => adapter.save_peft(&args.out, DType::F32, &shape)?,
    }
    let mean = |of: fn(&LoftqModule) -> f64| {
        (modules.iter().map(|m| of(m) * of(m)).sum::<f64>() / modules.len() as f64).sqrt()
    };
    let report = Report {
        out: &args.out,
        rank: args.rank,
        before: mean(|module| module.before),
        after: mean(|module| module.after),
        modules: &modules,
    };
    if args.json {
        return output::json(&report);
    }
    let (out, n) = (args.out.display(), modules.len());
    let percent = |share: f64| 100.0 * share;
    output::line(&format!(
        "{out}: {n} modules of rank {}; errors {:.3} % of the weights before, {:.3} % with it",
        args.rank,
        percent(report.before),
        percent(report.after)
    ))
}
