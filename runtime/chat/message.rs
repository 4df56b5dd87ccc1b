//! Who says what, in the shapes in which chats are written down.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Older names of the key that templates know as the first; as in transformers.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Keys of a message that say how much to learn from it. No template sees them.
pub(crate) const LOSS_KEYS: [&str; 3] = ["weight", "train", "training"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`; the template decides what else it takes.
    pub role: String,
    /// What is said; `None` for a message that only calls tools.
    pub content: Option<Content>,
    /// What else a template may use: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    /// Beside these, for training: `weight` (0 or more) or `train` (true or false) say what the
    /// loss of an answer counts.
    pub extra: Map<String, Value>,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// One text.
    Text(String),
    /// Texts, as `OpenAI`'s content parts. A template that does not know them gets them as lines of
    /// one text.
    #[serde(serialize_with = "parts")]
    Parts(Vec<String>),
}

impl Content {
    /// All of it as one text: parts are lines.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.join("\n"),
        }
    }
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(content.into())), extra: Map::new() }
    }

    /// What is said as one text, empty if nothing is.
    pub fn text(&self) -> String {
        self.content.as_ref().map(Content::text).unwrap_or_default()
    }

    /// What the loss of this answer counts by `weight`, `train` and `training`; `None` without
    /// these.
    ///
    /// Errors: the key that is no such number or truth.
    pub fn loss_weight(&self) -> Result<Option<f32>, String> {
        loss_weight(&self.extra)
    }

    /// What a template sees: as transformers does, without keys that are null, and with reasoning
    /// under the names that templates know. Content parts are one text unless the template knows
    /// `parts`.
    pub(super) fn shown(&self, parts: bool) -> Map<String, Value> {
        let mut shown = Map::from(self.clone());
        if let (Some(content @ Content::Parts(_)), false) = (&self.content, parts) {
            shown.insert("content".into(), content.text().into());
        }
        shown.retain(|key, value| !value.is_null() && !LOSS_KEYS.contains(&key.as_str()));
        if let Some(reasoning) = REASONING.iter().find_map(|key| shown.get(*key)).cloned() {
            let rest = std::mem::take(&mut shown);
            shown.insert(REASONING[1].into(), reasoning.clone());
            shown.extend(rest);
            shown.insert(REASONING[0].into(), reasoning);
        }
        shown
    }
}

/// What the keys `weight`, `train` and `training` of `map` say together.
pub(crate) fn loss_weight(map: &Map<String, Value>) -> Result<Option<f32>, String> {
    let mut all = None;
    for key in LOSS_KEYS {
        let weight = match map.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(learnt)) if key != "weight" => f32::from(u8::from(*learnt)),
            Some(value) => match value.as_f64() {
                Some(weight)
                    if (0.0..=f64::from(f32::MAX)).contains(&weight) && key == "weight" =>
                {
                    weight as f32
                }
                _ if key == "weight" => return Err("`weight` is not a number of 0 or more".into()),
                _ => return Err(format!("`{key}` is neither true nor false")),
            },
        };
        all = Some(all.unwrap_or(1.0) * weight);
    }
    Ok(all)
}

/// As `OpenAI` writes them.
fn parts<S: serde::Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer
        .collect_seq(texts.iter().map(|text| serde_json::json!({ "type": "text", "text": text })))
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        let mut map = Self::new();
        map.insert("role".into(), message.role.into());
        let content =
            message.content.map(|content| serde_json::to_value(content).unwrap_or_default());
        map.insert("content".into(), content.unwrap_or_default());
        map.extend(message.extra);
        map
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = String;

    /// The error names the key and what it may be, and quotes no text.
    fn try_from(mut map: Map<String, Value>) -> Result<Self, String> {
        let role = match map.shift_remove("role") {
            Some(Value::String(role)) => role,
            Some(_) => return Err("`role` is not a text".into()),
            None => return Err("`role` is missing".into()),
        };
        let content = map.shift_remove("content").map_or(Ok(None), content)?;
        Ok(Self { role, content, extra: map })
    }
}

fn content(value: Value) -> Result<Option<Content>, String> {
    Ok(match value {
        Value::Null => None,
        Value::String(text) => Some(Content::Text(text)),
        Value::Array(parts) => {
            Some(Content::Parts(parts.into_iter().map(part).collect::<Result<_, _>>()?))
        }
        _ => {
            return Err(
                "`content` is neither a text, nor null, nor a list of parts of type `text`".into(),
            );
        }
    })
}

/// Types of parts that are named in an error; any other word might be the user's.
const NO_TEXT: [&str; 10] = [
    "image_url",
    "image",
    "input_image",
    "input_audio",
    "audio",
    "audio_url",
    "video",
    "video_url",
    "file",
    "refusal",
];

fn part(part: Value) -> Result<String, String> {
    let Value::Object(mut part) = part else {
        return match part {
            Value::String(text) => Ok(text),
            _ => Err("a part of `content` is neither an object nor a text".into()),
        };
    };
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    if !["text", "input_text", "output_text"].contains(&kind) {
        return Err(match NO_TEXT.iter().find(|known| **known == kind) {
            Some(kind) => format!("a part of `content` has type `{kind}`; only text is read"),
            None => "a part of `content` has no `type`, or not `text`; only text is read".into(),
        });
    }
    match part.shift_remove("text") {
        Some(Value::String(text)) => Ok(text),
        _ => Err("a part of `content` has no `text`".into()),
    }
}
