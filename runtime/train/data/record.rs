//! What one line of a JSONL file may say.

use serde::{Deserialize, Serialize};

use crate::chat::Message;

/// An example as people write it. Other keys of the line are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// A conversation, rendered by the model's own template: loss on the assistant's turns.
    Chat {
        /// From the first on.
        messages: Vec<Message>,
    },
    /// Loss on the completion, and a little on the prompt.
    Pair {
        /// Taken as it is, without a template.
        prompt: String,
        /// What should follow, exactly: with its leading space, if there is one.
        completion: String,
    },
    /// Fill in the middle (Bavarian et al. 2022, arXiv:2207.14255): loss on the middle, and a little on the rest.
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

impl Record {
    /// Reads a line. The error says what is wrong without quoting it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| format!("not JSON from column {} on", e.column()))?;
        let known = "`messages`, `prompt` and `completion`, `prefix`, `middle` and `suffix`, or `text`";
        serde_json::from_value(value).map_err(|_| format!("not an object with {known} as texts"))
    }
}
