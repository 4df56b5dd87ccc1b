//! What one line of a JSONL file may say.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::shapes;
use crate::chat::Message;

/// An example as people write it.
///
/// Conversations are read from `messages` (`OpenAI`'s, content parts too), `conversations`
/// (`ShareGPT`: `from`, `value`), `instruction`, `input` and `output` (Alpaca), and `prompt` and
/// `completion` that are lists of messages (TRL). Keys of a line that are none of an example's are
/// ignored, unless they would change what is learnt: those are refused.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Record {
    /// A conversation, rendered by the model's own template: loss on the assistant's turns.
    Chat {
        /// From the first on.
        messages: Vec<Message>,
        /// Other variables for the template: `tools`, `documents`, and all of
        /// `chat_template_kwargs`.
        context: Map<String, Value>,
    },
    /// Loss on the completion, and a little on the prompt.
    Pair {
        /// Taken as it is, without a template.
        prompt: String,
        /// What should follow, exactly: with its leading space, if there is one.
        completion: String,
    },
    /// Fill in the middle (Bavarian et al. 2022, arXiv:2207.14255): loss on the middle, and a
    /// little on the rest.
    FillInTheMiddle {
        /// Before the hole.
        prefix: String,
        /// What fills it.
        middle: String,
        /// After it.
        suffix: String,
    },
    /// A document for continued pre-training: loss on every token.
    Text {
        /// The whole document.
        text: String,
    },
}

/// A record, and what its loss counts among others.
pub(super) struct Row {
    pub(super) record: Record,
    pub(super) weight: f32,
}

impl Row {
    /// Reads a line. The error says what is wrong without quoting it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line)
            .map_err(|e| format!("not JSON from column {} on", e.column()))?;
        shapes::row(value)
    }
}

impl TryFrom<Value> for Record {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match shapes::row(value)? {
            Row { record, weight: 1.0 } => Ok(record),
            _ => Err("`weight` of a whole record is read from files only".into()),
        }
    }
}
