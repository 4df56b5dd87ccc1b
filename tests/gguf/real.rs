//! The default model, against what the PyPI package `gguf` reads in it
//! (`tests/golden/model_file.py`).

use std::time::Instant;

use epiphyte::base::ModelConfig;
use epiphyte::format::gguf::{Gguf, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::common::model_path;

fn short(data: &[u8]) -> String {
    Sha256::digest(data)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_default_model_reads_as_python_reads_it() {
    let Some(path) = model_path() else { return };
    let golden: Json = serde_json::from_str(include_str!("../golden/model_file.json")).unwrap();
    let gguf = Gguf::open(path).unwrap();
    let group = |name: &str| golden[name].as_object().unwrap();
    for (key, expected) in group("plain") {
        let found: Json = match gguf.get(key).unwrap() {
            Value::Unsigned(v) => v.into(),
            Value::Signed(v) => v.into(),
            Value::Float(v) => v.into(),
            Value::Bool(v) => v.into(),
            Value::String(v) => v.into(),
            Value::Array(_) => Json::Null,
        };
        assert_eq!(&found, expected, "{key}");
    }
    for (key, expected) in group("texts") {
        let texts: Vec<&str> = gguf.get(key).unwrap();
        assert_eq!(
            &serde_json::json!([texts.len(), short(texts.join("\0").as_bytes())]),
            expected,
            "{key}"
        );
    }
    for (key, expected) in group("numbers") {
        let numbers: Vec<i32> = gguf.get(key).unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(&serde_json::json!([numbers.len(), short(&bytes)]), expected, "{key}");
    }
    let n_keys = ["plain", "texts", "numbers"].map(|name| group(name).len()).iter().sum::<usize>();
    assert_eq!(gguf.metadata().count(), n_keys);

    let tensors = golden["tensors"].as_array().unwrap();
    assert_eq!(gguf.tensors().len(), tensors.len());
    for (found, expected) in gguf.tensors().zip(tensors) {
        let found =
            serde_json::json!([found.name, found.dtype.name(), found.shape, short(&found.bytes())]);
        assert_eq!(&found, expected);
    }
    assert_eq!(gguf.ignored().count(), 0);
}

#[test]
fn the_default_model_is_a_llama_of_135m() {
    let Some(path) = model_path() else { return };
    let start = Instant::now();
    let gguf = Gguf::open(path).unwrap();
    let opened = start.elapsed();
    // 30 ms in release; other tests may be running and this build may not be optimised.
    assert!(opened.as_millis() < 1000, "opening took {opened:?}");
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    config.check_tensors(&gguf).unwrap();
    assert_eq!(config.n_params(), 134_515_008);
    assert!(config.tie_word_embeddings);
}
