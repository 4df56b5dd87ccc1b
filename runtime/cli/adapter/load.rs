//! `--adapter` and `--force`: the LoRA adapters of the commands that run a model.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::Serialize;

use crate::library::resolve;
use crate::output;
use epiphyte::adapter::AdapterFormat;
use epiphyte::engine::{Change, Engine, Session};
use epiphyte::error::Result;
use epiphyte::library::EntryKind;

/// Which adapters to run with.
#[derive(Args)]
pub(crate) struct AdapterArgs {
    /// LoRA adapter (PEFT folder, safetensors or GGUF) or a name that `list` shows, and how much of
    /// it [default: 1]; may be given several times
    #[arg(long = "adapter", value_name = "PATH[=WEIGHT]", value_parser = Weighted::parser())]
    adapters: Vec<Weighted>,
    /// Load adapters that were made for another base model, too
    #[arg(long)]
    pub(crate) force: bool,
}

/// An adapter's path and weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weighted {
    pub(crate) path: PathBuf,
    pub(crate) weight: f32,
}

impl Weighted {
    /// What follows the last `=` is a weight if it is a finite number, unless the whole is the path
    /// of something. Where both readings are there, that is said.
    ///
    /// Errors: as [`resolve`].
    pub(crate) fn parse(text: OsString) -> Result<Self> {
        let Self { path, weight } = Self::split(text);
        Ok(Self { path: resolve(EntryKind::Adapter, path)?, weight })
    }

    fn split(text: OsString) -> Self {
        let split = text
            .to_str()
            .and_then(|text| text.rsplit_once('='))
            .filter(|(path, _)| !path.is_empty());
        let weight = |text: &str| text.parse::<f32>().ok().filter(|weight| weight.is_finite());
        let with_weight =
            split.and_then(|(path, end)| Some(Self { path: path.into(), weight: weight(end)? }));
        let whole = Self { path: text.into(), weight: 1.0 };
        match with_weight {
            Some(with_weight) if !whole.path.exists() => with_weight,
            Some(other) => {
                if other.path.exists() {
                    let (path, weight, other) =
                        (whole.path.display(), other.weight, other.path.display());
                    output::note(&format!(
                        "warning: both {path} and {other} are there, and the first is meant; for \
                        the second write its \
                         weight in another way, such as {other}={weight}e0"
                    ));
                }
                whole
            }
            None => whole,
        }
    }

    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(Self::parse)
    }

    /// Loads it under its path, as the file is now. What one would want to know of it goes to
    /// stderr.
    pub(crate) fn load(&self, engine: &Engine, force: bool) -> Result<LoadedAdapter> {
        let (id, own) = (self.path.display().to_string(), &engine.base().fingerprint);
        let report = if force {
            engine.load_foreign_adapter(&id, &self.path)?
        } else {
            engine.load_adapter(&id, &self.path)?
        };
        report
            .warnings
            .iter()
            .for_each(|warning| output::note(&format!("warning: {id}: {warning}")));
        if let Some(made_for) = report.base_fingerprint.as_ref().filter(|made_for| *made_for != own)
        {
            output::note(&format!(
                "warning: {id} was made for base model {made_for}, but {own} is loaded"
            ));
        }
        Ok(LoadedAdapter {
            path: id,
            weight: self.weight,
            format: report.format,
            modules: report.modules.len(),
            rank: report.modules.iter().map(|module| module.rank).max().unwrap_or(0),
            other_base: report.base_fingerprint.as_ref().is_some_and(|made_for| made_for != own),
        })
    }
}

/// An adapter that is on the device.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadedAdapter {
    /// Also its id.
    path: String,
    weight: f32,
    format: AdapterFormat,
    modules: usize,
    /// The largest.
    rank: usize,
    /// It was made for another base, and loaded all the same.
    other_base: bool,
}

/// The adapters of a command, loaded.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Adapters(pub(crate) Vec<LoadedAdapter>);

impl Adapters {
    pub(crate) fn load(args: &AdapterArgs, engine: &Engine) -> Result<Self> {
        Self::of(&args.adapters, engine, args.force)
    }

    pub(crate) fn of(adapters: &[Weighted], engine: &Engine, force: bool) -> Result<Self> {
        let loaded = adapters.iter().map(|adapter| adapter.load(engine, force));
        loaded.collect::<Result<_>>().map(Self)
    }

    /// A session with each of them alone.
    pub(crate) fn members(&self, engine: &Arc<Engine>) -> Result<Vec<Session>> {
        let member = |loaded: &LoadedAdapter| {
            let mut session = engine.session();
            let adapters = &[(loaded.path.as_str(), loaded.weight)];
            session.set_adapters(&Change { adapters, ..Change::default() })?;
            Ok(session)
        };
        self.0.iter().map(member).collect()
    }

    /// Ids and weights; `None` without adapters.
    pub(crate) fn set(&self) -> Option<Vec<(String, f32)>> {
        let set: Vec<_> =
            self.0.iter().map(|loaded| (loaded.path.clone(), loaded.weight)).collect();
        (!set.is_empty()).then_some(set)
    }

    /// Makes them the session's; its history is computed again under them when needed.
    pub(crate) fn apply(&self, session: &mut Session) -> Result<()> {
        let adapters: Vec<(&str, f32)> =
            self.0.iter().map(|loaded| (loaded.path.as_str(), loaded.weight)).collect();
        session.set_adapters(&Change { adapters: &adapters, ..Change::default() })
    }

    /// One line for people; empty without adapters.
    pub(crate) fn line(&self) -> String {
        let one = |loaded: &LoadedAdapter| format!("{} x {}", loaded.path, loaded.weight);
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}
