//! Gradients: the same however the work is cut up, and the memory that each way takes.

use std::sync::Arc;

use epiphyte::adapter::Adapter;
use epiphyte::gpu::Tally;
use epiphyte::train::buffers::Optimizer;
use epiphyte::train::data::batch::{MicroBatch, in_order};
use epiphyte::train::data::{Dataset, Example};
use epiphyte::train::plan::Site;
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{Engine, EngineOptions};

use super::trainer::{ENGINE, batches, examples, options};
use crate::common::golden;

/// A trainer some steps in, so that neither factor is zero.
fn start() -> Adapter {
    let mut trainer = Trainer::new(&ENGINE, examples(7, 12), options(), None).unwrap();
    for _ in 0..4 {
        trainer.step().unwrap();
    }
    trainer.adapter().unwrap()
}

fn gradients(
    options: TrainOptions,
    from: &Adapter,
    data: &Arc<Dataset>,
    batches: &[MicroBatch],
) -> (f64, Adapter) {
    Trainer::new(&ENGINE, Arc::clone(data), options, Some(from))
        .unwrap()
        .gradients(batches)
        .unwrap()
}

fn bits(adapter: &Adapter) -> Vec<u32> {
    adapter
        .modules
        .iter()
        .flat_map(|module| module.a.iter().chain(&module.b))
        .map(|value| value.to_bits())
        .collect()
}

/// Largest difference of a module's factor, in parts of the factor's norm.
pub(super) fn difference(one: &Adapter, other: &Adapter) -> f64 {
    let mut largest = 0.0_f64;
    for (one, other) in one.modules.iter().zip(&other.modules) {
        assert_eq!(one.path, other.path);
        for (one, other) in [(&one.a, &other.a), (&one.b, &other.b)] {
            let square = |value: &f32| f64::from(*value).powi(2);
            let norm = one.iter().map(square).sum::<f64>().sqrt();
            let apart = one.iter().zip(other).map(|(a, b)| square(&(a - b))).sum::<f64>().sqrt();
            assert!(norm > 0.0, "a factor without gradient shows nothing");
            largest = largest.max(apart / norm);
        }
    }
    largest
}

/// Rounding on the way to a gradient, in parts of it: a chain of 2 layers of 7 products, forward
/// and backward, each of at most 128 terms in f32, and a sum over at most 96 tokens. Errors of
/// random sign grow as the root of their number.
fn rounding() -> f64 {
    let terms = 2.0 * 2.0 * 7.0 * 128.0 + 96.0;
    f64::sqrt(terms) * f64::from(f32::EPSILON) * 2.0
}

/// As [`rounding`], where products may have other factors to round: cooperative matrices take both
/// in f16, each off by 2^-11 of itself in the mean, whether it is rounded or cut off, and so is the
/// product, however many its terms.
pub(super) fn rounding_of_factors() -> f64 {
    let factors =
        if ENGINE.gpu().caps().cooperative_matrix.is_some() { 2.0 * 2.0 * 7.0 * 2.0 } else { 0.0 };
    rounding() + f64::sqrt(factors) / 2048.0 * 2.0
}

#[test]
fn checkpointing_changes_no_bit() {
    let (from, data) = (start(), examples(3, 10));
    let of = |checkpoint_every| {
        gradients(TrainOptions { checkpoint_every, ..options() }, &from, &data, &batches(&data))
    };
    let (loss, none) = of(None);
    for every in [1, 2] {
        let (other_loss, other) = of(Some(every));
        assert_eq!(loss.to_bits(), other_loss.to_bits(), "every {every}");
        assert!(bits(&none) == bits(&other), "every {every}");
    }
}

#[test]
fn two_small_batches_are_one_of_twice_the_size() {
    let (from, data) = (start(), examples(4, 10));
    let (small, large) = (in_order(&data, 24), in_order(&data, 48));
    assert_eq!(small.len().div_ceil(2), large.len());
    let (loss, gradient) = gradients(options(), &from, &data, &large);
    let (other_loss, other) = gradients(options(), &from, &data, &small);
    let apart = difference(&gradient, &other);
    println!("loss {loss} {other_loss}, gradients {apart:e} of {:e} apart", rounding());
    assert!((loss - other_loss).abs() < rounding() * loss && apart < rounding());
    // And in a step, which is the same examples however many passes hold them, and however they are
    // accumulated.
    let step = |micro_batch, batch_size, gradient_accumulation_steps| {
        let optimizer = Optimizer::Sgd;
        let options = TrainOptions {
            micro_batch,
            batch_size,
            gradient_accumulation_steps,
            optimizer,
            ..options()
        };
        let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), options, Some(&from)).unwrap();
        let record = trainer.step().unwrap().unwrap();
        (record.loss, record.grad_norm.unwrap())
    };
    let one = step(4, 8, 1);
    for other in [step(1, 8, 1), step(1, 2, 4), step(2, 4, 2)] {
        let near = |one: f64, other: f64| (one - other).abs() < rounding() * one;
        assert!(near(one.0, other.0) && near(one.1, other.1), "{one:?} {other:?}");
    }
}

#[test]
fn packing_changes_no_gradient() {
    let (from, data) = (start(), examples(5, 6));
    // One example a row, against as many as fit.
    let alone: Vec<MicroBatch> = data
        .examples
        .iter()
        .flat_map(|Example { ids, weights }| {
            let one = Dataset::of([Example { ids: ids.clone(), weights: weights.clone() }]);
            in_order(&one, 48)
        })
        .collect();
    let packed = in_order(&data, 48);
    assert!(
        alone.len() == 6
            && packed.len() < 4
            && packed.iter().any(|batch| batch.rows[batch.len() - 1][0] > 0)
    );
    let options = TrainOptions { seq_len: 48, micro_batch: 1, ..options() };
    let (loss, gradient) = gradients(options.clone(), &from, &data, &packed);
    let (other_loss, other) = gradients(options, &from, &data, &alone);
    let apart = difference(&gradient, &other);
    let bound = rounding_of_factors();
    println!("loss {loss} {other_loss}, gradients {apart:e} of {bound:e} apart");
    assert!((loss - other_loss).abs() < bound * loss && apart < bound);
}

#[test]
fn the_trainer_takes_what_the_plan_says() {
    // Its own: other tests take and give back meanwhile.
    let engine = Engine::open(golden("tiny_llama.gguf"), EngineOptions::default()).unwrap();
    let (base, gpu) = (engine.base(), engine.gpu());
    let site = Site { config: &base.config, beside: Tally::new(gpu.caps()) };
    let attention = ["q_proj", "v_proj"].map(String::from).to_vec();
    let settings = [
        options(),
        TrainOptions { checkpoint_every: None, ..options() },
        TrainOptions { rank: 16, optimizer: Optimizer::Sgd, ..options() },
        TrainOptions { micro_batch: 4, seq_len: 100, optimizer: Optimizer::Momentum, ..options() },
        TrainOptions { target_modules: attention, checkpoint_every: Some(2), ..options() },
        TrainOptions { rank: 1, micro_batch: 1, seq_len: 25, ..options() },
    ];
    for options in settings {
        let planned = site.training(&options.shape().unwrap()).unwrap().total_bytes();
        let before = gpu.allocated_bytes();
        let trainer = Trainer::new(&engine, examples(6, 4), options, None).unwrap();
        let taken = gpu.allocated_bytes() - before;
        println!("{taken} bytes taken, {planned} planned");
        assert_eq!(taken, trainer.bytes());
        assert_eq!(taken, planned);
        drop(trainer);
        assert_eq!(gpu.allocated_bytes(), before);
    }
}
