//! The gradient of `h = silu(gate) up` by gate and up, in their place.

use epiphyte::base::layout::Activation;
use epiphyte::kernels::swiglu_backward::{SwiGluBackwardParams, record, spec};
use proptest::prelude::*;

use super::oracle::{DIV, EPS, check_gradient, exp_error, silu};
use super::{Near, Output, Random, for_all, seed, submit};

/// By gate and by up.
fn oracle(gate: f64, up: f64, dh: f64) -> [f64; 2] {
    let sigmoid = 1.0 / (1.0 + (-gate).exp());
    [dh * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), dh * silu(gate)]
}

fn near(gate: f32, up: f32, dh: f32) -> [Near; 2] {
    let [g, u, d] = [gate, up, dh].map(f64::from);
    let [by_gate, by_up] = oracle(g, u, d);
    let sigmoid = 1.0 / (1.0 + (-g).exp());
    // Relative: exp, the sum, the division.
    let error = exp_error(g) + EPS + DIV;
    // 1 - sigmoid is off by what sigmoid is and a rounding; then the product with gate, the sum
    // with 1.
    let rest = g.abs() * (sigmoid * error + EPS + EPS * (1.0 - sigmoid));
    let slope = 1.0 + g * (1.0 - sigmoid);
    let slope_bound =
        sigmoid * (rest + EPS * slope.abs()) + (error + EPS) * (sigmoid * slope).abs();
    // Beyond e^87 the division's precision is not specified; sigmoid is below e^-87 there.
    let tiny = 1e-35 * (d * u).abs().max(d.abs()).max(1.0);
    [
        Near {
            value: by_gate,
            bound: 1.001 * ((d * u).abs() * slope_bound + 2.0 * EPS * by_gate.abs()) + tiny,
        },
        Near { value: by_up, bound: 1.001 * (error + 2.0 * EPS) * by_up.abs() + tiny },
    ]
}

#[test]
fn swiglu_backward_is_the_gradient() {
    // Up to 110: e^110 is infinite in f32, and the sigmoid 0 all the same.
    let size = prop_oneof![Just(1e-3f32), Just(4.0), Just(110.0)];
    let cases = (1usize..9, 1usize..150, [0usize..3, 0..3], size, seed());
    for_all(12, cases, |gpu, &(rows, f4, [dh_row, gu_row], size, seed)| {
        let (f, mut random) = (f4 * 4, Random(seed));
        let dh = random.vec((dh_row + rows) * f, 1.0);
        let gu = Output::holding(gpu, random.vec((gu_row + rows) * 2 * f, size), false)?;
        let op = gpu.op(&spec(Activation::Silu), &[&gpu.upload("dh", &dh)?, &gu.tensor])?;
        let params =
            SwiGluBackwardParams { f4: f4 as u32, dh_row: dh_row as u32, gu_row: gu_row as u32 };
        submit(gpu, |commands| record(commands, &op, params, rows as u32))?;
        let mut expected = vec![None; gu.before.len() - super::GUARD];
        for (i, dh) in dh[dh_row * f..].iter().enumerate() {
            let at = (gu_row + i / f) * 2 * f + i % f;
            let [by_gate, by_up] = near(gu.before[at], gu.before[at + f], *dh);
            (expected[at], expected[at + f]) = (Some(by_gate), Some(by_up));
        }
        gu.check(gpu, &expected)
    });
}

#[test]
fn the_oracle_is_the_gradient() {
    for x in [[-3.0, 0.7], [-0.2, -1.3], [0.0, 2.0], [2.5, 0.4]] {
        check_gradient(|x| 1.7 * silu(x[0]) * x[1], &x, &oracle(x[0], x[1], 1.7));
    }
}
