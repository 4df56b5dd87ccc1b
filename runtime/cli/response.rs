//! `--schema`, `--regex` and `--grammar`: what an answer must look like.

use std::path::{Path, PathBuf};

use clap::Args;

use epiphyte::ResponseFormat;
use epiphyte::error::{Error, Result};

/// What an answer must look like.
#[derive(Args)]
#[group(multiple = false)]
pub(super) struct ResponseArgs {
    /// The answer is JSON of the schema in this file
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// The answer matches this regular expression, whole
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    regex: Option<String>,
    /// The answer is a text of the Lark grammar in this file
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl ResponseArgs {
    /// The format, which compiles.
    ///
    /// Errors: [`Error::InvalidArgument`] and [`Error::InvalidFile`], before a model is loaded in
    /// vain; [`Error::Io`].
    pub(super) fn read(&self) -> Result<Option<ResponseFormat>> {
        let (format, path) = match self {
            Self { schema: Some(path), .. } => {
                (ResponseFormat::json_schema(&text(path)?), Some(path))
            }
            Self { grammar: Some(path), .. } => (Ok(ResponseFormat::Lark(text(path)?)), Some(path)),
            Self { regex: Some(regex), .. } => (Ok(ResponseFormat::Regex(regex.clone())), None),
            _ => return Ok(None),
        };
        let checked = format.and_then(|format| format.check().map(|()| format));
        checked.map(Some).map_err(|error| match (error, path) {
            (Error::InvalidArgument { reason, .. }, Some(path)) => {
                Error::InvalidFile { path: path.clone(), reason }
            }
            (Error::InvalidArgument { reason, .. }, None) => {
                Error::InvalidArgument { name: "regex", reason }
            }
            (error, _) => error,
        })
    }
}

/// A file of UTF-8.
pub(super) fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let invalid = |reason: &str| Error::InvalidFile { path: path.into(), reason: reason.into() };
    String::from_utf8(bytes).map_err(|_| invalid("not UTF-8; convert it"))
}
