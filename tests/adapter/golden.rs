//! Against PEFT itself: what it makes of configs, and adapters that it wrote. See
//! `tests/golden/peft_config.py`.

use std::collections::BTreeMap;

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, ModulePath, Verdict};
use serde_json::Value;

use super::SHAPE;
use crate::common::golden;

fn peft() -> Value {
    serde_json::from_slice(&std::fs::read(golden("peft.json")).unwrap()).unwrap()
}

fn shape(sizes: &Value) -> BaseShape {
    let size = |key: &str| sizes[key].as_u64().unwrap() as usize;
    BaseShape {
        architecture: epiphyte::base::Architecture::Llama,
        num_hidden_layers: size("num_hidden_layers"),
        hidden_size: size("hidden_size"),
        intermediate_size: size("intermediate_size"),
        q_size: size("num_attention_heads") * size("head_dim"),
        kv_size: size("num_key_value_heads") * size("head_dim"),
        vocab_size: size("vocab_size"),
        num_attention_heads: size("num_attention_heads"),
        num_key_value_heads: size("num_key_value_heads"),
        tie_word_embeddings: false,
    }
}

/// Rank and scaling by path; `None` when a key is refused or nothing is targeted, where PEFT raises
/// an error.
fn modules(config: &Value, shape: &BaseShape) -> Option<BTreeMap<String, (usize, f32)>> {
    let mut config = config.clone();
    config["peft_type"] = "LORA".into();
    let (config, items) = LoraConfig::parse(config.to_string().as_bytes()).unwrap();
    let accepted = items.iter().all(|item| item.verdict != Verdict::Refused);
    let modules = if accepted { config.modules(shape).unwrap() } else { Vec::new() };
    let by_path =
        modules.iter().map(|module| (module.path.to_string(), (module.rank, module.scaling)));
    (!modules.is_empty()).then(|| by_path.collect())
}

#[test]
fn configs_mean_what_peft_makes_of_them() {
    let peft = peft();
    let shape = shape(&peft["sizes"]);
    let cases = peft["cases"].as_object().unwrap();
    assert!(cases.len() > 40);
    for (name, case) in cases {
        let one = |v: &Value| (v[0].as_u64().unwrap() as usize, v[1].as_f64().unwrap() as f32);
        for (key, spelling) in
            ["given", "before", "after"].iter().filter_map(|key| Some((*key, case.get(key)?)))
        {
            // The first pattern that fits counts, but PEFT sorts them as it saves: of these two
            // cases it saves the same.
            let sorted = key != "given" && name == "rank_pattern_order_reversed";
            let meant = if sorted { &cases["rank_pattern_order"] } else { case };
            let expected = meant.get("modules").map(|modules| {
                modules
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(path, v)| (path.clone(), one(v)))
                    .collect::<BTreeMap<_, _>>()
            });
            assert_eq!(modules(spelling, &shape), expected, "{name}, {key}");
        }
    }
}

/// Adapters as PEFT wrote them add to each weight what PEFT says they add.
#[test]
fn adapters_of_peft_add_what_peft_adds() {
    let peft = peft();
    assert_eq!(shape(&peft["tiny_sizes"]), SHAPE);
    for (name, modules) in peft["added"].as_object().unwrap() {
        let adapter = Adapter::load(golden(name), &SHAPE).unwrap();
        let modules = modules.as_object().unwrap();
        assert_eq!(adapter.modules.len(), modules.len(), "{name}");
        for (path, expected) in modules {
            let module = adapter.module(ModulePath::parse(path).unwrap()).unwrap();
            let [n, k] = SHAPE.shape(module.path.target);
            let entry = |i: usize, j: usize| -> f64 {
                let terms =
                    (0..module.rank).map(|r| (module.b[i * module.rank + r], module.a[r * k + j]));
                terms.map(|(b, a)| f64::from(b) * f64::from(a)).sum::<f64>()
                    * f64::from(module.scaling)
            };
            let all: Vec<f64> = (0..n * k).map(|at| entry(at / k, at % k)).collect();
            let squares = all.iter().map(|v| v * v).sum::<f64>();
            let size = all.iter().map(|v| v.abs()).sum::<f64>();
            let found = [
                (all.iter().sum::<f64>(), size),
                (squares, 2.0 * squares),
                (entry(1, 2), entry(1, 2).abs()),
            ];
            for ((found, size), expected) in found.into_iter().zip(expected.as_array().unwrap()) {
                // The scaling is rounded to f32 here and not there; sums in f64 add far less.
                let error = (found - expected.as_f64().unwrap()).abs();
                assert!(error <= 1.1 * size * 2_f64.powi(-24), "{name} {path}: {found} {expected}");
            }
        }
    }
}
