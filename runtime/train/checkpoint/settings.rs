//! The settings of a checkpoint beside those of a run, key by key, whatever version wrote them.

use serde_json::{Map, Value};

use crate::train::options::TrainOptions;

/// May change from run to run: how long the run is.
const FREE: &str = "duration";
/// What the command line calls a setting where that is not its name.
const OPTIONS: [(&str, &str); 10] = [
    ("lora_alpha", "--alpha"),
    ("use_rslora", "--rslora"),
    ("target_modules", "--targets"),
    ("learning_rate", "--lr"),
    ("lora_plus_ratio", "--lora-plus"),
    ("decay", "--schedule"),
    ("micro_batch", "--rows"),
    ("batch_size", "--batch"),
    ("gradient_accumulation_steps", "--accumulate"),
    ("checkpoint_every", "--recompute"),
];

/// Each setting that is not as it was in `made_with`, a JSON object, with both values. Empty where
/// all are.
pub(super) fn differences(made_with: &str, options: &TrainOptions) -> Vec<String> {
    let parse = |json: &str| serde_json::from_str::<Map<String, Value>>(json).unwrap_or_default();
    // Both as text first, so that numbers are rounded alike.
    let (was, is) = (parse(made_with), parse(&serde_json::to_string(options).unwrap_or_default()));
    let gone = was.keys().filter(|key| !is.contains_key(*key));
    let differs = |key: &&String| *key != FREE && was.get(*key) != is.get(*key);
    let line =
        |key: &String| format!("{} {}, not {}", name(key), show(was.get(key)), show(is.get(key)));
    is.keys().chain(gone).filter(differs).map(line).collect()
}

fn name(key: &str) -> String {
    match OPTIONS.iter().find(|(setting, _)| *setting == key) {
        Some((_, option)) => format!("`{key}` ({option})"),
        None => format!("`{key}`"),
    }
}

fn show(value: Option<&Value>) -> String {
    match value {
        None => "unknown".into(),
        Some(Value::Null) => "none".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(values)) => {
            values.iter().map(|value| show(Some(value))).collect::<Vec<_>>().join(",")
        }
        Some(Value::Object(fields)) => fields
            .iter()
            .map(|(key, value)| format!("{key} {}", show(Some(value))))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    }
}
