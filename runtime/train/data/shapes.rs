//! The shapes in which people write examples down, made one.

use serde_json::{Map, Value};

use super::record::{Record, Row};
use crate::chat::{Message, loss_weight};

const SHAPES: &str = "`messages`, `prompt` and `completion`, `prefix`, `middle` and `suffix`, \
    `text`, `conversations` \
                      (ShareGPT), or `instruction` and `output` (Alpaca)";
/// Who speaks in `ShareGPT`'s files, and the role that templates know.
const SPEAKERS: [(&str, &str); 11] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
];
/// What other trainers learn otherwise from, and what to give instead.
const REFUSED: [(&str, &str); 16] = [
    ("chosen", PREFERENCE),
    ("rejected", PREFERENCE),
    ("completions", PREFERENCE),
    ("functions", "is the old name of `tools`; give these"),
    ("function_call", "is the old name of `tool_calls`; give these in the message"),
    ("images", TEXT_ONLY),
    ("image", TEXT_ONLY),
    ("videos", TEXT_ONLY),
    ("audio", TEXT_ONLY),
    ("audios", TEXT_ONLY),
    ("loss_mask", MASK),
    ("completion_mask", MASK),
    ("assistant_masks", MASK),
    ("labels", MASK),
    ("train_on_inputs", MASK),
    ("train_on_input", MASK),
];
const PREFERENCE: &str =
    "is for learning preferences, which is not supported; give the answer to learn as `completion`";
const TEXT_ONLY: &str = "is not supported: only text is learnt";
const MASK: &str = "is not supported; give `weight` or `train`, in a message or beside it";
/// What only a chat can make use of.
const OF_CHATS: [&str; 6] =
    ["tools", "documents", "chat_template_kwargs", "system", "system_prompt", "history"];

/// Reads a record. The error names the key and quotes no text.
pub(super) fn row(value: Value) -> Result<Row, String> {
    let Value::Object(mut map) = value else { return Err(format!("not an object; give {SHAPES}")) };
    let has =
        |keys: &[&str]| keys.iter().any(|key| map.get(*key).is_some_and(|value| !value.is_null()));
    if let Some((key, reason)) =
        REFUSED.iter().find(|(key, _)| map.get(*key).is_some_and(says_something))
    {
        return Err(format!("`{key}` {reason}"));
    }
    if map.get("label").is_some_and(Value::is_boolean) && has(&["completion"]) {
        return Err(format!("`label` {PREFERENCE}"));
    }
    let weight = loss_weight(&map)?.unwrap_or(1.0);
    let is_list = |key: &str| map.get(key).is_some_and(Value::is_array);
    let record = if has(&["messages"]) {
        chat("messages", &mut map)?
    } else if has(&["conversations"]) {
        chat("conversations", &mut map)?
    } else if is_list("prompt") && is_list("completion") {
        prompted(&mut map)?
    } else if has(&["prompt", "completion"]) {
        let (prompt, completion) =
            (text(&mut map, "prompt", "completion")?, text(&mut map, "completion", "prompt")?);
        Record::Pair { prompt, completion }
    } else if has(&["prefix", "middle", "suffix"]) {
        let mut part = |key, beside| text(&mut map, key, beside);
        Record::FillInTheMiddle {
            prefix: part("prefix", "middle` and `suffix")?,
            middle: part("middle", "prefix` and `suffix")?,
            suffix: part("suffix", "prefix` and `middle")?,
        }
    } else if has(&["instruction"]) {
        alpaca(&mut map)?
    } else if has(&["text"]) {
        Record::Text { text: text(&mut map, "text", "")? }
    } else {
        return Err(format!("no example of a shape that is read{}; give {SHAPES}", keys_of(&map)));
    };
    let of_chats = OF_CHATS.iter().find(|key| map.get(**key).is_some_and(says_something));
    if let (Some(key), false) = (of_chats, matches!(record, Record::Chat { .. })) {
        return Err(format!(
            "`{key}` is for chats, and this is none; give `messages`, or leave it out"
        ));
    }
    Ok(Row { record, weight })
}

/// Whether a key with this value is a column that is empty here, or one that is switched off.
fn says_something(value: &Value) -> bool {
    !is_empty(value) && *value != Value::Bool(false)
}

/// Whether a key with this value might as well not be there.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The first keys, where they look like names.
fn keys_of(map: &Map<String, Value>) -> String {
    let keys = map
        .keys()
        .filter(|key| is_name(key))
        .take(4)
        .map(|key| format!("`{key}`"))
        .collect::<Vec<_>>();
    if keys.is_empty() { String::new() } else { format!(" in {}", keys.join(", ")) }
}

/// Whether a key is a name and no text of the user.
pub(super) fn is_name(key: &str) -> bool {
    (1..=40).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

fn text(map: &mut Map<String, Value>, key: &str, beside: &str) -> Result<String, String> {
    match map.shift_remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) => Err(format!("`{key}` is null, not a text")),
        Some(_) => Err(format!("`{key}` is not a text")),
        None => Err(format!("`{key}` is missing beside `{beside}`")),
    }
}

/// A key that may be missing or null.
fn optional_text(map: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text(map, key, "").map(|text| Some(text).filter(|text| !text.is_empty())),
    }
}

fn list(map: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    match map.shift_remove(key) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(format!("`{key}` is not a list")),
    }
}

fn chat(key: &str, map: &mut Map<String, Value>) -> Result<Record, String> {
    let messages = list(map, key)?.into_iter().enumerate();
    let messages = messages
        .map(|(i, value)| message(value).map_err(|reason| format!("message {}: {reason}", i + 1)));
    with_context(messages.collect::<Result<_, _>>()?, map)
}

/// A chat whose completion alone is learnt.
fn prompted(map: &mut Map<String, Value>) -> Result<Record, String> {
    let mut messages = list(map, "prompt")?;
    for asked in messages.iter_mut().filter_map(Value::as_object_mut) {
        asked.insert("train".into(), false.into());
    }
    messages.extend(list(map, "completion")?);
    map.insert("messages".into(), messages.into());
    chat("messages", map)
}

/// What is asked, with its input on lines of its own, and the answer; after earlier ones.
fn alpaca(map: &mut Map<String, Value>) -> Result<Record, String> {
    let mut messages = Vec::new();
    if let Some(Value::Array(history)) = map.shift_remove("history") {
        for turn in history {
            let Ok([asked, answered]) = serde_json::from_value::<[String; 2]>(turn) else {
                return Err("`history` is not a list of pairs of texts".into());
            };
            messages.extend([Message::new("user", asked), Message::new("assistant", answered)]);
        }
    }
    let instruction = text(map, "instruction", "output")?;
    let input = optional_text(map, "input")?;
    messages.push(Message::new(
        "user",
        [instruction].into_iter().chain(input).collect::<Vec<_>>().join("\n"),
    ));
    messages.push(Message::new("assistant", text(map, "output", "instruction")?));
    with_context(messages, map)
}

fn message(value: Value) -> Result<Message, String> {
    let Value::Object(mut map) = value else {
        return Err("not an object; give `role` and `content`, or `from` and `value`".into());
    };
    if map.contains_key("from") && !map.contains_key("role") {
        let from = text(&mut map, "from", "value")?;
        let role = SPEAKERS.iter().find(|(name, _)| *name == from).map(|(_, role)| *role);
        let role = role.ok_or(
            "`from` is none of `human`, `gpt`, `system` and `tool`; give these, or \
                OpenAI's messages",
        )?;
        let said = map.shift_remove("value").ok_or("`value` is missing beside `from`")?;
        map.insert("role".into(), role.into());
        map.insert("content".into(), said);
    } else if !map.contains_key("role") {
        return Err("`role` is missing; give `role` and `content`, or `from` and `value`".into());
    }
    Message::try_from(map)
}

/// A chat with what else its record says to the template.
fn with_context(
    mut messages: Vec<Message>,
    map: &mut Map<String, Value>,
) -> Result<Record, String> {
    for key in ["system", "system_prompt"] {
        let Some(system) = optional_text(map, key)? else { continue };
        if messages.first().is_some_and(|first| first.role == "system") {
            return Err(format!("`{key}` beside a message of role `system`; give one of them"));
        }
        messages.insert(0, Message::new("system", system));
    }
    if map.get("history").is_some_and(says_something) {
        return Err("`history` beside messages; put it there".into());
    }
    let mut context = Map::new();
    for key in ["tools", "documents"] {
        let value = match map.shift_remove(key) {
            // As columns of a table hold it.
            Some(Value::String(text)) if text.is_empty() => continue,
            Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            Some(value) => value,
            None => continue,
        };
        match value {
            Value::Null => {}
            Value::Array(_) => drop(context.insert(key.into(), value)),
            _ => return Err(format!("`{key}` is not a list")),
        }
    }
    match map.shift_remove("chat_template_kwargs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(more)) => {
            if let Some(key) =
                ["messages", "add_generation_prompt"].iter().find(|key| more.contains_key(**key))
            {
                return Err(format!(
                    "`{key}` in `chat_template_kwargs` is set by the trainer; leave it out"
                ));
            }
            context.extend(more);
        }
        Some(_) => return Err("`chat_template_kwargs` is not an object".into()),
    }
    Ok(Record::Chat { messages, context })
}
