//! What the keys of a config mean: the rules of PEFT, each by an example small enough to check by
//! eye.

use epiphyte::adapter::{BaseShape, LoraConfig, Modules, Verdict};
use serde_json::{Value, json};

use super::{SHAPE, names, verdict};

/// 12 layers, so that layer 1 is not the only one whose number begins with 1.
const TALL: BaseShape = BaseShape { num_hidden_layers: 12, ..SHAPE };

fn parse(config: &Value) -> LoraConfig {
    let mut config = config.clone();
    config["peft_type"] = json!("LORA");
    let (parsed, items) = LoraConfig::parse(config.to_string().as_bytes()).unwrap();
    assert!(items.iter().all(|item| item.verdict != Verdict::Refused), "{items:?}");
    // What we would write means the same.
    let (again, _) = LoraConfig::parse(parsed.to_json().as_bytes()).unwrap();
    assert_eq!(again, parsed);
    parsed
}

/// Paths without `model.layers.` and the block's name, each with its rank and scaling.
fn modules(config: &Value) -> Vec<(String, usize, f32)> {
    let short = |path: String| match path.strip_prefix("model.layers.") {
        Some(rest) => rest.replace("self_attn.", "").replace("mlp.", ""),
        None => path,
    };
    let modules = parse(config).modules(&TALL).unwrap();
    modules
        .iter()
        .map(|module| (short(module.path.to_string()), module.rank, module.scaling))
        .collect()
}

fn paths(config: &Value) -> Vec<String> {
    modules(config).into_iter().map(|(path, ..)| path).collect()
}

#[test]
fn names_are_whole_parts_at_the_end_of_a_path() {
    assert_eq!(paths(&json!({})).len(), 24, "q_proj and v_proj by default");
    assert_eq!(
        paths(&json!({"target_modules": ["proj", "_proj", "self_attn", "layers.1"]})).len(),
        0
    );
    assert_eq!(paths(&json!({"target_modules": ["1.mlp.up_proj"]})), ["1.up_proj"]);
    assert_eq!(
        paths(&json!({"target_modules": ["lm_head", "embed_tokens"]})),
        ["lm_head", "model.embed_tokens"]
    );
}

#[test]
fn a_pattern_is_for_the_whole_path() {
    assert_eq!(paths(&json!({"target_modules": "q_proj"})).len(), 0);
    assert_eq!(
        paths(&json!({"target_modules": r"model\.layers\.1\.\w+\.(q|up)_proj"})),
        ["1.q_proj", "1.up_proj"]
    );
    assert_eq!(
        paths(&json!({"target_modules": "lm_head|.*1.mlp.up_proj"})),
        ["lm_head", "1.up_proj", "11.up_proj"]
    );
    assert_eq!(
        paths(&json!({"target_modules": "All-Linear"})).len(),
        84,
        "not the head, not the embedding"
    );
}

#[test]
fn exclusions_come_first() {
    let seven =
        json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    let with =
        |exclude: Value| paths(&json!({"target_modules": seven, "exclude_modules": exclude})).len();
    assert_eq!((with(json!(null)), with(json!([])), with(json!(""))), (84, 84, 84));
    assert_eq!(with(json!(["q_proj", "1.mlp.up_proj"])), 84 - 12 - 1);
    assert_eq!(with(json!("self_attn")), 84, "a pattern is for the whole path");
    assert_eq!(with(json!(".*self_attn.*")), 36);
    let full =
        json!({"target_modules": ["model.layers.1.mlp.up_proj"], "exclude_modules": ["up_proj"]});
    assert_eq!(paths(&full).len(), 0);
}

#[test]
fn layers_are_chosen_by_number() {
    let with = |layers: Value, pattern: Value| {
        let config = json!({
            "target_modules": ["q_proj", "lm_head", "model.layers.4.mlp.up_proj"],
            "layers_to_transform": layers,
            "layers_pattern": pattern,
        });
        paths(&config)
    };
    // A path named in full is taken whatever the layer, and so is the head.
    let plus = |layers: &[&str]| {
        let mut paths = vec!["lm_head".to_string(), "4.up_proj".into()];
        paths.extend(layers.iter().map(|layer| format!("{layer}.q_proj")));
        paths.sort();
        paths
    };
    let sorted = |layers: Value, pattern: Value| {
        let mut paths = with(layers, pattern);
        paths.sort();
        paths
    };
    assert_eq!(sorted(json!([1, 11]), json!(null)), plus(&["1", "11"]));
    assert_eq!(sorted(json!(0), json!(null)), plus(&["0"]));
    assert_eq!(with(json!([]), json!(null)).len(), 14, "an empty list chooses nothing");
    for pattern in
        [json!("layers"), json!(["h", "layers"]), json!(r"model\.layers"), json!([]), json!("")]
    {
        assert_eq!(sorted(json!([1]), pattern), plus(&["1"]));
    }
    assert_eq!(
        sorted(json!([1]), json!("ayers")),
        plus(&[]),
        "the name before the number is whole"
    );
    assert_eq!(sorted(json!([99, -1]), json!(null)), plus(&[]));
}

#[test]
fn patterns_may_look_around_and_back() {
    // As Python's `re.fullmatch` says of each path.
    for (pattern, count) in [
        (r".*(?=q_proj)q_proj", 2),
        (r".*\.(?!k_proj|v_proj)[a-z]_proj", 4),
        (r"(?!.*\.mlp\.).*_proj", 8),
        (r".*(?<!gate)(?<!up)_proj", 10),
        (r"model\.layers\.(?:0|1)\.(?:(?=mlp).*down|(?!mlp).*[qk])_proj", 6),
        (r"(?=.*layers\.1\.).*(?<=_attn)\.[qv]_proj", 2),
        (r"(?:.*)(.)_\1ttn.*", 0),
        (r".*self_(a)(t)\2n\.q_proj", 2),
        (r"(?P<first>m)odel.*(?P=first)lp\.up_proj", 2),
        (r"(?=lm)lm_head", 1),
        (r".*(?=q)", 0),
        (r".*q_proj\Z", 2),
    ] {
        let config = LoraConfig {
            target_modules: Modules::Pattern(pattern.into()),
            ..LoraConfig::default()
        };
        let found = config.modules(&SHAPE).map(|modules| modules.len());
        assert_eq!(found.unwrap_or_else(|e| panic!("{pattern}: {e}")), count, "{pattern}");
    }
    let all = || names(&["q_proj", "k_proj"]);
    let exclude_modules = Some(Modules::Pattern(r"(?!.*layers\.1).*".into()));
    let excluded = LoraConfig { target_modules: all(), exclude_modules, ..LoraConfig::default() };
    assert_eq!(excluded.modules(&SHAPE).unwrap().len(), 2);
    let rank_pattern = vec![(r"(?<=self_attn\.)q_proj".into(), 3)];
    let ranks = LoraConfig { target_modules: all(), rank_pattern, ..LoraConfig::default() };
    assert_eq!(ranks.modules(&SHAPE).unwrap().iter().filter(|m| m.rank == 3).count(), 2);
}

#[test]
fn the_first_pattern_decides_rank_and_alpha() {
    let with = |ranks: Value, alphas: Value| {
        let targets = json!(["1.self_attn.q_proj", "1.mlp.up_proj"]);
        modules(
            &json!({"target_modules": targets, "r": 4, "lora_alpha": 8, "rank_pattern": ranks, "alpha_pattern": alphas}),
        )
    };
    let both = |q: (usize, f32), up: (usize, f32)| {
        vec![("1.q_proj".into(), q.0, q.1), ("1.up_proj".into(), up.0, up.1)]
    };
    let usual = (4, 2.0);
    assert_eq!(with(json!({}), json!({})), both(usual, usual));
    assert_eq!(with(json!({"q_proj": 2}), json!({"up_proj": 3})), both((2, 4.0), (4, 0.75)));
    assert_eq!(
        with(json!({"self_attn.q_proj": 2, "q_proj": 16}), json!({})),
        both((2, 4.0), usual)
    );
    assert_eq!(
        with(json!({"q_proj": 16, "self_attn.q_proj": 2}), json!({})),
        both((16, 0.5), usual)
    );
    assert_eq!(
        with(json!({"_proj": 2, "attn.q_proj": 2, "layers.1": 2}), json!({})),
        both(usual, usual)
    );
    assert_eq!(
        with(json!({"layers.1.mlp.up.proj": 2, "....mlp.up_proj": 2}), json!({})),
        both(usual, (2, 4.0))
    );
    assert_eq!(
        with(json!({"^model.layers.1.mlp.up_proj": 2, "^q_proj": 1}), json!({})),
        both(usual, (2, 4.0))
    );
    assert_eq!(with(json!({"q_proj|up_proj": 2}), json!({})), both((2, 4.0), (2, 4.0)));
    assert_eq!(
        with(json!({r".*\.layers\.\d\.mlp\..*": 2}), json!({r"(q|k)_proj": 1})),
        both((4, 0.25), (2, 4.0))
    );
}

#[test]
fn the_scaling_is_alpha_by_rank_or_by_its_root() {
    let with = |config: Value| modules(&config)[0].2;
    let one = json!(["1.self_attn.q_proj"]);
    assert_eq!(with(json!({"target_modules": one})), 1.0);
    assert_eq!(with(json!({"target_modules": one, "r": 3, "lora_alpha": 7})), 7.0 / 3.0);
    assert_eq!(with(json!({"target_modules": one, "r": 3, "lora_alpha": 0.1})), (0.1 / 3.0) as f32);
    assert_eq!(
        with(json!({"target_modules": one, "r": 3, "lora_alpha": 7, "use_rslora": true})),
        (7.0 / 3_f64.sqrt()) as f32
    );
    assert_eq!(with(json!({"target_modules": one, "r": 10_000})), 8.0 / 10_000.0);
}

#[test]
fn harmless_keys_are_listed_and_others_refused() {
    let text = json!({
        "peft_type": "LORA", "fan_in_fan_out": true, "peft_version": "0.21.2", "lora_dropout": 0.1, "corda_config": null,
        "use_dora": false, "modules_to_save": [], "layer_replication": null, "from_the_future": null,
        "init_lora_weights": "gaussian", "loftq_config": {},
    });
    let (config, items) = LoraConfig::parse(text.to_string().as_bytes()).unwrap();
    assert_eq!((config.lora_dropout, config.r), (0.1, 8));
    assert_eq!(items.len(), 11);
    for item in &items {
        let expected = if item.name == "peft_type" { Verdict::Matched } else { Verdict::Ignored };
        assert_eq!(item.verdict, expected, "{item:?}");
    }
    let (_, items) = LoraConfig::parse(br#"{"peft_type": "LORA", "from_the_future": 0}"#).unwrap();
    assert_eq!(verdict(&items, "from_the_future"), Verdict::Refused);
    let pattern = LoraConfig {
        target_modules: Modules::Pattern("all-linear".into()),
        ..LoraConfig::default()
    };
    assert!(pattern.to_json().contains("\"all-linear\""));
}
