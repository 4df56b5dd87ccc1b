//! Damage and malice: typed errors, no panic, no memory beyond the file's own size.

use epiphyte::DType;
use epiphyte::Error;
use epiphyte::adapter::{Adapter, LoraConfig};
use serde_json::json;

use super::{Files, SHAPE, adapter, all, names, refusal};
use crate::common::{Random, ends};

fn small() -> LoraConfig {
    LoraConfig { r: 1, target_modules: names(&["0.self_attn.k_proj"]), ..all() }
}

/// Both spellings of one small adapter.
fn files() -> [Vec<u8>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let saved = adapter(small(), &SHAPE, 21);
    let (folder, gguf) = (dir.path().join("peft"), dir.path().join("lora.gguf"));
    saved.save_peft(&folder, DType::F16, &SHAPE).unwrap();
    saved.save_gguf(&gguf, DType::F16, &SHAPE).unwrap();
    [folder.join("adapter_model.safetensors"), gguf].map(|path| std::fs::read(path).unwrap())
}

#[test]
fn every_cut_is_refused() {
    for bytes in files() {
        Adapter::from_bytes(bytes.clone(), &SHAPE).unwrap();
        // A GGUF file may end in padding.
        let padding = if bytes.starts_with(b"GGUF") { 32 } else { 1 };
        for len in 0..=bytes.len() - padding {
            assert!(
                Adapter::from_bytes(bytes[..len].to_vec(), &SHAPE).is_err(),
                "{len} of {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let mut random = Random::new(22);
    for bytes in files() {
        // Most of them where it hurts: in the header.
        for _ in 0..4000 {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len().min(1400) as u32) as usize;
                damaged[at] ^= 1 << random.below(8);
            }
            if let Ok(loaded) = Adapter::from_bytes(damaged, &SHAPE) {
                assert!(loaded.modules.iter().all(|module| module.check(&SHAPE).is_ok()));
            }
        }
    }
}

#[test]
fn headers_that_lie() {
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let config = json!({"peft_type": "LORA", "target_modules": ["q_proj"]}).to_string();
    let invalid = |bytes: &[u8]| match Adapter::from_peft(config.as_bytes(), bytes, &SHAPE) {
        Err(Error::InvalidFile { .. }) => {}
        other => panic!("{other:?}"),
    };
    invalid(b"");
    invalid(&u64::MAX.to_le_bytes());
    invalid(&[&(1_u64 << 40).to_le_bytes(), "{}".as_bytes()].concat());
    invalid(&header("{"));
    invalid(&header("[]"));
    invalid(&header(&"[".repeat(100_000)));
    let tensor = |shape: &str, end: u64| {
        format!(
            r#"{{"x.lora_A.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        )
    };
    invalid(&header(&tensor("[2,64]", 512)));
    invalid(&header(&tensor("[2,64]", u64::MAX)));
    invalid(&header(&tensor("[4294967296,4294967296,4]", 0)));
    invalid(&header(&tensor("[-1]", 0)));
    invalid(&[header(&tensor("[1]", 4)), vec![0; 5]].concat());
    let twice = r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    let refused =
        Adapter::from_peft(config.as_bytes(), &[header(twice), vec![0; 4]].concat(), &SHAPE);
    assert!(
        matches!(&refused, Err(Error::InvalidTensor { name, .. }) if name == "x"),
        "{refused:?}"
    );
    // An honest header of nothing.
    let (what, _) = refusal(Adapter::from_peft(config.as_bytes(), &header("{}"), &SHAPE));
    assert_eq!(what, "lora_A");
}

#[test]
fn configs_that_are_no_config() {
    let nested =
        format!(r#"{{"peft_type": "LORA", "x": {}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let long = format!(r#"{{"peft_type": "LORA", "revision": "{}"}}"#, "x".repeat(5 << 20));
    for text in ["", "[]", "{", "null", "{\"r\": NaN}", "\u{0}", nested.as_str(), long.as_str()] {
        let (what, reason) =
            refusal(Adapter::from_peft(text.as_bytes(), &Files::new().bytes(), &SHAPE));
        assert_eq!(what, "adapter_config.json");
        assert!(reason.len() < 100, "{reason}");
    }
    let secret = br#"{"peft_type": "LORA", "r": hunter2}"#;
    assert!(
        !refusal(Adapter::from_peft(secret, &Files::new().bytes(), &SHAPE)).1.contains("hunter2")
    );
}

#[test]
fn pattern_bombs_come_to_an_end() {
    let long = "a?".repeat(1900) + &"a".repeat(290);
    for pattern in [
        "((a{1,1000}){1,1000}){1,1000}",
        "(.*.*.*.*.*.*.*.*)*x",
        "(a*)*b",
        "(a|a)*b",
        "(((((((x*)*)*)*)*)*)*)*",
        &long,
    ] {
        let result = ends(pattern, || Files::new().key("target_modules", json!(pattern)).load());
        assert!(matches!(result, Err(Error::InvalidAdapter { .. })), "{result:?}");
    }
    let many: serde_json::Map<_, _> =
        (0..10_000).map(|i| (format!("model.layers.{i}.mlp.up_proj"), json!(2))).collect();
    Files::new().key("rank_pattern", json!(many)).load().unwrap();
    let regexes: serde_json::Map<_, _> = (0..300).map(|i| (format!("({i})"), json!(2))).collect();
    assert_eq!(refusal(Files::new().key("rank_pattern", json!(regexes)).load()).0, "rank_pattern");
}

#[test]
fn a_rank_that_the_file_does_not_have_costs_nothing() {
    let (what, reason) = refusal(Files::new().key("r", json!(1 << 20)).load());
    assert!(what.ends_with("lora_A.weight") && reason.contains("1048576"), "{what}: {reason}");
    let module = "model.layers.0.self_attn.k_proj";
    let of_rank = |r: usize| {
        Files { tensors: Vec::new(), ..Files::new() }
            .key("target_modules", json!([module]))
            .key("r", json!(r))
            .counting(&format!("{module}.lora_A.weight"), &[r, 64])
            .counting(&format!("{module}.lora_B.weight"), &[64, r])
    };
    // Wider than the module, as PEFT allows.
    let loaded = of_rank(256).load().unwrap();
    assert_eq!(loaded.modules[0].rank, 256);
    assert!(loaded.report.warnings.is_empty(), "{:?}", loaded.report.warnings);
    // For a merge only.
    let warnings = of_rank(10_000).load().unwrap().report.warnings;
    assert!(
        warnings[0].contains("rank 10000") && warnings[0].contains("at most 256"),
        "{warnings:?}"
    );
}
