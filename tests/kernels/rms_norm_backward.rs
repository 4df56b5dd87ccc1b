//! The gradient of `y[t] = x[t] / sqrt(mean(x[t]²) + eps) * gain` by x.

use epiphyte::kernels::rms_norm_backward::{RmsNormBackwardParams, record, spec};
use proptest::prelude::*;

use super::oracle::{DIV, EPS, check_gradient, gamma, rms_scale, strided_depth, to_f64};
use super::{Near, Output, Random, for_all, seed, submit};

/// One row: `s (g - x s² mean(g x))` with `g = dy gain`.
fn oracle(x: &[f64], gain: &[f64], dy: &[f64], eps: f64) -> Vec<f64> {
    let mean = |terms: &mut dyn Iterator<Item = f64>| terms.sum::<f64>() / x.len() as f64;
    let s = 1.0 / (mean(&mut x.iter().map(|x| x * x)) + eps).sqrt();
    let pull = s * s * mean(&mut x.iter().zip(gain).zip(dy).map(|((x, g), d)| x * g * d));
    x.iter().zip(gain).zip(dy).map(|((x, g), d)| s * (d * g - x * pull)).collect()
}

/// [`oracle`] and how far the kernel may be from it, `lanes` lanes to a row.
fn near(x: &[f32], gain: &[f32], dy: &[f32], eps: f32, lanes: u32) -> Vec<Near> {
    let additions = strided_depth(x.len() / 4, lanes);
    let (s, s_error) = rms_scale(x, eps, 4 + additions);
    let [xs, gains, dys] = [x, gain, dy].map(to_f64);
    let k = x.len() as f64;
    let terms = || xs.iter().zip(&gains).zip(&dys).map(|((x, g), d)| x * g * d);
    let (sum, size) = terms().fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
    // mean(g x): g, 4 roundings in the dot of a vec4, the additions, the division. Then s twice and
    // two products.
    let pull = s * s * sum / k;
    let pull_error =
        s * s * size / k * (gamma(5 + additions) + DIV) + pull.abs() * (2.0 * s_error + 2.0 * EPS);
    let element = |(((x, g), d), value): (((&f64, &f64), &f64), f64)| {
        // Of the first term s, g, the difference and the last product; of the second one rounding
        // more.
        let bound =
            s * ((d * g).abs() * (s_error + 3.0 * EPS) + (x * pull).abs() * (s_error + 3.0 * EPS));
        Near { value, bound: 1.001 * (bound + s * x.abs() * pull_error) }
    };
    let values = oracle(&xs, &gains, &dys, eps.into());
    xs.iter().zip(&gains).zip(&dys).zip(values).map(element).collect()
}

#[test]
fn rms_norm_backward_is_the_gradient() {
    let eps = prop_oneof![Just(1e-5f32), Just(1e-6), Just(0.1)];
    let size = prop_oneof![Just(1e-3f32), Just(1.0), Just(300.0)];
    let first_rows = [0usize..3, 0..3, 0..3];
    let cases = (1usize..90, 1usize..160, eps, size, first_rows, any::<bool>(), seed());
    for_all(12, cases, |gpu, &(rows, k4, eps, size, [x_row, dy_row, dx_row], add, seed)| {
        let (k, mut random) = (4 * k4, Random(seed));
        let (x, gain) = (random.vec((x_row + rows) * k, size), random.vec(k, 2.0));
        let dy = random.vec((dy_row + rows) * k, 1.0);
        let len = (dx_row + rows) * k;
        let dx = if add {
            Output::holding(gpu, random.vec(len, 1.0 / size), false)?
        } else {
            Output::poisoned(gpu, len)?
        };
        let inputs = [gpu.upload("x", &x)?, gpu.upload("gain", &gain)?, gpu.upload("dy", &dy)?];
        let op =
            gpu.op(&spec(gpu.caps(), add), &[&inputs[0], &inputs[1], &inputs[2], &dx.tensor])?;
        let params = RmsNormBackwardParams {
            rows: rows as u32,
            k4: k4 as u32,
            eps,
            x_row: x_row as u32,
            dy_row: dy_row as u32,
            dx_row: dx_row as u32,
        };
        submit(gpu, |commands| record(commands, &op, params))?;
        let lanes = gpu.caps().subgroup_size.map_or(32, |size| size.min(32));
        let mut expected = vec![None; dx_row * k];
        for (x, dy) in x[x_row * k..].chunks(k).zip(dy[dy_row * k..].chunks(k)) {
            expected.extend(near(x, &gain, dy, eps, lanes).into_iter().map(Some));
        }
        if add {
            for (near, before) in expected.iter_mut().zip(&dx.before) {
                *near = near.map(|near| near.plus(f64::from(*before)));
            }
        }
        dx.check(gpu, &expected)
    });
}

#[test]
fn the_oracle_is_the_gradient() {
    let mut random = Random(7);
    let [x, gain, dy] = [(); 3].map(|()| to_f64(&random.vec(12, 1.5)));
    let loss = |x: &[f64]| {
        let s = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / 12.0 + 0.01).sqrt();
        x.iter().zip(&gain).zip(&dy).map(|((x, g), d)| x * s * g * d).sum()
    };
    check_gradient(loss, &x, &oracle(&x, &gain, &dy, 0.01));
}
