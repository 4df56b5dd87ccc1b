//! `sqrt(Σ g²)` over one buffer or several.

use epiphyte::gpu::{Gpu, Tensor};
use epiphyte::kernels::grad_norm::{self, FinalParams, LANES, PartialParams, RUN};
use proptest::prelude::*;

use super::oracle::{SQRT, gamma, strided_depth};
use super::{Checked, GUARD, Near, Output, Random, for_all, seed, submit};

/// The norm, in slot 1, of `grads` from `offset` on and of all `others`.
fn norm(gpu: &Gpu, grads: &[f32], offset: usize, others: &[f32]) -> Checked<Output> {
    let out = Output::poisoned(gpu, 2)?;
    let [len, more] = [grads.len() - offset, others.len()].map(|len| len as u32);
    let count = grad_norm::partials(len) + grad_norm::partials(more);
    let partials = Output::poisoned(gpu, count as usize)?;
    let sum_op = |grads: &[f32]| {
        Checked::Ok(gpu.op(&grad_norm::partial_spec(), &[&upload(gpu, grads)?, &partials.tensor])?)
    };
    let (one, two) = (sum_op(grads)?, sum_op(others)?);
    let last = gpu.op(&grad_norm::final_spec(), &[&partials.tensor, &out.tensor])?;
    submit(gpu, |commands| {
        let first = PartialParams { offset: offset as u32, len, partial0: 0 };
        grad_norm::record_partial(commands, &one, first);
        let second = PartialParams { offset: 0, len: more, partial0: grad_norm::partials(len) };
        grad_norm::record_partial(commands, &two, second);
        grad_norm::record_final(commands, &last, FinalParams { count, slot: 1 });
    })?;
    let after = partials.read(gpu)?;
    let kept = after[count as usize..].iter().zip(&partials.before[count as usize..]);
    assert!(kept.clone().count() == GUARD && kept.clone().all(|(a, b)| a.to_bits() == b.to_bits()));
    Ok(out)
}

/// Followed by what must not be counted.
fn upload(gpu: &Gpu, grads: &[f32]) -> Checked<Tensor> {
    let all: Vec<f32> = grads.iter().copied().chain([f32::NAN; GUARD]).collect();
    Ok(gpu.upload("grads", &all)?)
}

#[test]
fn grad_norm_is_the_formula() {
    let run = RUN as usize;
    let len = prop_oneof![
        1usize..600,
        proptest::sample::select(vec![run - 1, run, run + 1, 3 * run + 77])
    ];
    let cases =
        (len, 0usize..600, 0usize..5, prop_oneof![Just(1e-6f32), Just(1.0), Just(1e6)], seed());
    for_all(10, cases, |gpu, &(len, more, offset, size, seed)| {
        let mut random = Random(seed);
        let (grads, others) = (random.vec(offset + len, size), random.vec(more, size));
        let out = norm(gpu, &grads, offset, &others)?;
        let value = grads[offset..]
            .iter()
            .chain(&others)
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        // A product, a run's additions, then the partials'; the root halves it. Squares below 1e-38
        // may be flushed.
        let depth = 1 + 2 * strided_depth(run, LANES);
        let bound = (0.5 * gamma(depth) + SQRT) * value + (2e-38 * (len + more) as f64).sqrt();
        out.check(gpu, &[None, Some(Near { value, bound })])
    });
}

#[test]
fn a_gradient_that_is_no_number_is_seen() {
    for_all(3, (1usize..40_000, seed()), |gpu, &(len, seed)| {
        let mut random = Random(seed);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            let mut grads = random.vec(len, 1.0);
            grads[random.below(len)] = bad;
            let norm = norm(gpu, &grads, 0, &[])?.read(gpu)?[1];
            assert!(!norm.is_finite(), "{bad} gives {norm}");
        }
        Ok(())
    });
}
