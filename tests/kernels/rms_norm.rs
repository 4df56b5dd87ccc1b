//! `y[t] = x[t] / sqrt(mean(x[t]²) + eps) * gain`.

use epiphyte::kernels::rms_norm::{RmsNormParams, record, spec};
use proptest::prelude::*;

use super::oracle::{EPS, rms_scale, strided_depth};
use super::{Near, Output, Random, for_all, seed, submit};

fn oracle(x: &[f32], gain: &[f32], params: &RmsNormParams, lanes: u32) -> Vec<Option<Near>> {
    let width = 4 * params.k4 as usize;
    let near = |row: &[f32]| {
        // 4 roundings in the dot product of a vec4, then the additions.
        let (scale, error) =
            rms_scale(row, params.eps, 4 + strided_depth(params.k4 as usize, lanes));
        let values: Vec<f64> =
            row.iter().zip(gain).map(|(x, g)| f64::from(*x) * scale * f64::from(*g)).collect();
        // Two products besides the scale.
        values.into_iter().map(move |value| {
            Some(Near { value, bound: 1.001 * (error + 2.0 * EPS) * value.abs() })
        })
    };
    x.chunks(width).take(params.rows as usize).flat_map(near).collect()
}

#[test]
fn rms_norm_is_the_formula() {
    let eps = prop_oneof![Just(1e-5f32), Just(1e-6), Just(0.1)];
    let cases =
        (1usize..140, 1usize..160, eps, prop_oneof![Just(1e-4f32), Just(1.0), Just(300.0)], seed());
    for_all(12, cases, |gpu, &(rows, k4, eps, size, seed)| {
        let mut random = Random(seed);
        let (x, gain) = (random.vec(rows * k4 * 4, size), random.vec(k4 * 4, 2.0));
        let y = Output::poisoned(gpu, x.len())?;
        let op = gpu.op(
            &spec(gpu.caps(), false),
            &[&gpu.upload("x", &x)?, &gpu.upload("gain", &gain)?, &y.tensor],
        )?;
        let params = RmsNormParams { rows: rows as u32, k4: k4 as u32, eps };
        submit(gpu, |commands| record(commands, &op, params))?;
        let lanes = gpu.caps().subgroup_size.map_or(32, |size| size.min(32));
        y.check(gpu, &oracle(&x, &gain, &params, lanes))
    });
}
