//! Logits under adapters that PEFT wrote, against PEFT's own: see `tests/golden/peft_logits.py`.

use std::sync::Arc;

use epiphyte::adapter::Adapter;
use epiphyte::{DType, Engine, EngineOptions};
use safetensors::SafeTensors;

use super::adapted::logits;
use super::{PROMISED, halves, tiny};
use crate::common::golden;

const ADAPTERS: [&str; 6] = ["plain", "rslora", "patterns", "regex", "attention", "all_linear"];
/// As [`PROMISED`], where cooperative matrices round activations and weights to f16.
const IN_HALVES: f64 = 1e-2;
const MIXED: &[(&str, f32)] = &[("patterns", 0.7), ("attention", -0.4)];

/// The largest difference, in parts of the largest logit.
fn off(found: &[Vec<f32>], expected: &[f32]) -> f64 {
    assert_eq!(found.iter().map(Vec::len).sum::<usize>(), expected.len());
    assert!(found.iter().flatten().all(|v| v.is_finite()));
    let largest = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let off = found
        .iter()
        .flatten()
        .zip(expected)
        .fold(0.0_f32, |max, (found, v)| max.max((found - v).abs()));
    f64::from(off) / f64::from(largest)
}

/// Adapters from folders under their names, and the same by way of GGUF files as `gguf.<name>`.
fn engine(options: &EngineOptions) -> Arc<Engine> {
    let engine = Engine::open(tiny("tiny_llama"), options.clone()).unwrap();
    let (dir, shape) = (tempfile::tempdir().unwrap(), engine.base().adapter_shape());
    for name in ADAPTERS {
        let folder = golden(&format!("peft_logits/{name}"));
        engine.load_adapter(name, &folder).unwrap();
        let file = dir.path().join(format!("{name}.gguf"));
        Adapter::load(&folder, &shape).unwrap().save_gguf(&file, DType::F32, &shape).unwrap();
        engine.load_adapter(&format!("gguf.{name}"), &file).unwrap();
    }
    engine
}

#[test]
fn logits_under_adapters_are_those_of_peft() {
    let file = std::fs::read(golden("peft_logits.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let ids = file
        .tensor("ids")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|&b| i64::from_le_bytes(b) as u32);
    let ids: Vec<u32> = ids.collect();
    let options = EngineOptions { kv_f32: true, ..EngineOptions::default() };
    let engine = engine(&options);
    let single = ADAPTERS.map(|name| (name, vec![(name, 1.0)]));
    for (name, set) in single.into_iter().chain([("mixed", MIXED.to_vec())]) {
        let expected = file.tensor(&format!("{name}.logits")).unwrap();
        let expected: Vec<f32> =
            expected.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let converted: Vec<(String, f32)> =
            set.iter().map(|(id, weight)| (format!("gguf.{id}"), *weight)).collect();
        let converted: Vec<(&str, f32)> =
            converted.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
        for (way, pieces) in [("wide", &[40][..]), ("narrow", &[1, 8, 3])] {
            let found = logits(&engine, &set, &ids, pieces);
            let relative = off(&found, &expected);
            println!("{name}, {way}: {relative:.1e} of the largest logit");
            let bound =
                if halves(&engine, &options, pieces).products { IN_HALVES } else { PROMISED };
            assert!(relative <= bound, "{name}, {way}: off by {relative} of the largest logit");
            // Where several alphas become one, B is rounded once more; in the f16 of the device
            // nothing is left of it.
            assert_eq!(
                logits(&engine, &converted, &ids, pieces),
                found,
                "{name}, {way}: by way of GGUF"
            );
        }
    }
}
