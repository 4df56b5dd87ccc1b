//! Against PEFT's `add_weighted_adapter` and mergekit's formulas in f64; see
//! `tests/golden/merge.py`.

use std::collections::BTreeMap;

use epiphyte::adapter::{Adapter, LoraModule, ModulePath};
use epiphyte::merge::{Parent, Recipe, merge};
use safetensors::SafeTensors;
use serde_json::Value;

use super::{SHAPE, adapter, added, distance, norm};
use crate::common::golden;

/// Of a module's norm.
const BOUND: f64 = 1e-5;

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn parents(golden: &Value, file: &SafeTensors<'_>) -> BTreeMap<String, Adapter> {
    let module = |name: &str, (path, of): (&String, &Value)| LoraModule {
        path: ModulePath::parse(path).unwrap(),
        rank: of[0].as_u64().unwrap() as usize,
        a: floats(file, &format!("{name}/{path}/A")),
        b: floats(file, &format!("{name}/{path}/B")),
        scaling: of[1].as_f64().unwrap() as f32,
    };
    let parent = |(name, modules): (&String, &Value)| {
        let modules = modules.as_object().unwrap().iter().map(|one| module(name, one)).collect();
        (name.clone(), adapter(modules))
    };
    golden["parents"].as_object().unwrap().iter().map(parent).collect()
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn every_method_is_as_peft_or_mergekit_has_it() {
    let golden_json = std::fs::read(golden("merge.json")).unwrap();
    let json: Value = serde_json::from_slice(&golden_json).unwrap();
    assert_eq!(json["versions"]["peft"], "0.21.2");
    let bytes = std::fs::read(golden("merge.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let adapters = parents(&json, &file);
    let cases = json["cases"].as_object().unwrap();
    assert!(cases.len() > 70, "{}", cases.len());
    let mut worst = BTreeMap::<&str, f64>::new();
    for (name, case) in cases {
        let ids = case["parents"].as_array().unwrap().iter().map(|id| id.as_str().unwrap());
        let parents: Vec<_> = ids
            .zip(numbers(&case["weights"]))
            .map(|(id, weight)| Parent { id, adapter: &adapters[id], weight, density: None })
            .collect();
        let recipe: Recipe = serde_json::from_value(case["recipe"].clone()).unwrap();
        let result = merge(&parents, &recipe, &SHAPE, &mut |_, _| {}).unwrap().adapter;
        let paths: Vec<_> = case["paths"].as_array().unwrap().iter().collect();
        assert_eq!(result.modules.len(), paths.len(), "{name}");
        for path in paths {
            let path = path.as_str().unwrap();
            let expected = floats(&file, &format!("{name}/{path}"));
            let expected: Vec<_> = expected.into_iter().map(f64::from).collect();
            let found = added(&result, ModulePath::parse(path).unwrap());
            let distance = distance(&found, &expected);
            assert!(norm(&expected) > 1e-3, "{name} {path} shows nothing");
            assert!(distance <= BOUND, "{name} {path}: {distance:e}");
            let worst = worst.entry(recipe.method.name()).or_default();
            *worst = worst.max(distance);
        }
    }
    println!("{} cases; largest distances {worst:?}", cases.len());
}
