//! A tiny random model of each family against transformers and PEFT in f64: see
//! `tests/golden/families.py`.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use epiphyte::adapter::{Adapter, LoraConfig, LoraModule};
use epiphyte::format::gguf::Gguf;
use epiphyte::train::data::batch::in_order;
use epiphyte::train::data::{Dataset, Example};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{Engine, EngineOptions, GpuOptions};
use safetensors::SafeTensors;

use super::{adapted, tiers};
use crate::common::golden;

const FAMILIES: [&str; 8] =
    ["qwen2", "qwen3", "gemma3", "smollm3", "granite", "mistral", "phi3", "phi4"];
/// Rows of logits that the script keeps: every so many, the last of them.
const EVERY: usize = 4;

/// How far off something may be, relative to its size; beside each the most that was seen on
/// lavapipe.
struct Bounds {
    /// A logit, of the largest.
    logit: f64,
    /// The same where a cache, products or an adapter's factors are f16.
    rounded: f64,
    /// A gradient's norm, and its projection in norms.
    gradient: f64,
    /// A loss of ten.
    losses: f64,
}

const BOUNDS: Bounds = Bounds {
    logit: 1e-5,    // 1.3e-6
    rounded: 3e-3,  // 8.0e-4
    gradient: 3e-5, // 4.2e-6
    losses: 2e-6,   // 2.1e-7
};

fn file(family: &str) -> PathBuf {
    golden(&format!("families/{family}.gguf"))
}

fn values<const N: usize, T>(name: &str, of: impl Fn([u8; N]) -> T) -> Vec<T> {
    static FILE: LazyLock<Vec<u8>> =
        LazyLock::new(|| std::fs::read(golden("families.safetensors")).unwrap());
    let file = SafeTensors::deserialize(&FILE).unwrap();
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| of(bytes)).collect()
}

fn ids() -> Vec<u32> {
    values("ids", |bytes| i64::from_le_bytes(bytes) as u32)
}

/// The largest difference of the rows that were kept, in parts of the largest logit.
fn distance(found: &[Vec<f32>], name: &str) -> f64 {
    let expected = values(name, f32::from_le_bytes);
    let largest = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let kept = found.iter().skip(EVERY - 1).step_by(EVERY).flatten();
    assert_eq!(kept.clone().count(), expected.len());
    let off = kept.zip(&expected).map(|(f, e)| f64::from((f - e).abs())).fold(0.0, f64::max);
    assert!(found.iter().flatten().all(|v| v.is_finite()), "{name}");
    off / f64::from(largest)
}

#[test]
fn logits_of_every_family_are_those_of_transformers_and_of_peft() {
    for family in FAMILIES {
        for (tier, options) in tiers() {
            let options = EngineOptions { context: Some(256), ..options };
            let engine = Engine::open(file(family), options.clone()).unwrap();
            let shape = engine.base().adapter_shape();
            let adapter = Adapter::load(golden(&format!("families/{family}")), &shape).unwrap();
            engine.add_adapter("peft", &adapter).unwrap();
            let caps = engine.gpu().caps();
            let rounds = caps.f16 && !options.kv_f32 || caps.cooperative_matrix.is_some();
            for (way, pieces) in [("wide", &[96][..]), ("mixed", &[9, 1, 3, 8, 1, 5, 70])] {
                for (set, name) in [(&[][..], "logits"), (&[("peft", 1.0)], "lora")] {
                    let found = adapted::logits(&engine, set, &ids(), pieces);
                    let off = distance(&found, &format!("{family}.{name}"));
                    println!("{family}, {tier}, {way}, {name}: {off:.1e} of the largest logit");
                    let exact = !rounds && set.is_empty();
                    let bound = if exact { BOUNDS.logit } else { BOUNDS.rounded };
                    assert!(off <= bound, "{family}, {tier}, {way}, {name}: {off}");
                }
            }
        }
    }
}

/// Without a word about the context there is room for the original one, within which frequencies
/// are others than beyond.
#[test]
fn frequencies_follow_the_room_for_positions() {
    let engine = Engine::open(file("phi4"), EngineOptions::default()).unwrap();
    assert_eq!(engine.context(), 48);
    let found = adapted::logits(&engine, &[], &ids()[..48], &[48]);
    let off = distance(&found, "phi4.short");
    println!("phi4, within the original context: {off:.1e} of the largest logit");
    assert!(off <= BOUNDS.rounded, "{off}");
    let wide = EngineOptions { context: Some(49), ..EngineOptions::default() };
    let wide = Engine::open(file("phi4"), wide).unwrap();
    let longer = adapted::logits(&wide, &[], &ids()[..48], &[48]);
    assert!(distance(&longer, "phi4.short") > 10.0 * BOUNDS.rounded);
    // Keys of a saved session that were turned by the others are made again.
    let (dir, mut session) = (tempfile::tempdir().unwrap(), engine.session());
    session.push_tokens(&ids()[..48]).unwrap();
    session.prefill(&Default::default()).unwrap();
    session.save(dir.path().join("session")).unwrap();
    let mut back = wide.restore(dir.path().join("session")).unwrap();
    let mut last = Vec::new();
    back.logits(47, |_, logits| last = logits.to_vec()).unwrap();
    assert_eq!(last.len(), longer[47].len(), "all are pending");
    let off = last.iter().zip(&longer[47]).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    let largest = longer[47].iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    assert!(f64::from(off / largest) <= BOUNDS.rounded, "{off} of {largest}");
}

/// What is trained here is LoRA on each linear; PEFT reads it as one on those that hold several.
#[test]
fn factors_of_each_linear_are_blocks_to_peft() {
    let options = EngineOptions { context: Some(256), ..EngineOptions::default() };
    let engine = Engine::open(file("phi4"), options).unwrap();
    let shape = engine.base().adapter_shape();
    let path = golden("families/phi4_blocks");
    let adapter = Adapter::load(&path, &shape).unwrap();
    assert!(adapter.modules.len() == 2 * 7 && adapter.modules.iter().all(|m| m.rank == 4));
    engine.add_adapter("blocks", &adapter).unwrap();
    let found = adapted::logits(&engine, &[("blocks", 1.0)], &ids(), &[96]);
    let off = distance(&found, "phi4.blocks");
    println!("phi4, blocks: {off:.1e} of the largest logit");
    assert!(off <= BOUNDS.rounded, "{off}");
    // What is written of it is PEFT's own file.
    let dir = tempfile::tempdir().unwrap();
    adapter.save_peft(dir.path(), epiphyte::DType::F32, &shape).unwrap();
    let read = |dir: &std::path::Path, name: &str| std::fs::read(dir.join(name)).unwrap();
    let [theirs, ours] = [path.as_path(), dir.path()].map(|dir| {
        let (config, _) = LoraConfig::parse(&read(dir, "adapter_config.json")).unwrap();
        let bytes = read(dir, "adapter_model.safetensors");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        tensors.sort();
        (config.modules(&shape).unwrap(), tensors)
    });
    assert_eq!(theirs.0, ours.0);
    assert!(theirs.1 == ours.1);
}

/// Linears that a file holds as one are one in the exported file, too.
#[test]
fn an_exported_phi_answers_as_with_its_adapter() {
    let base = Gguf::open(file("phi4")).unwrap();
    let shape = epiphyte::base::ModelConfig::from_gguf(&base).unwrap().base_shape();
    let adapter = Adapter::load(golden("families/phi4"), &shape).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("merged.gguf");
    let adapters = [(&adapter, 1.0)];
    let to = (path.as_path(), epiphyte::DType::F16);
    let report =
        epiphyte::export::export_gguf(&base, &shape, &adapters, to, &mut |_, _| ()).unwrap();
    let merged: Vec<_> = report.merged.iter().map(|tensor| tensor.name.as_str()).collect();
    assert!(merged.contains(&"blk.1.attn_qkv.weight") && merged.contains(&"blk.0.ffn_up.weight"));
    assert_eq!(merged.len(), 2 * 4);
    let options = EngineOptions { context: Some(256), ..EngineOptions::default() };
    let engine = Engine::open(&path, options).unwrap();
    let off = distance(&adapted::logits(&engine, &[], &ids(), &[96]), "phi4.lora");
    println!("phi4, exported in F16: {off:.1e} of the largest logit");
    assert!(off <= BOUNDS.rounded, "{off}");
}

/// From the low bits of SplitMix64, seed 0.
fn signs() -> impl Iterator<Item = f64> {
    (1..).map(|i: u64| {
        let mut z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        1.0 - 2.0 * ((z ^ (z >> 31)) & 1) as f64
    })
}

/// Norm and projection of each factor's gradient, in the order of the names.
fn told(modules: &[LoraModule]) -> Vec<[f64; 2]> {
    let mut all: Vec<(String, &[f32])> = modules
        .iter()
        .flat_map(|m| {
            [(format!("{}.lora_A", m.path), &m.a[..]), (format!("{}.lora_B", m.path), &m.b)]
        })
        .collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let projection =
        |v: &[f32]| v.iter().zip(signs()).map(|(v, sign)| f64::from(*v) * sign).sum::<f64>();
    all.iter().map(|(_, gradient)| [norm(gradient), projection(gradient)]).collect()
}

#[test]
fn training_of_every_family_is_that_of_peft() {
    let weights = values("weights", f32::from_le_bytes);
    let data = Arc::new(Dataset::of([Example { ids: ids(), weights }]));
    for family in FAMILIES {
        let gpu = GpuOptions { cooperative_matrix: false, ..GpuOptions::default() };
        let engine =
            Engine::open(file(family), EngineOptions { gpu, ..EngineOptions::default() }).unwrap();
        let init =
            Adapter::load(golden(&format!("families/{family}")), &engine.base().adapter_shape())
                .unwrap();
        let of = |what: &str| values(&format!("{family}.{what}"), f64::from_le_bytes);
        for checkpoint_every in [None, Some(1), Some(2)] {
            let case = format!("{family}, checkpoints {checkpoint_every:?}");
            let options = TrainOptions {
                batch_size: 1,
                gradient_accumulation_steps: 1,
                seq_len: 96,
                checkpoint_every,
                ..crate::train::ten_steps()
            };
            let mut trainer =
                Trainer::new(&engine, Arc::clone(&data), options, Some(&init)).unwrap();
            let (_, gradients) = trainer.gradients(&in_order(&data, 96)).unwrap();
            let (norms, projections) = (of("norms"), of("projections"));
            let told = told(&gradients.modules);
            assert_eq!(told.len(), norms.len(), "{case}");
            let gradient = told
                .iter()
                .zip(norms.iter().zip(&projections))
                .flat_map(|([n, p], (norm, projection))| {
                    [(n - norm).abs() / norm, (p - projection).abs() / norm]
                })
                .fold(0.0, f64::max);
            let losses = of("losses")
                .into_iter()
                .map(|expected| (trainer.step().unwrap().unwrap().loss / expected - 1.0).abs());
            let losses = losses.fold(0.0, f64::max);
            println!("{case}: gradients off by at most {gradient:.1e}, losses by {losses:.1e}");
            assert!(gradient <= BOUNDS.gradient, "{case}: {gradient}");
            assert!(losses <= BOUNDS.losses, "{case}: {losses}");
        }
    }
}

#[test]
fn a_config_json_says_what_the_file_says() {
    for family in FAMILIES {
        let text = std::fs::read_to_string(golden(&format!("families/{family}.json"))).unwrap();
        let gguf = Gguf::open(file(family)).unwrap();
        let from_json = epiphyte::base::ModelConfig::from_json(&text).unwrap();
        let from_gguf = epiphyte::base::ModelConfig::from_gguf(&gguf).unwrap();
        assert_eq!(from_json, from_gguf, "{family}");
    }
}
