//! The Python reader of bindings/flower and this one see the same in the same files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use epiphyte::federated::{Delta, DeltaOptions, Factors, Quantisation, make};
use sha2::{Digest, Sha256};

use super::{RANK, key, parent, plan, trained};
use crate::common::golden;

const KINDS: [(&str, Quantisation, u8); 5] = [
    ("f32", Quantisation::F32, 0),
    ("f16", Quantisation::F16, 1),
    ("int8", Quantisation::Int8, 3),
    ("ternary", Quantisation::Ternary, 5),
    ("top_k", Quantisation::TopK { fraction: 0.05 }, 2),
];

fn sha256(pieces: &[&[u8]]) -> String {
    let hasher = pieces.iter().fold(Sha256::new(), |hasher, piece| hasher.chain_update(piece));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a signed file, by the text of docs/formats.md alone.
pub(super) fn name(header: &serde_json::Value, data: &[u8]) -> String {
    let mut pairs = BTreeMap::new();
    for (key, value) in header["__metadata__"].as_object().unwrap() {
        if key != "epiphyte.signature" {
            pairs.insert(format!("metadata.{key}"), value.as_str().unwrap().to_string());
        }
    }
    for (name, tensor) in header.as_object().unwrap().iter().filter(|(n, _)| *n != "__metadata__") {
        let ends: Vec<usize> = serde_json::from_value(tensor["data_offsets"].clone()).unwrap();
        let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
        let shape: Vec<_> = shape.iter().map(usize::to_string).collect();
        let hash = sha256(&[&data[ends[0]..ends[1]]]);
        let value = format!("{} {} {hash}", tensor["dtype"].as_str().unwrap(), shape.join("x"));
        pairs.insert(format!("tensor.{name}"), value);
    }
    let tag = "epiphyte.delta.1";
    let mut hasher = Sha256::new();
    for item in [tag].into_iter().chain(pairs.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()])) {
        hasher = hasher.chain_update((item.len() as u64).to_le_bytes()).chain_update(item);
    }
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{tag}:{hash}")
}

fn file(kind: &str) -> PathBuf {
    golden("delta").join(format!("{kind}.delta"))
}

fn fresh(quantisation: Quantisation, client: u8) -> Vec<u8> {
    let parent = parent(plan(Factors::Both));
    let options = DeltaOptions {
        examples: 40,
        quantisation: Some(quantisation),
        seed: Some([client; 32]),
        ..DeltaOptions::default()
    };
    make(&parent, &trained(&parent, 3, RANK, 0.05), &options, None, &key(client)).unwrap()
}

/// Writes the files that the Python reader is tested with; then run bindings/flower/test_delta.py
/// `--write`.
#[test]
#[ignore = "writes golden files"]
fn write_golden_deltas() {
    std::fs::create_dir_all(golden("delta")).unwrap();
    for (kind, quantisation, client) in KINDS {
        std::fs::write(file(kind), fresh(quantisation, client)).unwrap();
    }
}

#[test]
fn python_and_rust_read_the_same() {
    let expected = std::fs::read_to_string(golden("delta").join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    for (kind, quantisation, client) in KINDS {
        let bytes = std::fs::read(file(kind)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let delta = Delta::from_bytes(bytes.clone()).unwrap();
        let seen = &expected[kind];
        assert_eq!(delta.name(), seen["name"], "{kind}");
        assert_eq!(delta.name(), name(&header, &bytes[8 + length..]), "{kind}");
        assert_eq!(delta.manifest.signer.to_string(), seen["signer"], "{kind}");
        let mut count = 0;
        for path in delta.modules() {
            for (factor, values) in ["A", "B"].into_iter().zip(delta.module(path)) {
                let bytes: Vec<_> = values.unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
                let name = format!("{path}.lora_{factor}");
                assert_eq!(seen["factors"][&name], sha256(&[&bytes]), "{kind} {name}");
                count += 1;
            }
        }
        assert_eq!(seen["factors"].as_object().unwrap().len(), count);
        // What is written today has the same numbers.
        let today = Delta::from_bytes(fresh(quantisation, client)).unwrap();
        for path in delta.modules() {
            assert_eq!(today.module(path), delta.module(path), "{kind}");
        }
    }
}
