//! `LoraConfig`: the keys of PEFT's `adapter_config.json` that decide what an adapter computes.
//!
//! Every key is honoured, listed as without effect, or refused with the reason: none is passed
//! over. Source: `LoraConfig` of PEFT 0.21.

use serde_json::{Map, Number, Value, json};

use super::report::Item;
use crate::error::{Error, Result};
use crate::format::twice::Twice;

/// Bounds on a config that is not trusted; PEFT's own are far below.
pub(crate) const MAX_CONFIG_BYTES: usize = 4 << 20;
const MAX_RANK: u64 = 1 << 20;
const MAX_PATTERNS: usize = 1 << 14;
const MAX_PATTERN_BYTES: usize = 4096;
/// Letters of a key, in a report.
const MAX_SHOWN: usize = 64;

/// Keys that change nothing in what an adapter computes.
const HARMLESS: [(&str, &str); 19] = [
    ("task_type", "the task is the caller's"),
    ("inference_mode", "the caller trains or not"),
    ("revision", "the base is the one that is loaded"),
    ("auto_mapping", "names Python classes"),
    ("peft_version", "every version's keys are read alike"),
    ("runtime_config", "about PEFT's own memory"),
    ("fan_in_fan_out", "a llama's linears hold [N, K]; PEFT turns it off for them"),
    ("loftq_config", "used at initialisation only"),
    ("eva_config", "used at initialisation only"),
    ("corda_config", "used at initialisation only"),
    ("lora_ga_config", "used at initialisation only"),
    ("megatron_config", "about Megatron's layers"),
    ("megatron_core", "about Megatron's layers"),
    ("qalora_group_size", "used with use_qalora only"),
    ("velora_config", "changes the backward pass only"),
    ("modules_to_tie", "used while training only"),
    ("target_modules_to_tie", "used while training only"),
    ("lora_dropout", "used while training only"),
    ("base_model_name_or_path", "the base is the one that is loaded"),
];

/// Keys that must be off, and what they would do.
const REFUSED: [(&str, &str); 14] = [
    ("use_dora", "DoRA also rescales the base's rows; merge it into a plain LoRA first"),
    (
        "modules_to_save",
        "whole modules of the base would be replaced, and the base is frozen; train LoRA only",
    ),
    ("lora_bias", "the B factor has a bias; train without lora_bias"),
    ("target_parameters", "single parameters are targeted; use target_modules"),
    ("layer_replication", "it needs a base with repeated layers; train on the base itself"),
    (
        "alora_invocation_tokens",
        "activated LoRA switches on in the middle of a prompt; train a plain LoRA",
    ),
    (
        "invocation_string",
        "activated LoRA switches on in the middle of a prompt; train a plain LoRA",
    ),
    (
        "trainable_token_indices",
        "rows of the embedding would be replaced; target embed_tokens instead",
    ),
    ("use_qalora", "QALoRA pools its input; train a plain LoRA"),
    ("use_bdlora", "block-diagonal factors are stored in another shape; train a plain LoRA"),
    ("arrow_config", "it routes between several adapters; load them one by one"),
    ("kasa_config", "KaSA changes the base; train a plain LoRA"),
    ("monteclora_config", "it samples at random; train a plain LoRA"),
    ("ensure_weight_tying", "one LoRA would serve embedding and head; train them apart"),
];

/// Values of `init_lora_weights` that leave the base as it is.
const HARMLESS_INIT: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Which modules: names to compare with the end of a path, or one pattern for the whole path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modules {
    /// The path is one of these, or ends in `.` and one of these.
    Names(Vec<String>),
    /// A regular expression for the whole path. As `target_modules`, `all-linear` means every
    /// linear but the head.
    Pattern(String),
}

/// What PEFT's `LoraConfig` says, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the modules that [`Self::rank_pattern`] leaves alone; at least 1.
    pub r: usize,
    /// Divided by the rank, it is the scaling.
    pub lora_alpha: f64,
    /// Divide by the rank's square root instead (Kalajdzievski 2023, arXiv:2312.03732).
    pub use_rslora: bool,
    /// Pattern for the end of a path, rank: the first that matches decides.
    pub rank_pattern: Vec<(String, usize)>,
    /// Pattern for the end of a path, alpha: the first that matches decides.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The modules it sits on.
    pub target_modules: Modules,
    /// Modules to leave out of them.
    pub exclude_modules: Option<Modules>,
    /// Only these layers, unless empty. Paths that [`Self::target_modules`] names in full are not
    /// held to it.
    pub layers_to_transform: Vec<i64>,
    /// Patterns of the name before a layer's number; empty for any.
    pub layers_pattern: Vec<String>,
    /// Dropout on the way into A, in training only.
    pub lora_dropout: f64,
    /// The base's name or folder; not needed to load.
    pub base_model_name_or_path: Option<String>,
}

impl Default for LoraConfig {
    /// PEFT's defaults for a llama: rank 8, alpha 8, `q_proj` and `v_proj`.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            target_modules: Modules::Names(vec!["q_proj".into(), "v_proj".into()]),
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            lora_dropout: 0.0,
            base_model_name_or_path: None,
        }
    }
}

impl LoraConfig {
    /// Reads a config; returns what became of each key, too. When an item is refused, the config is
    /// not to be used.
    ///
    /// Errors: [`Error::InvalidAdapter`] when the text is not a JSON object of a reasonable size.
    pub fn parse(text: &[u8]) -> Result<(Self, Vec<Item>)> {
        let invalid = |reason| Error::InvalidAdapter { what: "adapter_config.json".into(), reason };
        if text.len() > MAX_CONFIG_BYTES {
            return Err(invalid(format!(
                "{} bytes; at most {MAX_CONFIG_BYTES} are read",
                text.len()
            )));
        }
        // Not serde's message, which can quote the text.
        let damaged = |e: serde_json::Error| {
            format!("not a JSON object (line {}, column {})", e.line(), e.column())
        };
        let map: Map<String, Value> =
            serde_json::from_slice(text).map_err(|e| invalid(damaged(e)))?;
        let Twice(twice) = serde_json::from_slice(text).map_err(|e| invalid(damaged(e)))?;
        let mut reader = Reader { map: &map, items: Vec::new() };
        let config = reader.config();
        if let Some(key) = twice {
            let key: String = key.chars().take(MAX_SHOWN).collect();
            reader.items.retain(|item| item.name != key);
            reader.items.push(Item::refused(key, "given twice; remove one"));
        }
        for (key, value) in &map {
            reader.judge(key, value);
        }
        Ok((config, reader.items))
    }

    /// The config as PEFT writes it, complete.
    pub fn to_json(&self) -> String {
        let modules = |modules: &Modules| match modules {
            Modules::Names(names) => json!(names),
            Modules::Pattern(pattern) => json!(pattern),
        };
        let layers = !self.layers_to_transform.is_empty();
        let ranks: Map<_, _> =
            self.rank_pattern.iter().map(|(key, r)| (key.clone(), json!(r))).collect();
        let alphas: Map<_, _> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha))).collect();
        let text = json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "exclude_modules": self.exclude_modules.as_ref().map(modules),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": (!self.layers_pattern.is_empty()).then_some(&self.layers_pattern),
            "layers_to_transform": layers.then_some(&self.layers_to_transform),
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": ranks,
            "revision": null,
            "target_modules": modules(&self.target_modules),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        });
        format!("{text:#}\n")
    }
}

/// Whole where it can be, as PEFT declares alpha an integer.
fn number(value: f64) -> Value {
    let whole = value.fract() == 0.0 && value.abs() < 1e15;
    if whole {
        json!(value as i64)
    } else {
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }
}

/// Off in Python's eyes.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

/// Reads the honoured keys, noting what became of each.
struct Reader<'a> {
    map: &'a Map<String, Value>,
    items: Vec<Item>,
}

impl Reader<'_> {
    fn config(&mut self) -> LoraConfig {
        let default = LoraConfig::default();
        let rank =
            |v: &Value| v.as_u64().filter(|r| (1..=MAX_RANK).contains(r)).map(|r| r as usize);
        let finite = |v: &Value| v.as_f64().filter(|v| v.is_finite());
        let rank_expected = "a whole number from 1 to 2^20 is needed";
        let config = LoraConfig {
            r: self.read("r", default.r, rank_expected, rank),
            lora_alpha: self.read("lora_alpha", default.lora_alpha, "a number is needed", finite),
            use_rslora: self.read("use_rslora", false, "true or false is needed", Value::as_bool),
            rank_pattern: self
                .read("rank_pattern", Vec::new(), rank_expected, |v| patterns(v, rank)),
            alpha_pattern: self.read(
                "alpha_pattern",
                Vec::new(),
                "numbers by pattern are needed",
                |v| patterns(v, finite),
            ),
            target_modules: self.read(
                "target_modules",
                default.target_modules,
                NAMES_EXPECTED,
                modules,
            ),
            exclude_modules: self.read("exclude_modules", None, NAMES_EXPECTED, |v| {
                if is_off(v) { Some(None) } else { modules(v).map(Some) }
            }),
            layers_to_transform: self.read(
                "layers_to_transform",
                Vec::new(),
                "layers' numbers are needed",
                |v| match v {
                    Value::Array(layers) => layers.iter().map(Value::as_i64).collect(),
                    layer => layer.as_i64().map(|layer| vec![layer]),
                },
            ),
            layers_pattern: self.read("layers_pattern", Vec::new(), NAMES_EXPECTED, |v| match v {
                Value::String(text) if text.is_empty() => Some(Vec::new()),
                Value::String(_) => names(std::slice::from_ref(v)),
                other => names(other.as_array()?),
            }),
            lora_dropout: self.map.get("lora_dropout").and_then(finite).unwrap_or(0.0),
            base_model_name_or_path: self
                .map
                .get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(Into::into),
        };
        self.refuse_what_peft_refuses(&config);
        config
    }

    /// A key's value; the default when it is missing or null.
    fn read<T>(
        &mut self,
        key: &str,
        default: T,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> T {
        let Some(value) = self.map.get(key).filter(|value| !value.is_null()) else {
            return default;
        };
        let found = read(value);
        self.items.push(if found.is_some() {
            Item::matched(key)
        } else {
            Item::refused(key, expected)
        });
        found.unwrap_or(default)
    }

    /// Combinations that PEFT does not load.
    fn refuse_what_peft_refuses(&mut self, config: &LoraConfig) {
        let given = |key: &str| self.map.get(key).is_some_and(|value| !value.is_null());
        let mut refuse = Vec::new();
        if matches!(config.target_modules, Modules::Pattern(_)) {
            let keys =
                ["layers_to_transform", "layers_pattern"].into_iter().filter(|key| given(key));
            refuse.extend(keys.map(|key| {
                (key, "not with a pattern as target_modules; put the layers into the pattern")
            }));
        } else if !config.layers_pattern.is_empty() && !given("layers_to_transform") {
            refuse.push(("layers_pattern", "not without layers_to_transform"));
        }
        if matches!(&config.target_modules, Modules::Names(names) if names.is_empty()) {
            refuse.push(("target_modules", "nothing is targeted"));
        }
        for (key, reason) in refuse {
            self.items.retain(|item| item.name != key);
            self.items.push(Item::refused(key, reason));
        }
    }

    /// Every key that [`Self::config`] has not dealt with.
    fn judge(&mut self, key: &str, value: &Value) {
        if self.items.iter().any(|item| item.name == key) {
            return;
        }
        let known = |list: &[(&str, &'static str)]| {
            list.iter().find(|(k, _)| *k == key).map(|(_, reason)| *reason)
        };
        let shown: String = key.chars().take(MAX_SHOWN).collect();
        self.items.push(match key {
            "peft_type" if value == "LORA" => Item::matched(key),
            "peft_type" => Item::refused(key, "only LORA is supported"),
            "bias" if value == "none" || value.is_null() => Item::matched(key),
            "bias" => Item::refused(
                key,
                "biases of the base would be replaced, and the base is frozen; \
                    train with bias none",
            ),
            "init_lora_weights" => init(value),
            _ if let Some(reason) = known(&HARMLESS) => Item::ignored(key, reason),
            _ if is_off(value) => Item::ignored(shown, "off"),
            _ if let Some(reason) = known(&REFUSED) => Item::refused(key, reason),
            _ => Item::refused(
                shown,
                "unknown, and it may change what the adapter computes; \
                remove it if it does not",
            ),
        });
    }
}

const NAMES_EXPECTED: &str = "a list of names or a pattern is needed, of at most 4096 bytes each";

/// `init_lora_weights`: how the factors began. Some ways take their beginning out of the base.
fn init(value: &Value) -> Item {
    let key = "init_lora_weights";
    let harmless = |text: &str| HARMLESS_INIT.contains(&text.to_lowercase().as_str());
    match value {
        Value::Null | Value::Bool(_) => Item::ignored(key, "used at initialisation only"),
        Value::String(text) if harmless(text) => {
            Item::ignored(key, "used at initialisation only; the base was left as it is")
        }
        _ => Item::refused(
            key,
            "the base was changed at initialisation (as by pissa, olora, corda, loftq, lora_ga); \
            convert the adapter with \
             PEFT's path_initial_model_for_weight_conversion",
        ),
    }
}

fn names(values: &[Value]) -> Option<Vec<String>> {
    let name = |value: &Value| {
        value.as_str().filter(|name| name.len() <= MAX_PATTERN_BYTES).map(String::from)
    };
    (values.len() <= MAX_PATTERNS).then(|| values.iter().map(name).collect())?
}

fn modules(value: &Value) -> Option<Modules> {
    match value {
        Value::String(text) => {
            (text.len() <= MAX_PATTERN_BYTES).then(|| Modules::Pattern(text.clone()))
        }
        other => names(other.as_array()?).map(Modules::Names),
    }
}

/// Values by pattern, in the file's order.
fn patterns<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    let map = value.as_object().filter(|map| map.len() <= MAX_PATTERNS)?;
    let one = |(key, value): (&String, &Value)| {
        (key.len() <= MAX_PATTERN_BYTES).then(|| Some((key.clone(), read(value)?)))?
    };
    map.iter().map(one).collect()
}
