//! What a run is given.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::adapter::Adapter;
use crate::engine::base::Base;
use crate::error::{Error, Result};
use crate::train::data::{
    DataOptions, DataReport, Dataset, Encoder, MEMORY, Record, TrainLength, Validation,
};
use crate::train::{TrainOptions, recipe};

/// What a run learns from, how, and what it leaves. [`RunOptions::new`] has the defaults.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Examples as JSONL; `-` reads standard input.
    pub data: PathBuf,
    /// Examples in memory, in place of a file: `data` is then only what errors call them.
    pub records: Option<Vec<Record>>,
    /// The data is one document instead, plain UTF-8.
    pub text: bool,
    /// Weight of a prompt's tokens in the loss, where a completion's weigh 1; `None`: by the number
    /// of records.
    pub prompt_loss_weight: Option<f32>,
    /// Lines that can't be used are passed over and counted.
    pub skip_bad: bool,
    /// What to validate on; `None`: as a run was given that goes on, else a tenth of the data where
    /// there are 500 records and the length of the run is left open.
    pub validation: Option<ValidationData>,
    /// The file of the template that the engine was opened with, where that is not the model's own:
    /// to name it when a run that goes on was given another.
    pub chat_template: Option<PathBuf>,
    /// The settings. A duration that is left open is that of the run that goes on.
    pub train: TrainOptions,
    /// What to start from instead of fresh factors. Where its `base_fingerprint` is `None`, on
    /// whatever base it fits.
    pub init: Option<Adapter>,
    /// Steps between two checkpoints, from 1 on.
    pub checkpoint_every: u64,
    /// Checkpoints to keep; `None`: 2, and none once the run is over.
    pub keep: Option<u64>,
    /// Steps between two validations; `None`: a tenth of the run.
    pub evaluate_every: Option<u64>,
    /// Validations without improvement after which to stop, and leave the best adapter instead of
    /// the last; `None`: as before, else 3 where nobody asked for the validation.
    pub patience: Option<u32>,
    /// Where each step is logged; `None`: in the folder.
    pub log: Option<PathBuf>,
}

/// What to validate on.
#[derive(Clone, Debug, PartialEq)]
pub enum ValidationData {
    /// Nothing.
    None,
    /// Some of the data, which is then not learnt from.
    Part(Validation),
    /// The examples of another file.
    File(PathBuf),
}

impl fmt::Display for ValidationData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Part(Validation::Fraction(part)) => write!(f, "{part}"),
            Self::Part(Validation::Count(count)) => write!(f, "{count}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for ValidationData {
    type Err = String;

    /// A number that is no file's name is a part or a count.
    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        if path.exists() {
            return Ok(Self::File(path));
        }
        if text == "none" {
            return Ok(Self::None);
        }
        if let Ok(count) = text.parse::<usize>() {
            return Ok(Self::Part(Validation::Count(count)));
        }
        match text.parse::<f64>() {
            Ok(part) if part > 0.0 && part < 1.0 => Ok(Self::Part(Validation::Fraction(part))),
            Ok(_) => Err("a part is between 0 and 1".into()),
            Err(_) => {
                Err("there is no such file; give one, a part such as 0.1, or a number of records"
                    .into())
            }
        }
    }
}

impl RunOptions {
    /// A run over the examples of a JSONL file.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            records: None,
            text: false,
            prompt_loss_weight: None,
            skip_bad: false,
            validation: None,
            chat_template: None,
            train: TrainOptions::default(),
            init: None,
            checkpoint_every: 50,
            keep: None,
            evaluate_every: None,
            patience: None,
            log: None,
        }
    }

    /// A run over examples in memory. One that goes on has to be given the same again.
    pub fn for_records(records: Vec<Record>) -> Self {
        Self { records: Some(records), ..Self::new(MEMORY) }
    }

    /// A run over one document, plain UTF-8.
    pub fn for_text(data: impl Into<PathBuf>) -> Self {
        let train = TrainOptions { duration: TrainLength::Auto, ..TrainOptions::for_text() };
        Self { text: true, train, ..Self::new(data) }
    }

    /// How examples are made for it.
    pub fn data_options(&self) -> DataOptions {
        let (prompt_loss_weight, skip_bad) = (self.prompt_loss_weight, self.skip_bad);
        DataOptions { prompt_loss_weight, skip_bad, ..self.train.data_options() }
    }

    /// That settings make sense and the data can be opened, for a model of `context` positions:
    /// before one is loaded in vain.
    ///
    /// Errors: as [`TrainOptions::check`], [`TrainOptions::targets`] and [`DataOptions::check`];
    /// [`Error::Io`]; [`Error::InvalidArgument`].
    pub fn check(&self, context: usize) -> Result<()> {
        for (name, count) in [
            ("checkpoint-every", Some(self.checkpoint_every)),
            ("keep", self.keep),
            ("evaluate-every", self.evaluate_every),
            ("patience", self.patience.map(u64::from)),
        ] {
            if count == Some(0) {
                return Err(Error::InvalidArgument { name, reason: "0; 1 or more".into() });
            }
        }
        self.train.check()?;
        self.train.targets()?;
        self.data_options().check(context)?;
        // A pipe can be opened once.
        let piped =
            |path: &Path| path == Path::new("-") || path.metadata().is_ok_and(|of| !of.is_file());
        if self.records.is_none() && !piped(&self.data) {
            File::open(&self.data).map_err(|e| Error::io(&self.data, e))?;
        }
        Ok(())
    }

    /// The length, of a text's also where it is left open.
    fn duration(&self) -> TrainLength {
        match self.train.duration {
            TrainLength::Auto if self.text => TrainOptions::for_text().duration,
            duration => duration,
        }
    }

    /// The settings of the trainer.
    pub(super) fn trained(&self) -> TrainOptions {
        TrainOptions { duration: self.duration(), ..self.train.clone() }
    }
}

/// The examples of a run.
pub(super) struct Data {
    pub(super) train: Dataset,
    pub(super) validation: Option<Dataset>,
    /// What became of the file.
    pub(super) report: DataReport,
    /// What is validated on.
    pub(super) validated: ValidationData,
    pub(super) patience: Option<u32>,
}

impl Data {
    /// Reads the data to train on, and that to validate on.
    ///
    /// Errors: as [`Dataset::read_jsonl`], [`Dataset::read_text`] and [`Dataset::split`];
    /// [`Error::InvalidArgument`] for settings of a validation that there is none of.
    pub(super) fn read(options: &RunOptions, base: &Base) -> Result<Self> {
        let context = base.config.max_position_embeddings;
        let data_options = options.data_options();
        let encoder = Encoder::new(&base.tokenizer, &base.chat_template, context, data_options)?;
        let read = |path| {
            if options.text {
                Dataset::read_text(path, &encoder)
            } else {
                Dataset::read_jsonl(path, &encoder)
            }
        };
        let data = match &options.records {
            Some(records) => Dataset::of_records(records, &encoder),
            None => read(&options.data),
        }?;
        let report = data.report.clone();
        let by_recipe = || match options.duration() {
            TrainLength::Auto => recipe::validation(report.records),
            _ => None,
        };
        let validated = options
            .validation
            .clone()
            .or_else(|| by_recipe().map(ValidationData::Part))
            .unwrap_or(ValidationData::None);
        let (train, validation) = match &validated {
            ValidationData::None => (data, None),
            ValidationData::Part(part) => {
                let (train, validation) = data.split(*part, options.train.seed)?;
                (train, Some(validation))
            }
            ValidationData::File(path) => (data, Some(read(path)?)),
        };
        let validation = match data_options.prompt_loss_weight {
            Some(1.0) => validation,
            _ => validation.map(Dataset::answers_only),
        };
        let nobody_asked = options.validation.is_none() && validation.is_some();
        let patience = options.patience.or(nobody_asked.then_some(recipe::PATIENCE));
        if validation.is_none() && (options.patience.is_some() || options.evaluate_every.is_some())
        {
            let name = if options.patience.is_some() { "patience" } else { "evaluate-every" };
            let reason =
                "there is nothing to validate on; add `--validation 0.1`, or a file".into();
            return Err(Error::InvalidArgument { name, reason });
        }
        Ok(Self { train, validation, report, validated, patience })
    }
}
