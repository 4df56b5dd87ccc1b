//! `epiphyte stack`: layers of models of one shape as a deeper model. Needs no GPU.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::output;
use crate::paths::{Files, Kind};
use epiphyte::base::ModelConfig;
use epiphyte::error::{Error, Result};
use epiphyte::format::gguf::{Gguf, shards_of};
use epiphyte::stack::{Slice, depth_up_scaling, stack_gguf};

/// Stack layers of models of one shape to a deeper one, which then needs training
#[derive(Args)]
pub(super) struct StackArgs {
    /// Models (GGUF) with the layers to take, from 0, both ends included; a model may come again
    #[arg(required = true, value_name = "FILE[:FIRST-LAST]")]
    parts: Vec<PathBuf>,
    /// Take one model twice, N layers short at the seam (SOLAR took 8 of 32)
    #[arg(long, value_name = "N")]
    overlap: Option<usize>,
    /// The new model file; a stacked model that is there is replaced
    #[arg(short, long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// Replace a file that is no stacked model, too
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    num_hidden_layers: usize,
    n_bytes: u64,
}

pub(super) fn run(args: &StackArgs) -> Result<()> {
    let parts: Vec<_> = args.parts.iter().map(|part| split(part)).collect::<Result<_>>()?;
    let mut numbers = BTreeMap::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    for (path, _) in &parts {
        numbers.entry(path.clone()).or_insert_with(|| {
            paths.push(path.clone());
            paths.len() - 1
        });
    }
    let files = paths.iter().flat_map(|path| shards_of(path));
    let files = files.fold(Files::default(), |all, file| all.reads("the model", "FILE", &file));
    files.writes("--out", &args.out, Kind::StackedModel).check(Some(args.overwrite))?;
    let models: Vec<Gguf> = paths.iter().map(Gguf::open).collect::<Result<_>>()?;
    let layers = |model: usize| Ok(ModelConfig::from_gguf(&models[model])?.num_hidden_layers);
    let slices = match (args.overlap, parts.as_slice()) {
        (Some(overlap), [(_, None)]) => depth_up_scaling(layers(0)?, overlap)?,
        (Some(_), _) => {
            let reason = "it takes one model, without a range".into();
            return Err(Error::InvalidArgument { name: "overlap", reason });
        }
        (None, parts) => parts
            .iter()
            .map(|(path, range)| {
                let model = numbers[path];
                let layers = range.clone().map_or_else(|| Ok(0..layers(model)?), Ok)?;
                Ok(Slice { model, layers })
            })
            .collect::<Result<_>>()?,
    };
    let bar = output::bar(1, "stacking {bytes}/{total_bytes} {wide_bar} {eta} left");
    let models: Vec<&Gguf> = models.iter().collect();
    let stacked = stack_gguf(&models, &slices, &args.out, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    stacked?;
    let n_bytes = std::fs::metadata(&args.out).map_err(|e| Error::io(&args.out, e))?.len();
    let num_hidden_layers = slices.iter().map(|slice| slice.layers.len()).sum();
    let report = Report { out: &args.out, num_hidden_layers, n_bytes };
    if args.json {
        return output::json(&report);
    }
    output::note("note: it needs training: layers meet inputs that they were not made for");
    let (out, bytes) = (args.out.display(), output::human_bytes(n_bytes));
    output::line(&format!("{out}: {num_hidden_layers} layers, {bytes}"))
}

/// A path, and the layers after its last `:` if that reads as a range and the whole is no file.
fn split(part: &Path) -> Result<(PathBuf, Option<Range<usize>>)> {
    let Some((path, range)) = part.to_str().and_then(|text| text.rsplit_once(':')) else {
        return Ok((part.into(), None));
    };
    let number = |text: &str| text.parse::<usize>().ok();
    let ends = range.split_once('-').and_then(|(a, b)| Some((number(a)?, number(b)?)));
    match ends {
        _ if part.exists() => Ok((part.into(), None)),
        Some((first, last)) if first <= last && last < usize::MAX => {
            Ok((path.into(), Some(first..last + 1)))
        }
        _ => {
            let reason = format!("`{range}` is no range of layers such as 0-23");
            Err(Error::InvalidArgument { name: "FILE", reason })
        }
    }
}
