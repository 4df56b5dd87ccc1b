//! `epiphyte adapter inspect`: what an adapter holds, and what of it would be refused. Needs no
//! GPU.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::BaseFile;
use crate::{ModelFile, output};
use epiphyte::adapter::report::{Item, Verdict};
use epiphyte::adapter::{Adapter, AdapterFormat, LoadReport};
use epiphyte::base::fingerprint::is_of_another_version;
use epiphyte::error::{Error, Result};

/// Letters of a file's name for something, on a line.
const MAX_NAME: usize = 128;

/// Show what an adapter holds, and whether it fits a model
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// LoRA adapter (PEFT folder, safetensors or GGUF)
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelFile,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct Report {
    path: PathBuf,
    /// The base it was compared with.
    model: PathBuf,
    model_fingerprint: String,
    made_for: MadeFor,
    /// [`Adapter::digest`] of one that loads.
    digest: Option<String>,
    #[serde(flatten)]
    report: LoadReport,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum MadeFor {
    ThisBase,
    AnotherBase,
    /// It names its base by a fingerprint of another version.
    AnotherVersion,
    /// The file does not say.
    Unknown,
}

/// Errors: [`Error::InvalidFile`] for an adapter that does not load, after the report.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let base = BaseFile::open(&args.model)?;
    let report = Adapter::inspect(&args.path, base.adapted())?;
    let made_for = match &report.base_fingerprint {
        Some(fingerprint) if *fingerprint == base.fingerprint => MadeFor::ThisBase,
        Some(other) if is_of_another_version(other) => MadeFor::AnotherVersion,
        Some(_) => MadeFor::AnotherBase,
        None => MadeFor::Unknown,
    };
    let (path, model) = (args.path.clone(), base.path.clone());
    let digest = match report.refused().next() {
        None => Some(Adapter::load(&path, base.adapted())?.digest()),
        Some(_) => None,
    };
    let model_fingerprint = base.fingerprint;
    let report = Report { path, model, model_fingerprint, made_for, digest, report };
    if args.json { output::json(&report) } else { print(&report) }?;
    match report.report.refused().count() {
        0 => Ok(()),
        n => {
            let reason =
                format!("it does not load on this model: {n} of its keys and tensors are refused");
            Err(Error::InvalidFile { path: report.path, reason })
        }
    }
}

fn print(inspected: &Report) -> Result<()> {
    let report = &inspected.report;
    let format = match report.format {
        AdapterFormat::Peft => "PEFT",
        AdapterFormat::Gguf => "GGUF",
        _ => "another",
    };
    output::line(&format!("adapter   {}", inspected.path.display()))?;
    output::line(&format!("format    {format}, {}", output::human_bytes(report.n_bytes)))?;
    output::line(&format!(
        "base      {}",
        match inspected.made_for {
            MadeFor::ThisBase => "made for this model",
            MadeFor::AnotherBase => "made for another model; it loads with --force only",
            MadeFor::AnotherVersion => {
                "named by a fingerprint of another version; it loads with --force only"
            }
            MadeFor::Unknown => "the file does not say which",
        }
    ))?;
    if let Some(digest) = &inspected.digest {
        output::line(&format!("digest    {digest}"))?;
    }
    modules(report)?;
    let items = || report.keys.iter().chain(&report.tensors);
    for (label, verdict) in [("refused", Verdict::Refused), ("ignored", Verdict::Ignored)] {
        grouped(items().filter(|item| item.verdict == verdict))
            .iter()
            .try_for_each(|line| output::line(&format!("{label}   {line}")))?;
    }
    report.warnings.iter().try_for_each(|warning| output::line(&format!("warning   {warning}")))
}

/// Modules by rank and scaling, a line each.
fn modules(report: &LoadReport) -> Result<()> {
    let n_bytes = report.modules.iter().map(|module| module.n_bytes).sum();
    output::line(&format!(
        "modules   {}, {} as f32",
        report.modules.len(),
        output::human_bytes(n_bytes)
    ))?;
    // Scalings as bits, which sort and compare.
    let mut kinds: BTreeMap<(usize, u32), BTreeMap<_, usize>> = BTreeMap::new();
    for module in &report.modules {
        *kinds
            .entry((module.rank, module.scaling.to_bits()))
            .or_default()
            .entry(module.path.target)
            .or_default() += 1;
    }
    for ((rank, scaling), targets) in kinds {
        let names: Vec<_> =
            targets.iter().map(|(target, n)| format!("{n} {}", target.name())).collect();
        output::line(&format!(
            "          rank {rank}, scaling {}: {}",
            f32::from_bits(scaling),
            names.join(", ")
        ))?;
    }
    Ok(())
}

/// Items with the same reason on one line, in the order of the first of each.
fn grouped<'a>(items: impl Iterator<Item = &'a Item>) -> Vec<String> {
    let mut groups: Vec<(&str, &str, usize)> = Vec::new();
    for item in items {
        match groups.iter_mut().find(|(_, reason, _)| *reason == item.reason) {
            Some((.., n)) => *n += 1,
            None => groups.push((&item.name, &item.reason, 0)),
        }
    }
    let line = |(name, reason, others): (&str, &str, usize)| {
        // Names are the file's: nothing of them may reach the terminal as it is.
        let name: String = name.escape_debug().take(MAX_NAME).collect();
        let others = if others == 0 { String::new() } else { format!(" (and {others} more)") };
        format!("{name}{others}: {reason}")
    };
    groups.into_iter().map(line).collect()
}
