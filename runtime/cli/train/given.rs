//! `checkpoints/run.json`: what a run was given that no checkpoint says. What is not given when it
//! goes on is as it was.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::{TrainArgs, ValidationArg};
use super::setup::Data;
use crate::error::{Error, Result};
use crate::format::staged::Staged;
use crate::train::data::Validation;

/// The version that is written and read.
const VERSION: u32 = 1;

/// What decides examples and length of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Given {
    version: u32,
    data: PathBuf,
    text: bool,
    prompt_loss_weight: Option<f32>,
    skip_bad: bool,
    #[serde(default)]
    chat_template: Option<PathBuf>,
    /// As `--validation` spells it.
    validation: String,
    patience: Option<u32>,
    steps: Option<u64>,
    epochs: Option<u64>,
    /// Of the file.
    records: usize,
}

impl Given {
    /// Of a run with `data`.
    pub(super) fn of(args: &TrainArgs, data: &Data) -> Self {
        let validation = match (&args.data.validation, data.held_out) {
            (Some(ValidationArg::File(path)), _) => path.display().to_string(),
            (_, None) => "none".into(),
            (_, Some(Validation::Fraction(part))) => part.to_string(),
            (_, Some(Validation::Count(count))) => count.to_string(),
        };
        Self {
            version: VERSION,
            data: args.data.path.clone(),
            text: args.data.text,
            prompt_loss_weight: args.data.prompt_loss_weight,
            skip_bad: args.data.skip_bad,
            chat_template: args.data.template.path.clone(),
            validation,
            patience: data.patience,
            steps: args.steps.steps,
            epochs: args.steps.epochs,
            records: data.report.records,
        }
    }

    /// `None` where there is none, of this version.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let given: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        Some(given).filter(|given| given.version == VERSION)
    }

    /// Errors: [`Error::Io`].
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::io(path, e.into()))?;
        Staged::write(path, &json)?.commit()
    }

    /// Takes over what `args` leave open.
    ///
    /// Errors: [`Error::InvalidArgument`] when the file to validate on is gone.
    pub(super) fn fill(&self, args: &mut TrainArgs) -> Result<()> {
        if args.data.validation.is_none() {
            let invalid = |reason| Error::InvalidArgument {
                name: "validation",
                reason: format!("{}: {reason}", self.validation),
            };
            args.data.validation =
                Some(super::args::parse_validation(&self.validation).map_err(invalid)?);
        }
        args.run.patience = args.run.patience.or(self.patience);
        if args.steps.steps.is_none() && args.steps.epochs.is_none() {
            (args.steps.steps, args.steps.epochs) = (self.steps, self.epochs);
        }
        Ok(())
    }

    /// What decides the examples and is not as in `now`: each option with both values.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        let path = |given: &Self| given.data.display().to_string();
        let weight = |given: &Self| {
            given.prompt_loss_weight.map_or("by the number of records".into(), |w| w.to_string())
        };
        let template = |given: &Self| {
            given.chat_template.as_ref().map_or("none".into(), |path| path.display().to_string())
        };
        [
            ("--data", path(self), path(now)),
            ("--text", self.text.to_string(), now.text.to_string()),
            ("--prompt-loss-weight", weight(self), weight(now)),
            ("--skip-bad", self.skip_bad.to_string(), now.skip_bad.to_string()),
            ("--chat-template", template(self), template(now)),
            ("--validation", self.validation.clone(), now.validation.clone()),
            ("records in the file", self.records.to_string(), now.records.to_string()),
        ]
        .into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(name, was, is)| format!("{name} {was}, not {is}"))
        .collect()
    }
}
