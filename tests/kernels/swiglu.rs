//! `h[t, i] = silu(gu[t, i]) * gu[t, i + F]`.

use epiphyte::kernels::swiglu::{SwiGluParams, record, spec};
use proptest::prelude::*;

use super::{Near, Output, Random, for_all, oracle, seed, submit};

#[test]
fn swiglu_is_the_formula() {
    // Up to 110: e^110 is infinite in f32, and its silu 0 all the same.
    let size = prop_oneof![Just(1e-3f32), Just(4.0), Just(110.0)];
    for_all(12, (1usize..9, 1usize..200, size, seed()), |gpu, &(rows, f4, size, seed)| {
        let (f, mut random) = (f4 * 4, Random(seed));
        let gu = random.vec(rows * 2 * f, size);
        let h = Output::poisoned(gpu, rows * f)?;
        let params = SwiGluParams { f: f as u32, ..Default::default() };
        let op = gpu.op(&spec(gpu.caps(), None), &[&gpu.upload("gu", &gu)?, &h.tensor])?;
        submit(gpu, |commands| record(commands, gpu.caps(), &op, &params, rows as u32))?;
        let exact = |v: f32| Near { value: v.into(), bound: 0.0 };
        let expected: Vec<_> = gu
            .chunks(2 * f)
            .flat_map(|row| (0..f).map(|i| Some(oracle::swiglu(exact(row[i]), exact(row[i + f])))))
            .collect();
        h.check(gpu, &expected)
    });
}
