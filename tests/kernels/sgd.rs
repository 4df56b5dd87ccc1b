//! A step of SGD as torch.optim.SGD takes it after torch.nn.utils.clip_grad_norm_.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::grad_norm::NO_CLIP;
use epiphyte::kernels::sgd::{SgdParams, record, spec};
use proptest::prelude::*;

use super::oracle::{EPS, clipped};
use super::{Checked, Near, Output, Random, for_all, seed, submit};

/// Elements before and after the range.
const AROUND: usize = 3;

/// A step at `norm`; then gradients are 0, weights and buffer what the formula says or, at no
/// number, as they were.
fn check(
    gpu: &Gpu,
    len: usize,
    momentum: bool,
    norm: f32,
    params: SgdParams,
    seed: u64,
) -> Checked {
    let mut random = Random(seed);
    let mut output = |size| Output::holding(gpu, random.vec(len + 2 * AROUND, size), false);
    let [grads, weights, buffer] = [output(1.0)?, output(1.0)?, output(2.0)?];
    let norm_tensor = gpu.upload("norm", &[f32::NAN, norm])?;
    let op =
        gpu.op(&spec(momentum), &[&norm_tensor, &grads.tensor, &weights.tensor, &buffer.tensor])?;
    let params = SgdParams { offset: AROUND as u32, len: len as u32, slot: 1, ..params };
    submit(gpu, |commands| record(commands, &op, &params))?;
    let [mut zeroed, mut stepped, mut kept_sum] = [(); 3].map(|()| vec![None; len + 2 * AROUND]);
    let [lr, kept, decay] = [params.lr, params.momentum, params.weight_decay].map(f64::from);
    for i in AROUND..AROUND + len {
        zeroed[i] = Some(Near { value: 0.0, bound: 0.0 });
        if !norm.is_finite() {
            continue;
        }
        let [g, w, b] = [&grads, &weights, &buffer].map(|output| f64::from(output.before[i]));
        let g = clipped(g, norm, params.max_norm);
        let b = if momentum { kept * b } else { 0.0 };
        // Two products and two sums.
        let step = g.value + decay * w + b;
        let step_bound =
            g.bound + 3.0 * EPS * (g.value.abs() + g.bound + (decay * w).abs() + b.abs());
        let weight = w - lr * step;
        let weight_bound = lr * step_bound + EPS * (lr * step).abs() + EPS * weight.abs();
        stepped[i] = Some(Near { value: weight, bound: 1.001 * weight_bound });
        kept_sum[i] = momentum.then_some(Near { value: step, bound: 1.001 * step_bound });
    }
    grads.check(gpu, &zeroed)?;
    weights.check(gpu, &stepped)?;
    buffer.check(gpu, &kept_sum)
}

#[test]
fn sgd_is_the_formula() {
    let len = prop_oneof![1usize..700, proptest::sample::select(vec![1023usize, 1024, 1025])];
    let norm = prop_oneof![Just(0f32), Just(0.3), Just(7.0), Just(f32::NAN), Just(f32::INFINITY)];
    let max_norm = prop_oneof![Just(NO_CLIP), Just(1.0f32)];
    let params = (max_norm, 0f32..0.5, 0f32..1.0, prop_oneof![Just(0f32), Just(0.1)]).prop_map(
        |(max_norm, lr, momentum, weight_decay)| SgdParams {
            max_norm,
            lr,
            momentum,
            weight_decay,
            ..SgdParams::default()
        },
    );
    for_all(
        16,
        (len, any::<bool>(), norm, params, seed()),
        |gpu, &(len, momentum, norm, params, seed)| check(gpu, len, momentum, norm, params, seed),
    );
}
