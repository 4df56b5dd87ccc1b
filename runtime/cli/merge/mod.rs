//! `epiphyte merge`: several adapters as one. Needs no GPU but to `--tune`.

mod picture;
mod recipe;
mod search;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::adapter::{BaseFile, Weighted};
use crate::paths::{Files, Kind};
use crate::{ModelFile, output};
use epiphyte::GpuOptions;
use epiphyte::adapter::Adapter;
use epiphyte::dtype::DType;
use epiphyte::error::{Error, Result};
use epiphyte::merge::{MergeReport, Merged, Parent, Recipe, Relation, merge, relations};

/// Merge adapters of one base into a new one
#[derive(Args)]
pub(super) struct MergeArgs {
    /// LoRA adapters (PEFT folders, safetensors or GGUF), and how much of each [default: 1]
    #[arg(value_name = "PATH[=WEIGHT]", value_parser = Weighted::parser())]
    adapters: Vec<Weighted>,
    #[command(flatten)]
    recipe: recipe::RecipeArgs,
    #[command(flatten)]
    search: search::SearchArgs,
    /// The new adapter: a folder, or a file that ends in .gguf; an adapter that is there is
    /// replaced
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
    /// Replace a file that is no adapter, too
    #[arg(long)]
    overwrite: bool,
    /// Write the numbers as F16
    #[arg(long)]
    half: bool,
    /// Draw parents and modules to this file (SVG); with `--tune` the loss by each weight
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Merge adapters that were made for another base model, too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelFile,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    #[serde(flatten)]
    report: MergeReport,
    relations: Vec<Relation>,
    /// What was tried; null without `--tune`.
    tune: Option<search::Found>,
}

pub(super) fn run(args: &MergeArgs, gpu: GpuOptions) -> Result<()> {
    let recipe::Given { recipes, parents, half } = args.recipe.read(&args.adapters)?;
    args.search.check(&recipes)?;
    let is_gguf = args.out.extension().is_some_and(|end| end == "gguf");
    args.check_files(&parents, is_gguf)?;
    let base = BaseFile::open(&args.model)?;
    let adapters: Vec<Adapter> = parents
        .iter()
        .map(|parent| load(&parent.path, &base, args.force))
        .collect::<Result<_>>()?;
    let ids: Vec<_> = parents.iter().map(|parent| parent.path.display().to_string()).collect();
    let mut parents: Vec<_> = parents
        .iter()
        .zip(&adapters)
        .zip(&ids)
        .map(|((given, adapter), id)| Parent {
            id,
            adapter,
            weight: given.weight,
            density: given.density,
        })
        .collect();
    let (merged, tune) = match args.search.run(&args.model, gpu, &parents, &recipes)? {
        Some((merged, found)) => {
            parents.iter_mut().zip(found.weights()).for_each(|(parent, w)| parent.weight = *w);
            (merged, Some(found))
        }
        None => (merged(&parents, &recipes, &base)?, None),
    };
    let relations = relations(&parents, &base.shape)?;
    let dtype = if half || args.half { DType::F16 } else { DType::F32 };
    match is_gguf {
        true => merged.adapter.save_gguf(&args.out, dtype, &base.shape)?,
        false => merged.adapter.save_peft(&args.out, dtype, &base.shape)?,
    }
    if let Some(path) = &args.plot {
        let svg = match &tune {
            Some(found) => found.draw(&ids)?,
            None => picture::draw(&merged.report)?,
        };
        std::fs::write(path, svg).map_err(|e| Error::io(path, e))?;
    }
    let report = Report { out: &args.out, report: merged.report, relations, tune };
    if args.json { output::json(&report) } else { print(&report) }
}

impl MergeArgs {
    /// That nothing it writes destroys anything.
    fn check_files(&self, parents: &[recipe::GivenParent], is_gguf: bool) -> Result<()> {
        let kind = if is_gguf { Kind::Adapter } else { Kind::AdapterFolder };
        let mut files = Files::default().model(&self.model)?;
        for parent in parents {
            files = files.reads("the adapter", "PATH", &parent.path);
        }
        if let Some(config) = &self.recipe.config {
            files = files.reads("the recipe", "--config", config);
        }
        if let Some(examples) = &self.search.tune {
            files = files.reads("the examples", "--tune", examples);
        }
        files = files.writes("--out", &self.out, kind);
        if let Some(plot) = &self.plot {
            files = files.writes("--plot", plot, Kind::Picture);
        }
        files.check(Some(self.overwrite))
    }
}

/// By the one recipe there is.
fn merged(parents: &[Parent<'_>], recipes: &[Recipe], base: &BaseFile) -> Result<Merged> {
    let [recipe] = recipes else {
        let reason = "several are compared with `--tune`; give one".into();
        return Err(Error::InvalidArgument { name: "method", reason });
    };
    let bar = output::bar(1, "merging {pos}/{len} modules {wide_bar} {eta} left");
    let merged = merge(parents, recipe, &base.shape, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    merged
}

/// Loads an adapter. Forced, it counts as made for this base.
fn load(path: &Path, base: &BaseFile, force: bool) -> Result<Adapter> {
    let mut adapter = Adapter::load(path, base.adapted())?;
    match adapter.check_base(&base.fingerprint) {
        Err(mismatch) if force => {
            output::note(&format!("warning: {}: {mismatch}", path.display()));
            adapter.base_fingerprint = Some(base.fingerprint.clone());
        }
        checked => checked?,
    }
    Ok(adapter)
}

fn print(Report { out, report, relations, tune }: &Report<'_>) -> Result<()> {
    tune.as_ref().map_or(Ok(()), search::Found::print)?;
    let ranks = report.modules.iter().map(|module| module.rank);
    let ranks = match (ranks.clone().min(), ranks.max()) {
        (Some(least), Some(most)) if least != most => format!("ranks {least} to {most}"),
        (_, most) => format!("rank {}", most.unwrap_or(0)),
    };
    let (name, n) = (report.recipe.method.name(), report.modules.len());
    output::line(&format!("{}: {n} modules of {ranks}, by {name}", out.display()))?;
    output::line(&format!("norm {:.4}; the rank cut off {}", report.norm, percent(report.lost)))?;
    output::line("\n  weight     norm   taken out   cosine    share   parent")?;
    for p in &report.parents {
        let out = p.taken_out.map_or_else(|| "-".into(), percent);
        output::line(&format!(
            "{:8.3} {:8.4} {out:>11} {:8.3} {:8.3}   {}",
            p.weight, p.norm, p.cosine, p.share, p.id
        ))?;
    }
    if !relations.is_empty() {
        output::line("\n  cosine   sign conflict   overlap   parents")?;
    }
    for r in relations {
        let (conflict, overlap) = (percent(r.sign_conflict), percent(r.overlap));
        output::line(&format!(
            "{:8.3} {conflict:>15} {overlap:>9}   {} and {}",
            r.cosine, r.a, r.b
        ))?;
    }
    report.warnings.iter().for_each(|warning| output::note(&format!("warning: {warning}")));
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
