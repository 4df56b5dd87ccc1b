//! `weight (lse(logits) - logits[target])` and its gradient in the place of the logits.

use epiphyte::kernels::cross_entropy::{CrossEntropyParams, LANES, record, spec};
use proptest::prelude::*;

use super::oracle::{DIV, EPS, check_gradient, exp_error, gamma, log_error, strided_depth, to_f64};
use super::{Near, Output, Random, for_all, seed, submit};

/// The loss of a row and its gradient.
fn oracle(logits: &[f64], target: usize, weight: f64) -> (f64, Vec<f64>) {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
    let share = |(v, x): (usize, &f64)| (x - top).exp() / sum - f64::from(u8::from(v == target));
    let loss = weight * (top + sum.ln() - logits[target]);
    (loss, logits.iter().enumerate().map(share).map(|d| weight * d).collect())
}

/// [`oracle`] and how far the kernel may be from it.
fn near(logits: &[f32], target: usize, weight: f32) -> (Near, Vec<Near>) {
    let (logits, weight) = (to_f64(logits), f64::from(weight));
    let (loss, gradient) = oracle(&logits, target, weight);
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = powers.iter().sum();
    // e^(x - top): the difference is rounded, then exp. Below e^-87 the result may be flushed to 0.
    let power_error = |x: f64| EPS * (top - x) + exp_error(top - x);
    let flushed = 2e-38;
    let terms: f64 = logits.iter().zip(&powers).map(|(x, p)| p * power_error(*x) + flushed).sum();
    let sum_error = terms / sum + gamma(strided_depth(logits.len(), LANES));
    let fall = top - logits[target];
    // The difference, the logarithm, their sum, the weight.
    let loss_bound = weight * (EPS * fall + sum_error + log_error(sum)) + 2.0 * EPS * loss.abs();
    let element = |(v, (x, power)): (usize, (&f64, &f64))| {
        let share = weight * power / sum;
        let off = share * (power_error(*x) + sum_error + DIV + EPS) + weight / sum * flushed;
        Near { value: gradient[v], bound: 1.01 * (off + EPS * gradient[v].abs()) + 1e-37 }
    };
    let elements = logits.iter().zip(&powers).enumerate().map(element).collect();
    (Near { value: loss, bound: 1.01 * loss_bound + 1e-37 }, elements)
}

#[test]
fn cross_entropy_is_the_formula_and_its_gradient() {
    let vocab =
        prop_oneof![proptest::sample::select(vec![1usize, 2, 255, 256, 257, 511]), 1usize..1500];
    let size = prop_oneof![Just(0.01f32), Just(8.0), Just(60.0)];
    let cases = (1usize..6, vocab, [0usize..4, 0..4, 0..4], size, seed());
    for_all(12, cases, |gpu, &(rows, vocab, [rest, row0, loss0], size, seed)| {
        let (stride, mut random) = (vocab + rest, Random(seed));
        let targets: Vec<u32> = (0..row0 + rows).map(|_| random.below(vocab) as u32).collect();
        // Rows of weight 0 are there, but count for nothing.
        let mut weights: Vec<f32> = random.vec(row0 + rows, 0.5).iter().map(|w| w.abs()).collect();
        weights[row0] = 0.0;
        let logits = Output::holding(gpu, random.vec(rows * stride, size), false)?;
        let losses = Output::poisoned(gpu, loss0 + rows)?;
        let inputs = [gpu.upload("targets", &targets)?, gpu.upload("weights", &weights)?];
        let op = gpu.op(&spec(), &[&inputs[0], &inputs[1], &logits.tensor, &losses.tensor])?;
        let params = CrossEntropyParams {
            vocab: vocab as u32,
            stride: stride as u32,
            row0: row0 as u32,
            loss0: loss0 as u32,
        };
        submit(gpu, |commands| record(commands, &op, params, rows as u32))?;
        let mut expected = (vec![None; loss0], vec![None; rows * stride]);
        for c in 0..rows {
            let row = &logits.before[c * stride..][..vocab];
            let (loss, gradient) = near(row, targets[row0 + c] as usize, weights[row0 + c]);
            expected.0.push(Some(loss));
            expected.1[c * stride..][..vocab]
                .iter_mut()
                .zip(gradient)
                .for_each(|(e, near)| *e = Some(near));
        }
        losses.check(gpu, &expected.0)?;
        logits.check(gpu, &expected.1)
    });
}

#[test]
fn the_oracle_is_the_gradient() {
    let logits = to_f64(&Random(5).vec(9, 3.0));
    check_gradient(|logits| oracle(logits, 4, 0.3).0, &logits, &oracle(&logits, 4, 0.3).1);
}
