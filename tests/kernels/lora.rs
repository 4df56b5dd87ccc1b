//! `y += B (weight * A x)` in kernels of its own, for rows with sets of their own. Those that are
//! part of other kernels are tested there.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::lora::{self, EmbeddingParams, ExpandParams, ShrinkParams};
use proptest::prelude::*;

use super::adapters::{Adapters, Site};
use super::oracle::{EPS, strided_depth};
use super::{Checked, Near, Output, Random, for_all, seed, submit};

/// Lanes that share a sum.
pub(super) fn lanes(gpu: &Gpu) -> u32 {
    gpu.caps().subgroup_size.map_or(32, |size| size.min(32))
}

/// Roundings of a share of u: eight products, four of these together, the weight, and the additions
/// over the lanes that share a row when `wg` make 16 at a time.
pub(super) fn share_depth(gpu: &Gpu, columns: usize, wg: u32) -> usize {
    9 + strided_depth(columns / 8, lanes(gpu).min(wg / 16))
}

#[test]
fn lora_shrink_makes_u_of_every_row_from_its_own_adapters() {
    let cases = (1usize..8, 0usize..3, 1usize..40, 1usize..4, 0usize..3, seed());
    for_all(12, cases, |gpu, &(rows, x_row, k8, modules, rest, seed)| {
        let (mut random, k) = (Random(seed), 8 * k8);
        let site = Site { number: 1, k, modules: vec![1; modules] };
        let adapters = Adapters::random(vec![site], x_row, rows, &mut random);
        let x = random.vec((x_row + rows) * k, 1.0);
        let u_width = adapters.u_width(0, x_row) + 8 * rest;
        let u = Output::poisoned(gpu, (x_row + rows) * u_width)?;
        let [a, _] = adapters.upload(gpu)?;
        let op = gpu.op(
            &lora::shrink_spec(gpu.caps(), adapters.directory),
            &[&gpu.upload("x", &x)?, &a, &u.tensor],
        )?;
        let params =
            ShrinkParams { k8s: k8 as u32, x_row: x_row as u32, site: 1, u_width: u_width as u32 };
        submit(gpu, |commands| lora::record_shrink(commands, &op, &params, rows as u32))?;
        let mut expected = vec![None; (x_row + rows) * u_width];
        for m in x_row..x_row + rows {
            let exact = |column: usize| Near { value: x[m * k + column].into(), bound: 0.0 };
            // Eight products and the weight beside the additions.
            let made = adapters.shrink((0, m), 0..k, exact, 6 + strided_depth(k8, lanes(gpu)));
            made.into_iter()
                .enumerate()
                .for_each(|(i, near)| expected[m * u_width + i] = Some(near));
        }
        u.check(gpu, &expected)
    });
}

#[derive(Clone, Debug)]
struct Expand {
    rows: usize,
    x_row: usize,
    y_row: usize,
    modules: Vec<usize>,
    rest: usize,
    seed: u64,
}

fn expand(gpu: &Gpu, case: &Expand) -> Checked {
    let Expand { rows, x_row, y_row, rest, .. } = *case;
    let (mut random, n) = (Random(case.seed), case.modules.iter().sum::<usize>());
    let site = Site { number: 2, k: 4, modules: case.modules.clone() };
    let adapters = Adapters::random(vec![site], x_row, rows, &mut random);
    let u_width = adapters.u_width(0, x_row) + 8 * rest;
    let u = adapters.random_u(0, (1, u_width), &mut random);
    let y = Output::holding(gpu, random.vec((y_row + rows) * n, 2.0), false)?;
    let [_, b] = adapters.upload(gpu)?;
    let op =
        gpu.op(&lora::expand_spec(adapters.directory), &[&y.tensor, &b, &gpu.upload("u", &u)?])?;
    let end =
        |i: usize| case.modules[..=i.min(case.modules.len() - 1)].iter().sum::<usize>() as u32;
    let params = ExpandParams {
        n: n as u32,
        x_row: x_row as u32,
        y_row: y_row as u32,
        site: 2,
        u_width: u_width as u32,
        end0: end(0),
        end1: end(1),
    };
    submit(gpu, |commands| lora::record_expand(commands, &op, &params, rows as u32))?;
    let mut expected = vec![None; y_row * n];
    for (m, i) in (0..rows).flat_map(|m| (0..n).map(move |i| (m, i))) {
        let row = x_row + m;
        let added = adapters.expand_row((0, row), i, |j| u[row * u_width + j]);
        let value = f64::from(y.before[(y_row + m) * n + i]) + added.value;
        let rounding = if added.bound > 0.0 { EPS * (value.abs() + added.bound) } else { 0.0 };
        expected.push(Some(Near { value, bound: 1.001 * (added.bound + rounding) }));
    }
    y.check(gpu, &expected)
}

#[test]
fn lora_expand_adds_to_every_row_what_its_own_adapters_say() {
    let modules = proptest::collection::vec(1usize..60, 1..4);
    let cases = (1usize..8, 0usize..3, 0usize..3, modules, 0usize..3, seed()).prop_map(
        |(rows, x_row, y_row, modules, rest, seed)| Expand {
            rows,
            x_row,
            y_row,
            modules,
            rest,
            seed,
        },
    );
    for_all(12, cases, expand);
}

#[test]
fn lora_embedding_adds_columns_of_a_to_every_row() {
    for_all(12, (1usize..8, 1usize..40, 1usize..150, seed()), |gpu, &(rows, vocab, d, seed)| {
        let mut random = Random(seed);
        let site = Site { number: 3, k: vocab, modules: vec![d] };
        let adapters = Adapters::random(vec![site], 0, rows, &mut random);
        let ids: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
        let x = Output::holding(gpu, random.vec(rows * d, 1.0), false)?;
        let [a, b] = adapters.upload(gpu)?;
        let tensors = [&gpu.upload("token_ids", &ids)?, &x.tensor, &a, &b];
        let op = gpu.op(&lora::embedding_spec(adapters.directory), &tensors)?;
        let params = EmbeddingParams { d: d as u32, site: 3, scale: 1.0 };
        submit(gpu, |commands| lora::record_embedding(commands, &op, &params, rows as u32))?;
        let element = |i: usize| {
            let added = adapters.embedded((0, i / d), ids[i / d] as usize, i % d);
            let value = f64::from(x.before[i]) + added.value;
            let rounding = if added.bound > 0.0 { EPS * (value.abs() + added.bound) } else { 0.0 };
            Some(Near { value, bound: 1.001 * (added.bound + rounding) })
        };
        x.check(gpu, &(0..rows * d).map(element).collect::<Vec<_>>())
    });
}
