//! `epiphyte list`, `add`, `remove`: the models and adapters that have names. Needs no GPU.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};
use serde::Serialize;

use super::output;
use epiphyte::error::Result;
use epiphyte::library::{Entry, EntryKind, Library};

/// List the models and adapters that have names, which `-m` and `--adapter` take
#[derive(Args)]
pub(super) struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Add a folder of your own, whose models and adapters then have names
#[derive(Args)]
pub(super) struct AddArgs {
    /// It stays as it is
    folder: PathBuf,
}

/// Delete a model or an adapter of the cache folder, or leave out a folder that was added
#[derive(Args)]
pub(super) struct RemoveArgs {
    /// All of a name, as `list` shows it, or the folder, which stays as it is
    name: PathBuf,
}

#[derive(Serialize)]
struct Report {
    folders: Vec<PathBuf>,
    entries: Vec<Entry>,
}

pub(super) fn list(args: &ListArgs) -> Result<()> {
    let library = Library::open()?;
    let report = Report { folders: library.folders()?, entries: library.entries()? };
    if args.json {
        return output::json(&report);
    }
    let width = report.entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0);
    for Entry { name, kind, bytes, architecture, path, .. } in &report.entries {
        let kind = match kind {
            EntryKind::Model => architecture.as_deref().unwrap_or("model"),
            EntryKind::Adapter => "adapter",
        };
        let (size, path) = (output::human_bytes(*bytes), path.display());
        output::line(&format!("{name:width$}  {kind:8}  {size:>10}  {path}"))?;
    }
    if report.entries.is_empty() {
        let folders: Vec<_> =
            report.folders.iter().map(|folder| folder.display().to_string()).collect();
        output::note(&format!("nothing is in {}", folders.join(", ")));
    }
    Ok(())
}

pub(super) fn add(args: &AddArgs) -> Result<()> {
    Library::open()?.add(&args.folder)
}

pub(super) fn remove(args: &RemoveArgs) -> Result<()> {
    let library = Library::open()?;
    if library.leave_out(&args.name)? {
        output::note(&format!("{} is left out, and as it was", args.name.display()));
        return Ok(());
    }
    let Entry { path, bytes, .. } = library.remove(&args.name.display().to_string())?;
    let size = output::human_bytes(bytes);
    output::note(&format!("{} is deleted: {size}", path.display()));
    Ok(())
}

/// What a command line's `given` means: a path if something is there or it is spelt like one, else a
/// name.
pub(super) fn resolve(kind: EntryKind, given: PathBuf) -> Result<PathBuf> {
    let name = given.to_str().filter(|name| !name.contains(['/', '\\']) && !given.exists());
    let Some(name) = name else { return Ok(given) };
    let Ok(library) = Library::open() else { return Ok(given) };
    Ok(library.find(kind, name)?.map_or(given, |entry| entry.path))
}

/// An adapter's path, or its name.
pub(super) fn adapter() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|given| resolve(EntryKind::Adapter, given))
}
