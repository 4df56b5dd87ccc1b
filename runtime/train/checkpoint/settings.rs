//! The settings of a checkpoint beside those of a run, key by key, whatever version wrote them.
//!
//! A setting that changes nothing is left out, and one that is not there changed nothing: so a
//! setting that comes later, with its neutral value here, refuses no checkpoint.

use serde_json::{Map, Value, json};

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

/// The settings that may be left out, as what: as runs were before there was the setting.
fn neutral() -> [(&'static str, Value); 6] {
    [
        ("use_rslora", json!(false)),
        ("lora_plus_ratio", json!(1.0)),
        ("weight_decay", json!(0.0)),
        ("freeze", json!(null)),
        ("proximal_mu", json!(0.0)),
        ("gradient_accumulation_steps", json!(1)),
    ]
}

/// As a checkpoint holds them: a JSON object, sorted by key.
pub(super) fn text(options: &TrainOptions) -> String {
    let (mut settings, neutral) = (parse(&json_of(options)), neutral());
    settings.retain(|key, value| !neutral.iter().any(|(name, of)| name == key && of == value));
    settings.sort_keys();
    Value::Object(settings).to_string()
}

/// Each setting that is not as it was in `made_with`, a JSON object, with both values. Empty where
/// all are.
pub(super) fn differences(made_with: &str, options: &TrainOptions) -> Vec<String> {
    // Both as text first, so that numbers are rounded alike.
    let (was, is) = (parse(made_with), parse(&json_of(options)));
    let gone = was.keys().filter(|key| !is.contains_key(*key));
    let differs = |key: &&String| *key != FREE && was.get(*key) != is.get(*key);
    let line =
        |key: &String| format!("{} {}, not {}", name(key), show(was.get(key)), show(is.get(key)));
    is.keys().chain(gone).filter(differs).map(line).collect()
}

fn json_of(options: &TrainOptions) -> String {
    serde_json::to_string(options).unwrap_or_default()
}

/// A JSON object, with what it leaves out.
fn parse(json: &str) -> Map<String, Value> {
    let mut settings: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    for (key, value) in neutral() {
        settings.entry(key).or_insert(value);
    }
    settings
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
