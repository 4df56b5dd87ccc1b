//! What can't be honoured is refused whole, by name and with the reason.

use std::fs;

use epiphyte::Error;
use epiphyte::adapter::{Adapter, Verdict};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Files, SHAPE, refusal, verdict};

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

fn expect(files: &Files, what: &str, reason: &str) {
    let (found, why) = refusal(files.load());
    assert!(found == what && why.contains(reason), "`{found}`: {why}; expected `{what}`: {reason}");
}

#[test]
fn keys() {
    let cases: [(&str, Value, &str); 44] = [
        ("use_dora", json!(true), "DoRA"),
        ("modules_to_save", json!(["lm_head"]), "frozen"),
        ("lora_bias", json!(true), "bias"),
        ("bias", json!("all"), "bias none"),
        ("bias", json!("lora_only"), "bias none"),
        ("target_parameters", json!(["x"]), "target_modules"),
        ("layer_replication", json!([[0, 1], [0, 2]]), "repeated layers"),
        ("alora_invocation_tokens", json!([1]), "activated LoRA"),
        ("invocation_string", json!("<go>"), "activated LoRA"),
        ("trainable_token_indices", json!([7]), "embed_tokens"),
        ("use_qalora", json!(true), "QALoRA"),
        ("use_bdlora", json!({"nblocks": 2}), "block-diagonal"),
        ("arrow_config", json!({"top_k": 3}), "several adapters"),
        ("kasa_config", json!({"beta": 1}), "KaSA"),
        ("monteclora_config", json!({"num_samples": 8}), "random"),
        ("ensure_weight_tying", json!(true), "apart"),
        ("init_lora_weights", json!("pissa"), "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", json!("pissa_niter_16"), "base was changed"),
        ("init_lora_weights", json!("olora"), "base was changed"),
        ("init_lora_weights", json!("OLoRA"), "base was changed"),
        ("init_lora_weights", json!("corda"), "base was changed"),
        ("init_lora_weights", json!("loftq"), "base was changed"),
        ("init_lora_weights", json!("lora_ga"), "base was changed"),
        ("init_lora_weights", json!("new_way"), "base was changed"),
        ("peft_type", json!("ADALORA"), "only LORA"),
        ("some_new_key", json!(1), "unknown"),
        ("some_new_key", json!({"x": 1}), "unknown"),
        ("r", json!(0), "from 1"),
        ("r", json!(-1), "from 1"),
        ("r", json!(2.5), "from 1"),
        ("r", json!("2"), "from 1"),
        ("r", json!(1_u64 << 40), "from 1"),
        ("lora_alpha", json!("x"), "a number"),
        ("lora_alpha", json!(1e300), "beyond f32"),
        ("alpha_pattern", json!({"q_proj": -1e300}), "beyond f32"),
        ("use_rslora", json!(1), "true or false"),
        ("rank_pattern", json!({"q_proj": 0}), "from 1"),
        ("rank_pattern", json!(["q_proj"]), "from 1"),
        ("alpha_pattern", json!({"q_proj": null}), "numbers"),
        ("target_modules", json!([]), "nothing"),
        ("target_modules", json!({"q_proj": 1}), "names"),
        ("exclude_modules", json!([1]), "names"),
        ("layers_to_transform", json!(["1"]), "numbers"),
        ("layers_pattern", json!("layers"), "not without layers_to_transform"),
    ];
    for (key, value, reason) in cases {
        expect(&Files::new().key(key, value), key, reason);
    }
    let pattern = || Files::new().key("target_modules", json!(".*q_proj"));
    pattern().load().unwrap();
    expect(
        &pattern().key("layers_to_transform", json!([0])),
        "layers_to_transform",
        "put the layers into the pattern",
    );
    expect(
        &pattern().key("layers_pattern", json!("layers")),
        "layers_pattern",
        "put the layers into the pattern",
    );
    let (what, reason) =
        refusal(Files::new().key("use_dora", json!(true)).key("r", json!(0)).load());
    assert!(what == "r" && reason.ends_with("(and 1 more)"), "{what}: {reason}");
}

#[test]
fn patterns_that_are_no_regular_expressions() {
    for pattern in ["(q_proj", "q_proj)|(v_proj", "*", "(?P<idx", "(?=q", r"(?<=q*)x", r"(?!x)\2"] {
        expect(
            &Files::new().key("target_modules", json!(pattern)),
            "target_modules",
            "not understood",
        );
        expect(
            &Files::new().key("exclude_modules", json!(pattern)),
            "exclude_modules",
            "not understood",
        );
    }
    expect(&Files::new().key("alpha_pattern", json!({"(": 2})), "alpha_pattern", "not understood");
    let layers = Files::new().key("layers_to_transform", json!([0]));
    expect(
        &layers.key("layers_pattern", json!(["layers", "(?<=x"])),
        "layers_pattern",
        "not understood",
    );
}

#[test]
fn patterns_that_would_take_long() {
    let tries = r"(?!x)(.*.*.*.*.*.*.*.*.*.*.*.*)\1\1\1\1\1y";
    for key in ["target_modules", "exclude_modules"] {
        expect(&Files::new().key(key, json!(tries)), key, "tries more than");
    }
    expect(&Files::new().key("rank_pattern", json!({tries: 2})), "rank_pattern", "tries more than");
    let nested = format!("(?=q){}q{}", "(".repeat(2000), ")".repeat(2000));
    expect(&Files::new().key("target_modules", json!(nested)), "target_modules", "too large");
}

#[test]
fn keys_given_twice() {
    let twice = |text: &str| {
        let config = Files::new().config.to_string();
        refusal(Adapter::from_peft(
            config.replacen('{', text, 1).as_bytes(),
            &Files::new().bytes(),
            &SHAPE,
        ))
    };
    for (text, key) in [
        (r#"{"r": 8, "#, "r"),
        (r#"{"target_modules": ["v_proj"], "#, "target_modules"),
        (r#"{"rank_pattern": {"q_proj": 4, "q_proj": 2}, "#, "q_proj"),
        (r#"{"unheard_of": null, "unheard_of": null, "#, "unheard_of"),
        (r#"{"loftq_config": [{"a": 1, "a": 2}], "#, "a"),
    ] {
        let (what, reason) = twice(text);
        assert!(what == key && reason.contains("given twice"), "{what}: {reason}");
    }
}

#[test]
fn tensors() {
    let m = "base_model.model.model.layers.0.";
    let floats = |values: &[f32]| Files::new().floats(A, &[2, 64], values);
    let mut values = vec![0.5; 128];
    expect(&Files::new().without(B), A, "the B factor");
    expect(&Files::new().without(A), B, "the A factor");
    expect(&Files { tensors: Vec::new(), ..Files::new() }, "lora_A", "no LoRA tensors");
    expect(&Files::new().counting(A, &[3, 64]), A, "[2, 64] is needed for rank 2");
    expect(&Files::new().counting(A, &[64, 2]), A, "[2, 64] is needed for rank 2");
    expect(&Files::new().counting(B, &[64, 2]), B, "[128, 2] is needed");
    expect(&Files::new().counting(A, &[0, 64]), A, "[2, 64] is needed");
    expect(&Files::new().counting(A, &[128]), A, "a matrix is needed");
    expect(&Files::new().tensor(A, Dtype::I32, &[2, 64], vec![0; 512]), A, "I32");
    expect(&Files::new().tensor(A, Dtype::F8_E4M3, &[2, 64], vec![0; 128]), A, "F8_E4M3");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        values[77] = bad;
        expect(&floats(&values), A, "NaN");
    }
    let f64s = [1e300_f64; 128].iter().flat_map(|v| v.to_le_bytes()).collect();
    expect(&Files::new().tensor(A, Dtype::F64, &[2, 64], f64s), A, "beyond f32");
    let v = format!("{m}self_attn.v_proj.lora_A.weight");
    expect(
        &Files::new().counting(&v, &[2, 64]),
        &v,
        "does not target model.layers.0.self_attn.v_proj",
    );
    let past = A.replace("layers.0", "layers.2");
    expect(&Files::new().counting(&past, &[2, 64]), &past, "the base has 2 layers");
    for (name, reason) in [
        ("self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("self_attn.q_proj.lora_B.bias", "bias"),
        ("self_attn.q_proj.bias", "bias"),
        ("self_attn.q_proj.base_layer.weight", "frozen"),
        ("self_attn.rotary.lora_A.weight", "no such module"),
        ("mlp.q_proj.lora_A.weight", "no such module"),
        ("self_attn.q_proj.lora_embedding_A", "no such module"),
        ("self_attn.q_proj.lora_C.weight", "no such module"),
        ("input_layernorm.weight", "frozen"),
    ] {
        let name = format!("{m}{name}");
        expect(&Files::new().counting(&name, &[2, 64]), &name, reason);
    }
    let embed = "base_model.model.model.embed_tokens.weight";
    expect(&Files::new().counting(embed, &[291, 64]), embed, "frozen");
    let twice = A.replace("base_model.model.", "");
    let (what, reason) = refusal(Files::new().counting(&twice, &[2, 64]).load());
    assert!(what == twice && reason.contains(A), "{what}: {reason}");
    let named = A.replace("lora_A", "lora_A.default");
    expect(&Files::new().counting(&named, &[2, 64]), A, "the same factor");
}

#[test]
fn the_bases_own_embedding_is_passed_over_only_if_it_fits() {
    let head = "base_model.model.lm_head.base_layer.weight";
    let loaded = Files::new().counting(head, &[291, 64]).load().unwrap();
    assert_eq!(verdict(&loaded.report.tensors, head), Verdict::Ignored);
    expect(&Files::new().counting(head, &[292, 64]), head, "resized");
}

#[test]
fn a_report_has_all_refusals_and_no_values() {
    let dir = tempfile::tempdir().unwrap();
    Files::new().without(B).counting("other", &[1]).write(dir.path());
    let report = Adapter::inspect(dir.path(), &SHAPE).unwrap();
    let refused: Vec<_> = report.refused().map(|item| item.name.as_str()).collect();
    assert_eq!(refused, [A, "other"]);
    assert!(report.modules.is_empty());
    Files::new().without(B).key("use_dora", json!(true)).write(dir.path());
    let report = Adapter::inspect(dir.path(), &SHAPE).unwrap();
    assert_eq!(report.refused().count(), 1);
    assert!(report.tensors.iter().all(|item| item.verdict == Verdict::Ignored));
    assert_eq!(
        format!("{:?}", Files::new().load().unwrap().modules[0]),
        "LoraModule(model.layers.0.self_attn.q_proj, rank 2, scaling 2)"
    );
}

#[test]
fn warnings_stop_nothing() {
    let quiet = Files::new().load().unwrap().report;
    assert!(quiet.warnings.is_empty() && quiet.missing.is_empty());
    let zero = Files::new().floats(B, &[128, 2], &[0.0; 256]).load().unwrap().report;
    assert!(
        zero.warnings[0].contains("all zero") && zero.warnings[0].contains("layers.0"),
        "{:?}",
        zero.warnings
    );
    let missing = Files::new().without(A).without(B).load().unwrap();
    assert_eq!(missing.report.missing[0].to_string(), "model.layers.0.self_attn.q_proj");
    assert!(
        missing.report.warnings[0].contains("without tensors"),
        "{:?}",
        missing.report.warnings
    );
    assert_eq!(missing.modules.len(), 1);
    let none = Files::new().key("lora_alpha", json!(0)).load().unwrap().report;
    assert!(none.warnings[0].contains("lora_alpha is 0"), "{:?}", none.warnings);
}

#[test]
fn folders_that_lack_something() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| Adapter::load(path, &SHAPE).unwrap_err();
    let says = |text: &str| match error(dir.path()) {
        Error::InvalidFile { reason, .. } => assert!(reason.contains(text), "{reason}"),
        other => panic!("{other}"),
    };
    says("no adapter_config.json");
    Files::new().write(dir.path());
    let tensors = dir.path().join("adapter_model.safetensors");
    // Without the config in it, the file alone says nothing of alpha.
    assert!(
        matches!(error(&tensors), Error::InvalidFile { reason, .. } if reason.contains("carries no config"))
    );
    fs::remove_file(&tensors).unwrap();
    says("no adapter_model.safetensors");
    fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    says("pickle");
    assert!(matches!(error(&dir.path().join("nothing")), Error::Io { .. }));
    fs::create_dir(&tensors).unwrap();
    says("pickle");
}
