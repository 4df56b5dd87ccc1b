//! Steps of the trainer against the optimisers' definitions in f64, on the gradients that the
//! device finds.

use std::sync::Arc;

use epiphyte::adapter::Adapter;
use epiphyte::train::buffers::Optimizer;
use epiphyte::train::data::Dataset;
use epiphyte::train::{TrainOptions, Trainer};

use super::trainer::{ENGINE, batches, examples, options};

const STEPS: u64 = 3;
const LR: f64 = 1e-3;
const RATIO: f64 = 4.0;
const MOMENTUM: f64 = 0.9;
const WEIGHT_DECAY: f64 = 0.1;
const MAX_NORM: f64 = 0.5;

/// Values of A, then of B, each with its learning rate.
fn flat(adapter: &Adapter) -> Vec<(f64, f64)> {
    let a =
        adapter.modules.iter().flat_map(|module| &module.a).map(|value| (f64::from(*value), LR));
    let b = adapter
        .modules
        .iter()
        .flat_map(|module| &module.b)
        .map(|value| (f64::from(*value), LR * RATIO));
    a.chain(b).collect()
}

/// One parameter's state.
#[derive(Clone, Copy, Default)]
struct State {
    m: f64,
    /// m with every term positive: what rounding is in parts of, where terms cancel.
    size: f64,
    v: f64,
}

/// What is taken from `w`, and its size.
fn update(
    optimizer: Optimizer,
    state: &mut State,
    (w, lr): (f64, f64),
    g: f64,
    step: u64,
) -> (f64, f64) {
    let decay = WEIGHT_DECAY * w;
    let (beta1, beta2, t) = (0.9_f64, 0.999_f64, step as i32);
    let (keep, gain, coupled) = match optimizer {
        Optimizer::AdamW => (beta1, 1.0 - beta1, 0.0),
        Optimizer::Momentum => (MOMENTUM, 1.0, decay),
        Optimizer::Sgd => (0.0, 1.0, decay),
    };
    state.m = keep * state.m + gain * g + coupled;
    state.size = keep * state.size + gain * g.abs() + coupled.abs();
    if optimizer != Optimizer::AdamW {
        return (lr * state.m, lr * state.size);
    }
    state.v = beta2 * state.v + (1.0 - beta2) * g * g;
    let by =
        |m: f64| lr * m / (1.0 - beta1.powi(t)) / ((state.v / (1.0 - beta2.powi(t))).sqrt() + 1e-8);
    (lr * decay + by(state.m), lr * decay.abs() + by(state.size))
}

/// Takes the steps; gives the largest error in parts of what rounding allows.
fn check(optimizer: Optimizer) -> f64 {
    // One example, so that every step is over the same batch.
    let data: Arc<Dataset> = examples(11, 1);
    let options = TrainOptions {
        optimizer,
        learning_rate: Some(LR),
        lora_plus_ratio: RATIO,
        momentum: MOMENTUM,
        weight_decay: WEIGHT_DECAY,
        max_grad_norm: Some(MAX_NORM),
        ..options()
    };
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), options, None).unwrap();
    let batches = batches(&data);
    let mut states = vec![State::default(); trainer.parameters()];
    let mut worst = 0.0_f64;
    for step in 1..=STEPS {
        let before = flat(&trainer.adapter().unwrap());
        let gradient = flat(&trainer.gradients(&batches).unwrap().1);
        let norm = gradient.iter().map(|(g, _)| g * g).sum::<f64>().sqrt();
        let record = trainer.step().unwrap().unwrap();
        assert!(
            (record.grad_norm.unwrap() / norm - 1.0).abs() < 1e-5,
            "{:?} {norm}",
            record.grad_norm
        );
        assert!(norm > MAX_NORM, "{norm}: nothing is clipped");
        let after = flat(&trainer.adapter().unwrap());
        for (i, state) in states.iter_mut().enumerate() {
            let g = gradient[i].0 * MAX_NORM / norm;
            let (by, size) = update(optimizer, state, before[i], g, step);
            // An f32 weight; and about 20 operations on the way to what is taken from it, the norm
            // among them.
            let allowed = f64::from(f32::EPSILON) * (before[i].0.abs() + 32.0 * size) + 1e-37;
            worst = worst.max((before[i].0 - by - after[i].0).abs() / allowed);
        }
        assert!(after.iter().zip(&before).any(|(after, before)| after != before));
    }
    worst
}

#[test]
fn steps_are_those_of_the_definitions() {
    for optimizer in [Optimizer::Sgd, Optimizer::Momentum, Optimizer::AdamW] {
        let worst = check(optimizer);
        println!("{optimizer:?}: {worst} of what is allowed");
        assert!(worst < 1.0, "{optimizer:?} {worst}");
    }
}
