//! `checkpoints/run.json`: what a run was given that no checkpoint says. What is not given when it
//! goes on is as it was.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::options::{Data, RunOptions};
use crate::error::{Error, Result};
use crate::format::staged::Staged;
use crate::identity::check_format;
use crate::train::data::TrainLength;

/// What is written and read.
const FORMAT: &str = "epiphyte.run.2";

/// What decides examples and length of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Given {
    format: String,
    data: PathBuf,
    text: bool,
    prompt_loss_weight: Option<f32>,
    skip_bad: bool,
    #[serde(default)]
    chat_template: Option<PathBuf>,
    /// As [`super::ValidationData`] displays.
    validation: String,
    patience: Option<u32>,
    steps: Option<u64>,
    epochs: Option<u64>,
    /// Of the file.
    records: usize,
}

impl Given {
    /// Of a run with `data`.
    pub(super) fn of(options: &RunOptions, data: &Data) -> Self {
        let (steps, epochs) = match options.train.duration {
            TrainLength::Auto => (None, None),
            TrainLength::Steps(steps) => (Some(steps), None),
            TrainLength::Epochs(epochs) => (None, Some(epochs)),
        };
        Self {
            format: FORMAT.into(),
            data: options.data.clone(),
            text: options.text,
            prompt_loss_weight: options.prompt_loss_weight,
            skip_bad: options.skip_bad,
            chat_template: options.chat_template.clone(),
            validation: data.validated.to_string(),
            patience: data.patience,
            steps,
            epochs,
            records: data.report.records,
        }
    }

    /// `None` where there is none that can be read.
    ///
    /// Errors: [`Error::FormatVersion`].
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let json = std::fs::read(path).ok();
        let json: Option<Value> = json.and_then(|json| serde_json::from_slice(&json).ok());
        let Some(json) = json else { return Ok(None) };
        json["format"].as_str().map_or(Ok(()), |format| check_format(path, format, FORMAT))?;
        Ok(serde_json::from_value(json).ok())
    }

    /// Errors: [`Error::Io`].
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::io(path, e.into()))?;
        Staged::write(path, &json)?.commit()
    }

    /// Takes over what `options` leave open.
    ///
    /// Errors: [`Error::InvalidArgument`] when the file to validate on is gone.
    pub(super) fn fill(&self, options: &mut RunOptions) -> Result<()> {
        if options.validation.is_none() {
            let invalid = |reason| Error::InvalidArgument {
                name: "validation",
                reason: format!("{}: {reason}", self.validation),
            };
            options.validation = Some(self.validation.parse().map_err(invalid)?);
        }
        options.patience = options.patience.or(self.patience);
        if options.train.duration == TrainLength::Auto {
            options.train.duration = match (self.steps, self.epochs) {
                (Some(steps), _) => TrainLength::Steps(steps),
                (None, Some(epochs)) => TrainLength::Epochs(epochs),
                (None, None) => TrainLength::Auto,
            };
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
