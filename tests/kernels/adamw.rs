//! A step of AdamW as torch.optim.AdamW takes it after torch.nn.utils.clip_grad_norm_.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::adamw::{AdamW, AdamWParams, record, spec};
use epiphyte::kernels::grad_norm::NO_CLIP;
use proptest::prelude::*;

use super::oracle::{DIV, EPS, SQRT, clipped};
use super::{Checked, Near, Output, Random, for_all, seed, submit};

/// Elements before and after the range.
const AROUND: usize = 3;

/// The norm, the gradients, the weights, m and v.
struct State {
    norm: f32,
    buffers: [Output; 4],
}

impl State {
    fn random(gpu: &Gpu, len: usize, norm: f32, size: f32, random: &mut Random) -> Checked<Self> {
        let len = len + 2 * AROUND;
        let v: Vec<f32> = random.vec(len, size * size).iter().map(|v| v.abs() + 1e-9).collect();
        let data = [random.vec(len, size), random.vec(len, 1.0), random.vec(len, size), v];
        let [g, w, m, v] = data.map(|data| Output::holding(gpu, data, false));
        Ok(Self { norm, buffers: [g?, w?, m?, v?] })
    }

    fn step(&self, gpu: &Gpu, params: &AdamWParams) -> Checked {
        let norm = gpu.upload("norm", &[f32::NAN, self.norm])?;
        let [g, w, m, v] = &self.buffers;
        let op = gpu.op(&spec(), &[&norm, &g.tensor, &w.tensor, &m.tensor, &v.tensor])?;
        submit(gpu, |commands| record(commands, &op, &AdamWParams { slot: 1, ..*params }))
    }

    /// Element i of the range in w, m and v after.
    fn oracle(&self, i: usize, adamw: &AdamW, lr: f64, step: u64, max_norm: f32) -> [Near; 3] {
        let [g, w, m, v] = self.buffers.each_ref().map(|buffer| f64::from(buffer.before[i]));
        let g = clipped(g, self.norm, max_norm);
        let AdamW { beta1, beta2, eps, weight_decay } = *adamw;
        // Each number of the host's is rounded once.
        let mean = beta1 * m + (1.0 - beta1) * g.value;
        let mean_bound = 2.0 * EPS * ((beta1 * m).abs() + (1.0 - beta1) * g.value.abs())
            + (1.0 - beta1) * g.bound
            + EPS * mean.abs();
        let square = beta2 * v + (1.0 - beta2) * g.value * g.value;
        let square_bound =
            4.0 * EPS * square + (1.0 - beta2) * 2.0 * g.value.abs() * g.bound + 1e-37;
        let step = step as i32;
        let root = (square / (1.0 - beta2.powi(step))).sqrt();
        // The root, the correction and its rounding; eps and its rounding; the sum.
        let below = root + eps;
        let below_bound =
            root * (0.5 * square_bound / square + SQRT + 2.0 * EPS) + EPS * eps + EPS * below;
        let step_size = lr / (1.0 - beta1.powi(step));
        let moved = step_size * mean / below;
        let moved_bound =
            step_size * mean_bound / below + moved.abs() * (below_bound / below + DIV + 2.0 * EPS);
        let kept = (1.0 - lr * weight_decay) * w;
        let weight = kept - moved;
        let weight_bound = 2.0 * EPS * kept.abs() + moved_bound + EPS * weight.abs();
        [(weight, weight_bound), (mean, mean_bound), (square, square_bound)]
            .map(|(value, bound)| Near { value, bound: 1.001 * bound })
    }

    /// All gradients of the range are 0, and w, m, v what `expected` says; everything else as it
    /// was.
    fn check(
        &self,
        gpu: &Gpu,
        len: usize,
        expected: impl Fn(usize) -> [Option<Near>; 3],
    ) -> Checked {
        let mut all = [(); 4].map(|()| vec![None; len + 2 * AROUND]);
        for i in AROUND..AROUND + len {
            let [w, m, v] = expected(i);
            let zero = Some(Near { value: 0.0, bound: 0.0 });
            for (expected, near) in all.iter_mut().zip([zero, w, m, v]) {
                expected[i] = near;
            }
        }
        self.buffers.iter().zip(&all).try_for_each(|(buffer, expected)| buffer.check(gpu, expected))
    }
}

#[test]
fn adamw_is_the_formula() {
    let len = prop_oneof![1usize..700, proptest::sample::select(vec![1023usize, 1024, 1025])];
    let step = prop_oneof![Just(1u64), Just(2), 3u64..5000];
    let norms =
        (prop_oneof![Just(0f32), Just(0.3), Just(7.0)], prop_oneof![Just(NO_CLIP), Just(1.0f32)]);
    let lr = prop_oneof![Just(0.0), Just(3e-4), Just(0.1)];
    let adamw = prop_oneof![
        Just(AdamW::default()),
        Just(AdamW { beta1: 0.5, beta2: 0.95, eps: 1e-3, weight_decay: 0.0 }),
    ];
    let cases = (len, step, norms, lr, adamw, prop_oneof![Just(1e-3f32), Just(1.0)], seed());
    for_all(12, cases, |gpu, &(len, step, (norm, max_norm), lr, adamw, size, seed)| {
        let state = State::random(gpu, len, norm, size, &mut Random(seed))?;
        let range = AROUND as u32..(AROUND + len) as u32;
        state.step(gpu, &adamw.params(range, lr, step, max_norm))?;
        state.check(gpu, len, |i| state.oracle(i, &adamw, lr, step, max_norm).map(Some))
    });
}

#[test]
fn a_norm_that_is_no_number_changes_nothing() {
    for_all(3, (1usize..700, seed()), |gpu, &(len, seed)| {
        for norm in [f32::NAN, f32::INFINITY] {
            let state = State::random(gpu, len, norm, 1.0, &mut Random(seed))?;
            state.step(
                gpu,
                &AdamW::default().params(AROUND as u32..(AROUND + len) as u32, 0.1, 3, 1.0),
            )?;
            state.check(gpu, len, |_| [None; 3])?;
        }
        Ok(())
    });
}
