//! The gradient of mu/2 |w - start|^2, added to what is there.

use epiphyte::kernels::proximal::{ProximalParams, record, spec};
use proptest::prelude::*;

use super::oracle::EPS;
use super::{Near, Output, Random, for_all, seed, submit};

#[test]
fn proximal_is_the_formula() {
    let len = prop_oneof![1usize..700, proptest::sample::select(vec![1023usize, 1024, 1025])];
    let mu = prop_oneof![Just(0f32), Just(1e-3), Just(0.7), Just(20.0)];
    for_all(10, (len, mu, seed()), |gpu, &(len, mu, seed)| {
        let mut random = Random(seed);
        let (weights, start) = (random.vec(len, 1.0), random.vec(len, 1.0));
        let grads = Output::holding(gpu, random.vec(len + 3, 0.1), false)?;
        let [w, s] = [gpu.upload("weights", &weights)?, gpu.upload("start", &start)?];
        let op = gpu.op(&spec(), &[&w, &s, &grads.tensor])?;
        let params = ProximalParams { len: len as u32, mu };
        submit(gpu, |commands| record(commands, &op, &params))?;
        let near = |i: usize| {
            let (g, pull) = (
                f64::from(grads.before[i]),
                f64::from(mu) * (f64::from(weights[i]) - f64::from(start[i])),
            );
            // A difference, a product, a sum.
            Near { value: g + pull, bound: 1.001 * EPS * (2.0 * pull.abs() + (g + pull).abs()) }
        };
        let mut expected: Vec<_> = (0..len).map(|i| Some(near(i))).collect();
        // Past the range nothing is written.
        expected.resize(len + 3, None);
        grads.check(gpu, &expected)
    });
}
