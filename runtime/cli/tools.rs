//! `--tools`: functions that the model may call, and the calls it makes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::output;
use super::response::text;
use epiphyte::ResponseFormat;
use epiphyte::chat::{ChatTemplate, ToolAnswer, ToolFormat};
use epiphyte::error::{Error, Result};

/// Functions that the model may call.
#[derive(Args)]
pub(super) struct ToolArgs {
    /// Offer the model the functions in this JSON file, a list as OpenAI and transformers have it,
    /// and print those it calls, one JSON object a line
    #[arg(long, value_name = "FILE", requires = "chat")]
    tools: Option<PathBuf>,
    /// Whether it has to call one, with arguments of its schema
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, requires = "tools")]
    tool_choice: ToolChoice,
}

/// As `OpenAI`'s `tool_choice`.
#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
enum ToolChoice {
    /// The model decides
    #[default]
    Auto,
    /// The answer is a call
    Required,
}

/// What the file holds.
pub(super) struct Tools {
    functions: Vec<Value>,
    is_required: bool,
}

/// How the model of a template calls them.
pub(super) struct Calling<'a> {
    format: &'static ToolFormat,
    tools: &'a Tools,
}

impl ToolArgs {
    /// The functions, if there is a file.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for what is no list of JSON objects.
    pub(super) fn read(&self) -> Result<Option<Tools>> {
        let Some(path) = &self.tools else { return Ok(None) };
        let invalid = |reason: String| Error::InvalidFile { path: path.clone(), reason };
        let functions: Vec<Map<String, Value>> = serde_json::from_str(&text(path)?)
            .map_err(|e| invalid(format!("no list of functions: {e}")))?;
        let functions = functions.into_iter().map(Value::Object).collect();
        Ok(Some(Tools { functions, is_required: self.tool_choice == ToolChoice::Required }))
    }
}

impl Tools {
    /// What the template is told.
    pub(super) fn context(&self) -> Map<String, Value> {
        Map::from_iter([("tools".to_string(), Value::from(self.functions.clone()))])
    }

    /// Errors: [`Error::Unsupported`] where the template knows no tools, or calls that are not read.
    pub(super) fn calling(&self, template: &ChatTemplate) -> Result<Calling<'_>> {
        let unknown = || Error::Unsupported {
            what: "`--tools`: this model's chat template has no tool calls that are read".into(),
            hint: "take a model that calls tools, or another --chat-template".into(),
        };
        Ok(Calling { format: template.tool_format().ok_or_else(unknown)?, tools: self })
    }
}

impl Calling<'_> {
    /// What the answer is held to.
    ///
    /// Errors: as [`ToolFormat::required`]; for another format beside it.
    pub(super) fn held(&self, other: Option<ResponseFormat>) -> Result<Option<ResponseFormat>> {
        match other {
            Some(_) if self.tools.is_required => Err(Error::InvalidArgument {
                name: "tool-choice",
                reason: "`required` is a format of its own; leave the other one out".into(),
            }),
            None if self.tools.is_required => self.format.required(&self.tools.functions).map(Some),
            other => Ok(other),
        }
    }

    /// The calls of an answer.
    ///
    /// Errors: as [`ToolFormat::parse`].
    pub(super) fn parse(&self, answer: &str) -> Result<ToolAnswer> {
        self.format.parse(answer)
    }
}

/// Prints what is said, and then each call.
pub(super) fn print(answer: &ToolAnswer) -> Result<()> {
    if !answer.content.is_empty() || answer.calls.is_empty() {
        output::line(&answer.content)?;
    }
    answer.calls.iter().try_for_each(output::json)
}
