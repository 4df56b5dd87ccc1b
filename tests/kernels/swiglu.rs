//! `h[t, i] = silu(gu[t, i]) * gu[t, i + F]`.

use epiphyte::base::layout::Activation;
use epiphyte::kernels::swiglu::{SwiGluParams, parts, record, spec};
use proptest::prelude::*;

use super::adapters::{Adapters, Site};
use super::lora::share_depth;
use super::oracle::EPS;
use super::{Near, Output, Random, for_all, oracle, seed, submit};

#[test]
fn swiglu_is_the_formula() {
    // Up to 110: e^110 is infinite in f32, and its silu 0 all the same.
    let size = prop_oneof![Just(1e-3f32), Just(4.0), Just(110.0)];
    let gate = prop_oneof![Just(Activation::Silu), Just(Activation::GeluTanh)];
    let cases = (1usize..9, 1usize..200, size, gate, seed());
    for_all(12, cases, |gpu, &(rows, f4, size, gate, seed)| {
        let (f, mut random) = (f4 * 4, Random(seed));
        let gu = random.vec(rows * 2 * f, size);
        let h = Output::poisoned(gpu, rows * f)?;
        let params = SwiGluParams { f: f as u32, ..Default::default() };
        let op = gpu.op(&spec(gpu.caps(), gate, None), &[&gpu.upload("gu", &gu)?, &h.tensor])?;
        submit(gpu, |commands| record(commands, &op, &params, rows as u32))?;
        let exact = |v: f32| Near { value: v.into(), bound: 0.0 };
        let expected: Vec<_> = gu
            .chunks(2 * f)
            .flat_map(|row| {
                (0..f).map(|i| Some(oracle::gated(gate, exact(row[i]), exact(row[i + f]))))
            })
            .collect();
        h.check(gpu, &expected)
    });
}

/// Gate and up lack what B u adds to them; of h also the share of the next u is made.
#[test]
fn swiglu_expands_before_and_shrinks_after() {
    for_all(8, (1usize..6, 1usize..80, 0usize..2, seed()), |gpu, &(rows, f8, rest, seed)| {
        let (f, mut random) = (f8 * 8, Random(seed));
        let gate_up = Site { number: 2, k: 4, modules: vec![f; 2] };
        let down = Site { number: 0, k: f, modules: vec![1] };
        let adapters = Adapters::random(vec![gate_up, down], 0, rows, &mut random);
        let [gate_up_width, down_width] = [0, 1].map(|site| adapters.u_width(site, 0) + 8 * rest);
        let u = adapters.random_u(0, (1, gate_up_width), &mut random);
        let gu = random.vec(rows * 2 * f, 4.0);
        let parts = parts(gpu.caps(), f as u32) as usize;
        let (h, next) =
            (Output::poisoned(gpu, rows * f)?, Output::poisoned(gpu, rows * parts * down_width)?);
        let ([a, b], gu_tensor, u_tensor) =
            (adapters.upload(gpu)?, gpu.upload("gu", &gu)?, gpu.upload("u", &u)?);
        let tensors = [&gu_tensor, &h.tensor, &a, &b, &u_tensor, &next.tensor];
        let op = gpu.op(&spec(gpu.caps(), Activation::Silu, Some(adapters.directory)), &tensors)?;
        let [f_u32, gate_up_width_u32, down_width_u32] =
            [f, gate_up_width, down_width].map(|n| n as u32);
        let params = SwiGluParams {
            f: f_u32,
            gate_up_site: 2,
            gate_up_width: gate_up_width_u32,
            down_site: 0,
            down_width: down_width_u32,
            pad: [0; 3],
            gate_up_alone: adapters.alone(0, 0)[1],
            down_alone: adapters.alone(1, 0)[0],
        };
        submit(gpu, |commands| record(commands, &op, &params, rows as u32))?;
        let whole = |t: usize, n: usize| {
            let added = adapters.expand_row((0, t), n, |j| u[t * gate_up_width + j]);
            let value = f64::from(gu[t * 2 * f + n]) + added.value;
            Near { value, bound: added.bound + EPS * (value.abs() + added.bound) }
        };
        let expected: Vec<Near> = (0..rows * f)
            .map(|i| oracle::swiglu(whole(i / f, i % f), whole(i / f, f + i % f)))
            .collect();
        h.check(gpu, &expected.iter().copied().map(Some).collect::<Vec<_>>())
            .map_err(|e| format!("h{e}"))?;
        let width = if gpu.caps().software { 64 } else { 256 };
        let mut shares = vec![None; rows * parts * down_width];
        for (t, part) in (0..rows).flat_map(|t| (0..parts).map(move |part| (t, part))) {
            let columns = part * width..f.min((part + 1) * width);
            let depth = share_depth(gpu, columns.len(), width as u32);
            let made = adapters.shrink((1, t), columns, |column| expected[t * f + column], depth);
            let at = (t * parts + part) * down_width;
            made.into_iter().enumerate().for_each(|(i, near)| shares[at + i] = Some(near));
        }
        next.check(gpu, &shares).map_err(|e| format!("u{e}").into())
    });
}
