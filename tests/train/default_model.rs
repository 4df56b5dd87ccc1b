//! The trainer on the default model against PEFT and torch in f64: gradients and two steps. See
//! `tests/golden/model_step.py`.

use std::sync::Arc;

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule, Modules, Target};
use epiphyte::train::data::batch::in_order;
use epiphyte::train::data::{Dataset, Example, TrainLength};
use epiphyte::train::schedule::{Decay, Warmup};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{Engine, EngineOptions};
use safetensors::SafeTensors;

use crate::common::skip::whole;
use crate::common::{Random, golden, model_path};

const RANK: usize = 4;
/// As `model_step.py` draws.
const FACTORS_SEED: u64 = 11;
const SIGNS_SEED: u64 = 12;

/// How far off something may be, relative to its size; beside each the most that was seen.
struct Bounds {
    /// The whole gradient.
    gradient: f64,
    /// One factor's, by random projections.
    factor: f64,
    loss: f64,
    norm: f64,
}

/// In f32. Seen on lavapipe 22.3.
const F32: Bounds = Bounds {
    gradient: 2e-3, // 2.6e-4
    factor: 6e-3,   // 8.3e-4
    loss: 1e-5,     // 1.3e-6
    norm: 2e-4,     // 2.1e-5
};
/// Where cooperative matrices round activations and weights to f16. Seen on lavapipe 26.2.
const F16: Bounds = Bounds {
    gradient: 1e-2, // 2.9e-3
    factor: 4e-2,   // 9.2e-3
    loss: 5e-3,
    norm: 5e-3,
};

fn options() -> TrainOptions {
    TrainOptions {
        rank: RANK,
        lora_alpha: 8.0,
        learning_rate: Some(1e-3),
        weight_decay: 0.01,
        decay: Decay::Constant,
        warmup: Warmup::Steps(0),
        duration: TrainLength::Steps(2),
        seq_len: 64,
        ..TrainOptions::default()
    }
}

/// The factors that the golden run starts from.
fn first_factors(shape: &BaseShape) -> Adapter {
    let mut random = Random::new(FACTORS_SEED);
    let mut draw =
        |len: usize, size: f32| (0..len).map(|_| random.signed(size)).collect::<Vec<_>>();
    let mut modules = Vec::new();
    for path in shape.modules().filter(|path| path.layer.is_some()) {
        let [n, k] = shape.shape(path.target);
        let (a, b) = (draw(RANK * k, 1.0 / 32.0), draw(n * RANK, 1.0 / 64.0));
        modules.push(LoraModule { path, rank: RANK, a, b, scaling: 2.0 });
    }
    let target_modules =
        Modules::Names(Target::ALL[..7].iter().map(|target| target.name().into()).collect());
    let config = LoraConfig { r: RANK, lora_alpha: 8.0, target_modules, ..LoraConfig::default() };
    Adapter::new(config, modules, None, shape).unwrap()
}

fn f64s(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
}

fn example(file: &SafeTensors<'_>) -> Example {
    let (ids, weights) = (file.tensor("ids").unwrap(), file.tensor("weights").unwrap());
    Example {
        ids: ids.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as u32).collect(),
        weights: weights.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}

/// The square of a gradient's norm; how far that norm is from the golden one, in parts; and an
/// estimate of the squared difference from the golden gradient: on average over random signs, the
/// square of the difference of two signed sums.
fn compare(gradient: &[f32], golden: &[f64], random: &mut Random) -> (f64, f64, f64) {
    let (norm, sums) = golden.split_first().unwrap();
    let mut found = vec![0.0; sums.len()];
    for &g in gradient {
        let bits = random.below(1 << sums.len());
        for (i, sum) in found.iter_mut().enumerate() {
            *sum += if bits >> i & 1 == 0 { f64::from(g) } else { -f64::from(g) };
        }
    }
    let square = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let apart =
        found.iter().zip(sums).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / sums.len() as f64;
    (square, (square.sqrt() / norm - 1.0).abs(), apart)
}

#[test]
fn gradients_and_steps_are_those_of_peft() {
    if !whole("three passes of the default model, 3 minutes on a software GPU") {
        return;
    }
    let Some(path) = model_path() else { return };
    let bytes = std::fs::read(golden("model_step.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let engine = Engine::open(path, EngineOptions::default()).unwrap();
    let cooperative = engine.gpu().caps().cooperative_matrix.is_some();
    let bounds = if cooperative { F16 } else { F32 };
    let first = first_factors(&engine.base().adapter_shape());
    let data = Arc::new(Dataset::of([example(&file)]));
    let mut trainer = Trainer::new(&engine, Arc::clone(&data), options(), Some(&first)).unwrap();

    let (_, gradients) = trainer.gradients(&in_order(&data, 64)).unwrap();
    let mut random = Random::new(SIGNS_SEED);
    let (mut all, mut apart, mut worst) = (0.0, 0.0, (0.0, String::new()));
    for module in &gradients.modules {
        for (factor, values) in [("lora_A", &module.a), ("lora_B", &module.b)] {
            let name = format!("{}.{factor}", module.path);
            let (square, off, difference) = compare(values, &f64s(&file, &name), &mut random);
            let relative = off.max((difference / square).sqrt());
            if relative > worst.0 {
                worst = (relative, name);
            }
            all += square;
            apart += difference;
        }
    }
    let whole = f64::sqrt(apart / all);
    println!(
        "gradients: {whole:.1e} of their norm apart; of one factor {:.1e}, {}",
        worst.0, worst.1
    );
    assert!(whole <= bounds.gradient && worst.0 <= bounds.factor, "{whole} {worst:?}");

    for (expected, norm) in f64s(&file, "losses").into_iter().zip(f64s(&file, "norms")) {
        let record = trainer.step().unwrap().unwrap();
        let off =
            [record.loss / expected - 1.0, record.grad_norm.unwrap() / norm - 1.0].map(f64::abs);
        println!(
            "step {}: loss off by {:.1e}, norm by {:.1e}; {:.1} s",
            record.step, off[0], off[1], record.seconds
        );
        let fits = off[0] <= bounds.loss && off[1] <= bounds.norm;
        assert!(fits, "{record:?}, not {expected} and {norm}");
    }
    assert!(trainer.step().unwrap().is_none());
}
