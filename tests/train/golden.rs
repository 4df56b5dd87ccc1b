//! Gradients and steps of `AdamW` against PEFT and torch in f64: see `tests/golden/train_step.py`.

use std::sync::Arc;

use epiphyte::adapter::{Adapter, Factor, LoraModule};
use epiphyte::train::data::batch::in_order;
use epiphyte::train::data::{Dataset, Example};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{Engine, EngineOptions, GpuOptions};
use half::f16;
use safetensors::SafeTensors;
use tempfile::NamedTempFile;

use crate::common::skip::skip;
use crate::common::writer::{Meta, Writer};
use crate::common::{Random, golden};

const HIDDEN: u64 = 256;
const FFN: u64 = 512;
const HEAD_DIM: u64 = 64;
const HEADS: u64 = 4;
const KV_HEADS: u64 = 2;
const VOCAB: u64 = 288;

/// How far off something may be, relative to its size; beside each the most that was seen.
#[derive(Clone, Copy)]
struct Bounds {
    /// A tensor's gradient.
    gradient: f64,
    /// The first loss.
    loss: f64,
    /// A later loss; their errors grow with the steps.
    losses: f64,
    /// A gradient's norm.
    norms: f64,
    /// How far ten steps move a factor.
    moved: f64,
}

/// In f32. Seen on lavapipe 22.3, on lavapipe 26.2 and on an NVIDIA H200.
const F32: Bounds = Bounds {
    gradient: 3e-5, // 4.5e-6, 6.0e-6, 8.4e-6
    loss: 4e-7,     // 4.5e-8, 4.8e-8, 4.5e-8
    losses: 2e-6,   // 2.5e-7, 1.9e-7, 1.3e-7
    norms: 6e-6,    // 6.9e-7, 4.6e-7, 1.1e-6
    moved: 6e-4,    // 7.3e-5, 6.8e-5, 2.8e-4
};
/// Where cooperative matrices round activations and weights to f16. Seen on lavapipe 26.2 and on
/// an NVIDIA H200.
const F16: Bounds = Bounds {
    gradient: 1e-2, // 1.7e-3, 1.7e-3
    loss: 2e-4,     // 3.6e-5, 2.9e-5
    losses: 6e-4,   // 1.2e-4, 2.3e-4
    norms: 6e-3,    // 1.1e-3, 2.1e-3
    moved: 6e-2,    // 1.2e-2, 1.1e-2
};

/// A type of matrices: its blocks, and as `TYPES` in the script.
#[derive(Clone, Copy)]
struct Type {
    name: &'static str,
    ggml: u32,
    weights: u64,
    bytes: usize,
    second: Option<f32>,
    scales: i32,
}

const TYPES: [Type; 3] = [
    Type { name: "q4_0", ggml: 2, weights: 32, bytes: 18, second: None, scales: 0 },
    Type { name: "q4_1", ggml: 3, weights: 32, bytes: 20, second: Some(-7.0), scales: 0 },
    Type { name: "q4_k", ggml: 12, weights: 256, bytes: 144, second: Some(7.0), scales: 6 },
];

impl Type {
    /// As `matrix` in the script.
    fn matrix(&self, seed: u64, n: u64, exponent: i32) -> Vec<u8> {
        let mut random = Random::new(seed);
        let mut raw: Vec<u8> = (0..(n / self.weights) as usize * self.bytes)
            .map(|_| random.below(256) as u8)
            .collect();
        for block in raw.chunks_exact_mut(self.bytes) {
            let d = f32::from(64 + (block[0] >> 2)) * 2_f32.powi(-(exponent + self.scales));
            block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            if let Some(second) = self.second {
                block[2..4].copy_from_slice(&f16::from_f32(second * d).to_le_bytes());
            }
        }
        raw
    }

    /// The model that the script makes of this type, in f32 and on cooperative matrices where
    /// there are any.
    fn tiers(&self) -> Vec<Tier> {
        let file = self.file();
        let open = |cooperative_matrix| {
            let gpu = GpuOptions { cooperative_matrix, ..GpuOptions::default() };
            Engine::open(file.path(), EngineOptions { gpu, ..EngineOptions::default() }).unwrap()
        };
        let mut tiers = vec![("f32", open(false), F32)];
        let all = open(true);
        if all.gpu().caps().cooperative_matrix.is_some() {
            tiers.push(("f16", all, F16));
        } else {
            skip("in part, without the rounding of f16: no cooperative matrices");
        }
        tiers
    }

    fn file(&self) -> NamedTempFile {
        let mut writer = header();
        let mut seed = 0..;
        let mut matrix = |writer: Writer, name: &str, dims: [u64; 2], exponent| {
            let data = self.matrix(seed.next().unwrap(), dims[0] * dims[1], exponent);
            writer.tensor(&format!("{name}.weight"), &dims, self.ggml, data)
        };
        writer = matrix(writer, "token_embd", [HIDDEN, VOCAB], 12);
        for layer in 0..2 {
            for (name, dims) in [
                ("attn_q", [HIDDEN, HEADS * HEAD_DIM]),
                ("attn_k", [HIDDEN, KV_HEADS * HEAD_DIM]),
                ("attn_v", [HIDDEN, KV_HEADS * HEAD_DIM]),
                ("attn_output", [HEADS * HEAD_DIM, HIDDEN]),
                ("ffn_gate", [HIDDEN, FFN]),
                ("ffn_up", [HIDDEN, FFN]),
                ("ffn_down", [FFN, HIDDEN]),
            ] {
                writer = matrix(writer, &format!("blk.{layer}.{name}"), dims, 13);
            }
            writer = ["attn_norm", "ffn_norm"]
                .iter()
                .fold(writer, |w, name| norm(w, &format!("blk.{layer}.{name}")));
        }
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), norm(writer, "output_norm").bytes()).unwrap();
        file
    }
}

fn norm(writer: Writer, name: &str) -> Writer {
    let gain = (0..HIDDEN).flat_map(|i| (0.5 + (i % 7) as f32 / 6.0).to_le_bytes()).collect();
    writer.tensor(&format!("{name}.weight"), &[HIDDEN], 0, gain)
}

fn header() -> Writer {
    let sizes = [
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("block_count", 2),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("rope.dimension_count", HEAD_DIM),
        ("context_length", 64),
    ];
    let with_size = |writer: Writer, (key, n): (&str, u64)| {
        writer.key(&format!("llama.{key}"), Meta::U32(n as u32))
    };
    sizes
        .into_iter()
        .fold(Writer::new(), with_size)
        .key("general.architecture", Meta::Text("llama"))
        .key("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5))
        .key("tokenizer.ggml.model", Meta::Text("gpt2"))
        .key("tokenizer.ggml.merges", Meta::Texts(vec![]))
        .key("tokenizer.ggml.tokens", Meta::Texts((0..VOCAB).map(|i| format!("t{i}")).collect()))
        .key("tokenizer.ggml.token_type", Meta::I32s(vec![1; VOCAB as usize]))
}

/// What the script wrote.
struct Golden(Vec<u8>);

impl Golden {
    fn read() -> Self {
        Self(std::fs::read(golden("train_step.safetensors")).unwrap())
    }

    fn values<const N: usize, T>(&self, name: &str, of: impl Fn([u8; N]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&bytes| of(bytes)).collect()
    }

    /// The largest distance of a factor from what `prefix` and its name stand for. One that is
    /// `frozen` is all zeros.
    fn farthest(&self, prefix: &str, modules: &[LoraModule], frozen: Option<Factor>) -> f64 {
        assert_eq!(modules.len(), 14);
        let mut worst = 0.0_f64;
        for module in modules {
            for (factor, found) in [(Factor::A, &module.a), (Factor::B, &module.b)] {
                let name = format!("{prefix}{}.lora_{factor:?}", module.path);
                if frozen == Some(factor) {
                    assert!(found.iter().all(|value| *value == 0.0), "{name}");
                    continue;
                }
                let off = distance(found, &self.values(&name, f32::from_le_bytes));
                assert!(off.is_finite(), "{name}: {off}");
                worst = worst.max(off);
            }
        }
        worst
    }

    fn data(&self) -> Arc<Dataset> {
        let example = |i| Example {
            ids: self.values(&format!("{i}.ids"), |bytes| i64::from_le_bytes(bytes) as u32),
            weights: self.values(&format!("{i}.weights"), f32::from_le_bytes),
        };
        Arc::new(Dataset::of((0..2).map(example)))
    }
}

/// Both examples in one pass, or gradients of two passes added up: a step is the same two examples.
fn ways() -> [(&'static str, TrainOptions); 3] {
    let options = |batch_size, seq_len| TrainOptions {
        batch_size,
        gradient_accumulation_steps: 2 / batch_size,
        seq_len,
        ..super::ten_steps()
    };
    [("one pass", options(2, 24)), ("two passes", options(2, 14)), ("accumulated", options(1, 24))]
}

type Tier = (&'static str, Arc<Engine>, Bounds);

/// Every type on every tier in every way.
fn cases() -> Vec<(Type, Tier, (&'static str, TrainOptions))> {
    let of = |kind: Type| {
        kind.tiers().into_iter().flat_map(move |tier| ways().map(|way| (kind, tier.clone(), way)))
    };
    TYPES.into_iter().flat_map(of).collect()
}

fn trainer(engine: &Arc<Engine>, data: &Arc<Dataset>, options: TrainOptions) -> Trainer {
    let init = Adapter::load(golden("train_step"), &engine.base().adapter_shape()).unwrap();
    Trainer::new(engine, Arc::clone(data), options, Some(&init)).unwrap()
}

/// |found - expected| / |expected|.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let differences = found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e));
    norm(&mut { differences }) / norm(&mut expected.iter().map(|e| f64::from(*e)))
}

fn relative(found: f64, expected: f64) -> f64 {
    (found / expected - 1.0).abs()
}

#[test]
fn gradients_are_those_of_torch() {
    let golden = Golden::read();
    let data = golden.data();
    for (kind, (tier, engine, bounds), (way, options)) in cases() {
        let case = format!("{}, {tier}, {way}", kind.name);
        let batches = in_order(&data, options.seq_len);
        assert_eq!(batches.len(), if options.seq_len == 14 { 2 } else { 1 }, "{case}");
        let (loss, gradients) = trainer(&engine, &data, options).gradients(&batches).unwrap();
        let prefix = format!("{}.", kind.name);
        let gradient = golden.farthest(&prefix, &gradients.modules, None);
        let expected = golden.values(&format!("{}.loss", kind.name), f64::from_le_bytes)[0];
        let off = relative(loss, expected);
        println!("{case}: gradients off by at most {gradient:.1e}, the loss by {off:.1e}");
        assert!(gradient <= bounds.gradient, "{case}: {gradient}");
        assert!(off <= bounds.loss, "{case}: {loss}, {expected}");
    }
}

/// What was seen of ten steps, in parts of what torch has.
struct Seen {
    losses: f64,
    norms: f64,
    moved: f64,
}

/// Takes the steps that `prefix` stands for.
fn ten_steps(golden: &Golden, prefix: &str, mut trainer: Trainer) -> Seen {
    let [losses, norms] = ["losses", "norms"]
        .map(|what| golden.values(&format!("{prefix}.{what}"), f64::from_le_bytes));
    let (first, frozen) = (trainer.adapter().unwrap(), trainer.options().freeze);
    let mut seen = Seen { losses: 0.0, norms: 0.0, moved: 0.0 };
    for (loss, norm) in losses.iter().zip(&norms) {
        let record = trainer.step().unwrap().unwrap();
        seen.losses = seen.losses.max(relative(record.loss, *loss));
        seen.norms = seen.norms.max(relative(record.grad_norm.unwrap(), *norm));
    }
    assert!(trainer.step().unwrap().is_none());
    let mut moved = trainer.adapter().unwrap().modules;
    for (last, first) in moved.iter_mut().zip(&first.modules) {
        last.a.iter_mut().zip(&first.a).for_each(|(last, first)| *last -= first);
        last.b.iter_mut().zip(&first.b).for_each(|(last, first)| *last -= first);
    }
    seen.moved = golden.farthest(&format!("{prefix}.moved."), &moved, frozen);
    seen
}

impl Seen {
    fn check(&self, case: &str, bounds: Bounds) {
        let Self { losses, norms, moved } = self;
        println!(
            "{case}: losses off by at most {losses:.1e}, norms by {norms:.1e}, what the factors \
            moved by {moved:.1e}"
        );
        assert!(*losses <= bounds.losses, "{case}: {losses}");
        assert!(*norms <= bounds.norms, "{case}: {norms}");
        assert!(*moved <= bounds.moved, "{case}: {moved}");
    }
}

#[test]
fn ten_steps_are_those_of_torch() {
    let golden = Golden::read();
    let data = golden.data();
    for (kind, (tier, engine, bounds), (way, options)) in cases() {
        let case = format!("{}, {tier}, {way}", kind.name);
        ten_steps(&golden, kind.name, trainer(&engine, &data, options)).check(&case, bounds);
    }
}

#[test]
fn ten_steps_of_one_factor_and_with_a_proximal_term_are_those_of_torch() {
    let golden = Golden::read();
    let data = golden.data();
    let [_, (way, options), _] = ways();
    let variants = [
        ("freeze_a", TrainOptions { freeze: Some(Factor::A), ..options.clone() }),
        ("freeze_b", TrainOptions { freeze: Some(Factor::B), ..options.clone() }),
        ("proximal", TrainOptions { proximal_mu: 0.5, ..options }),
    ];
    for (tier, engine, bounds) in TYPES[0].tiers() {
        let batches = in_order(&data, 14);
        let whole = trainer(&engine, &data, variants[2].1.clone()).gradients(&batches).unwrap();
        for (variant, options) in &variants {
            let case = format!("{variant}, {tier}, {way}");
            let frozen = options.freeze;
            let trainer = trainer(&engine, &data, options.clone());
            let (loss, gradients) = trainer.gradients(&batches).unwrap();
            // The very same sums, made or left out.
            assert_eq!(loss, whole.0, "{case}");
            for (found, whole) in gradients.modules.iter().zip(&whole.1.modules) {
                assert!(found.a == whole.a || frozen == Some(Factor::A), "{case}");
                assert!(found.b == whole.b || frozen == Some(Factor::B), "{case}");
            }
            ten_steps(&golden, &format!("q4_0.{variant}"), trainer).check(&case, bounds);
        }
    }
}
