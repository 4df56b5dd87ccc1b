//! The trainer on a tiny model: the slope of its loss, and that it learns.

use std::sync::{Arc, LazyLock};

use epiphyte::adapter::Adapter;
use epiphyte::train::data::batch::MicroBatch;
use epiphyte::train::data::{Dataset, Example, TrainLength};
use epiphyte::train::schedule::{Decay, Warmup};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{Engine, EngineOptions};

use crate::common::{Random, golden};

const VOCAB: u32 = 288;

pub(super) static ENGINE: LazyLock<Arc<Engine>> =
    LazyLock::new(|| Engine::open(golden("tiny_llama.gguf"), EngineOptions::default()).unwrap());

/// Examples in which the same few tokens follow each other.
pub(super) fn examples(seed: u64, count: usize) -> Arc<Dataset> {
    let mut random = Random::new(seed);
    let mut data = Dataset::default();
    data.append(Dataset::of((0..count).map(|_| {
        let len = 5 + random.below(12) as usize;
        let first = 3 + random.below(20);
        let ids: Vec<u32> = (0..len as u32).map(|i| 3 + (first + 7 * i) % (VOCAB - 3)).collect();
        let weights =
            (0..len).map(|i| if i == 0 { 0.0 } else { 0.25 + (i % 4) as f32 * 0.25 }).collect();
        Example { ids, weights }
    })));
    Arc::new(data)
}

pub(super) fn options() -> TrainOptions {
    TrainOptions {
        rank: 4,
        lora_alpha: 8.0,
        learning_rate: Some(5e-3),
        decay: Decay::Constant,
        warmup: Warmup::Steps(0),
        duration: TrainLength::Steps(12),
        micro_batch: 2,
        seq_len: 24,
        ..TrainOptions::default()
    }
}

pub(super) fn batches(data: &Dataset) -> Vec<MicroBatch> {
    epiphyte::train::data::batch::in_order(data, 48)
}

/// `adapter` moved by `step` times `direction`.
fn moved(adapter: &Adapter, direction: &Adapter, step: f32) -> Adapter {
    let mut adapter = adapter.clone();
    for (module, direction) in adapter.modules.iter_mut().zip(&direction.modules) {
        module.a.iter_mut().zip(&direction.a).for_each(|(a, d)| *a += step * d);
        module.b.iter_mut().zip(&direction.b).for_each(|(b, d)| *b += step * d);
    }
    adapter
}

#[test]
fn the_loss_falls_as_the_gradient_says() {
    let data = examples(1, 12);
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), options(), None).unwrap();
    for _ in 0..3 {
        trainer.step().unwrap();
    }
    let (here, batches) = (trainer.adapter().unwrap(), batches(&data));
    let (_, gradient) = trainer.gradients(&batches).unwrap();
    let square: f64 = gradient
        .modules
        .iter()
        .flat_map(|module| module.a.iter().chain(&module.b))
        .map(|g| f64::from(*g) * f64::from(*g))
        .sum();
    let loss = |step: f32| {
        let adapter = moved(&here, &gradient, step);
        Trainer::new(&ENGINE, Arc::clone(&data), options(), Some(&adapter))
            .unwrap()
            .evaluate(&batches)
            .unwrap()
    };
    let step = 0.02 / square.sqrt() as f32;
    let slope = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
    println!("slope {slope}, square of the gradient {square}");
    assert!((slope / square - 1.0).abs() < 5e-3, "{slope} {square}");
}

#[test]
fn training_learns() {
    let data = examples(2, 16);
    let mut trainer = Trainer::new(
        &ENGINE,
        Arc::clone(&data),
        TrainOptions { duration: TrainLength::Steps(40), ..options() },
        None,
    )
    .unwrap();
    let before = trainer.evaluate(&batches(&data)).unwrap();
    while let Some(record) = trainer.step().unwrap() {
        println!("{record:?}");
    }
    let after = trainer.evaluate(&batches(&data)).unwrap();
    println!("{before} {after}");
    assert!(after < 0.7 * before);
}
