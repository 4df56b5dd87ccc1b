//! LoRA on linears that a family's files hold as one.

use std::collections::BTreeMap;
use std::path::Path;

use epiphyte::DType;
use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule, ModulePath, Target, Verdict};
use safetensors::SafeTensors;

use super::{adapter, names, tensors_of};
use crate::common::golden;

/// The tiny Phi's sizes: 2 heads of 32 over 1.
const PHI: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Phi3,
    vocab_size: 288,
    q_size: 64,
    kv_size: 32,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    ..super::SHAPE
};

/// Shapes by name, without what PEFT's wrappers put before it.
fn shapes(dir: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let inner = |name: &str| name.strip_prefix("base_model.model.").unwrap().to_string();
    file.tensors().iter().map(|(name, view)| (inner(name), view.shape().to_vec())).collect()
}

fn of(adapter: &Adapter, target: Target) -> &LoraModule {
    adapter.module(ModulePath::in_layer(0, target)).unwrap()
}

#[test]
fn pefts_adapter_on_joined_linears_comes_apart_and_together_again() {
    let path = golden("families/phi3");
    let loaded = Adapter::load(&path, &PHI).unwrap();
    assert_eq!(loaded.modules.len(), 2 * 7);
    assert_eq!(loaded.report.tensors.len(), 2 * 4 * 2, "a tensor is reported once");
    let [q, k, v] = [Target::QProj, Target::KProj, Target::VProj].map(|t| of(&loaded, t));
    assert!(q.a == k.a && k.a == v.a && q.rank == 4);
    let file = tensors_of(&path);
    let joined = &file["base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight"];
    let parts: Vec<f32> = [q, k, v].into_iter().flat_map(|m| m.b.clone()).collect();
    assert_eq!(*joined, parts);
    let dir = tempfile::tempdir().unwrap();
    loaded.save_peft(dir.path(), DType::F32, &PHI).unwrap();
    assert_eq!(tensors_of(dir.path()), file, "to the bit");
    let text = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
    let (config, _) = LoraConfig::parse(&text).unwrap();
    assert_eq!(config.target_modules, names(&["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]));
    assert!(config.rank_pattern.is_empty() && config.alpha_pattern.is_empty());
    let gguf = dir.path().join("lora.gguf");
    loaded.save_gguf(&gguf, DType::F32, &PHI).unwrap();
    for path in [dir.path(), gguf.as_path()] {
        let again = Adapter::load(path, &PHI).unwrap();
        assert_eq!(again.modules, loaded.modules);
    }
}

#[test]
fn linears_with_factors_of_their_own_are_blocks_of_one() {
    let targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"];
    let target_modules = names(&targets);
    for use_rslora in [false, true] {
        let config = LoraConfig {
            r: 3,
            lora_alpha: 5.0,
            use_rslora,
            target_modules: target_modules.clone(),
            rank_pattern: vec![("model.layers.1.mlp.up_proj".into(), 2)],
            ..LoraConfig::default()
        };
        let saved = adapter(config, &PHI, 7);
        let dir = tempfile::tempdir().unwrap();
        saved.save_peft(dir.path(), DType::F32, &PHI).unwrap();
        let shapes = shapes(dir.path());
        let [a, b] =
            ["A", "B"].map(|f| format!("model.layers.0.self_attn.qkv_proj.lora_{f}.weight"));
        assert_eq!((&shapes[&a][..], &shapes[&b][..]), (&[6, 64][..], &[128, 6][..]));
        assert_eq!(shapes["model.layers.1.mlp.gate_up_proj.lora_B.weight"], [192, 5]);
        assert_eq!(shapes["model.layers.1.mlp.down_proj.lora_A.weight"], [3, 96]);
        let loaded = Adapter::load(dir.path(), &PHI).unwrap();
        for (loaded, saved) in loaded.modules.iter().zip(&saved.modules) {
            let told = |m: &LoraModule| (m.path, m.rank, m.a.clone());
            assert_eq!(told(loaded), told(saved));
            // Where two scalings meet, one of them is in B.
            let same = |(a, b): (&f32, &f32)| {
                (a * loaded.scaling - b * saved.scaling).abs() <= 1e-6 * (b * saved.scaling).abs()
            };
            assert!(loaded.b.iter().zip(&saved.b).all(same), "{}", saved.path);
        }
        assert_eq!(loaded.modules.len(), saved.modules.len());
        // What was read says of itself what it is, and is written the same way.
        let again = tempfile::tempdir().unwrap();
        loaded.save_peft(again.path(), DType::F32, &PHI).unwrap();
        assert_eq!(tensors_of(again.path()), tensors_of(dir.path()));
    }
}

#[test]
fn an_adapter_that_changes_nothing_yet_keeps_its_factors() {
    let config = LoraConfig { target_modules: names(&["qkv_proj"]), ..LoraConfig::default() };
    let mut fresh = adapter(config, &PHI, 3);
    fresh.modules.iter_mut().for_each(|module| module.b.fill(0.0));
    let dir = tempfile::tempdir().unwrap();
    fresh.save_peft(dir.path(), DType::F32, &PHI).unwrap();
    assert_eq!(shapes(dir.path())["model.layers.0.self_attn.qkv_proj.lora_A.weight"], [24, 64]);
    assert_eq!(Adapter::load(dir.path(), &PHI).unwrap().modules, fresh.modules);
}

#[test]
fn rows_of_another_base_are_refused_by_name() {
    let wide = BaseShape { kv_size: 64, num_key_value_heads: 2, ..PHI };
    let report = Adapter::inspect(golden("families/phi3"), &wide).unwrap();
    let name = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight";
    let item = report.tensors.iter().find(|item| item.name == name).unwrap();
    assert!(item.verdict == Verdict::Refused && item.reason.contains("128 rows"), "{item:?}");
}
