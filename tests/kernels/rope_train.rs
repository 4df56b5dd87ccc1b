//! The rotation of q and k by their position in packed sequences, forward and back.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::rope::rotations;
use epiphyte::kernels::rope_train::{BACKWARD, FORWARD, RopeTrainParams, record, spec};
use proptest::prelude::*;

use super::oracle::EPS;
use super::{Checked, Near, Output, Random, for_all, packed, seed, submit};

#[derive(Clone, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Lengths of the packed sequences.
    lens: Vec<usize>,
    row0: usize,
    direction: f32,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let head_dim = proptest::sample::select(vec![64usize, 80, 96, 256]);
    let len =
        prop_oneof![4 => 1usize..20, 1 => proptest::sample::select(vec![255usize, 256, 257, 520])];
    let direction = prop_oneof![Just(FORWARD), Just(BACKWARD)];
    let lens = proptest::collection::vec(len, 1..4);
    ((1usize..5, 1usize..3), head_dim, lens, 0usize..3, direction, seed()).prop_map(
        |((heads, kv_heads), head_dim, lens, row0, direction, seed)| Case {
            heads,
            kv_heads,
            head_dim,
            lens,
            row0,
            direction,
            seed,
        },
    )
}

/// `pair` turned by `angle` and multiplied by `scale`, at most 1.
fn rotate(a: f32, b: f32, angle: f64, scale: f64) -> [Near; 2] {
    let (a, b) = (f64::from(a), f64::from(b));
    // As in `rope`: tables within EPS / 2, cos and sin of the sum of two angles within 3 EPS, a
    // product and a sum.
    let bound = 5.01 * EPS * (a.abs() + b.abs());
    let (cos, sin) = (scale * angle.cos(), scale * angle.sin());
    [a * cos - b * sin, a * sin + b * cos].map(|value| Near { value, bound })
}

fn check(gpu: &Gpu, case: &Case) -> Checked {
    let (e, all) = (case.head_dim, case.heads + 2 * case.kv_heads);
    let (rows, mut random) = (packed(&case.lens), Random(case.seed));
    let scale = if case.seed.is_multiple_of(2) { 1.0 } else { 0.75 };
    // All turn, or three of four.
    let turned = if case.seed % 4 < 2 { 3 * e / 4 } else { e };
    let mut frequencies: Vec<f32> =
        (0..turned / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / turned as f64) as f32).collect();
    frequencies.resize(e / 2, 0.0);
    let qkv = Output::holding(gpu, random.vec((case.row0 + rows.len()) * all * e, 3.0), false)?;
    let inputs = [
        gpu.upload("rows", &rows)?,
        gpu.upload("rotations", &rotations(&frequencies, scale, 521))?,
    ];
    let op = gpu.op(&spec(e as u32), &[&inputs[0], &inputs[1], &qkv.tensor])?;
    let params = RopeTrainParams {
        heads: case.heads as u32,
        kv_heads: case.kv_heads as u32,
        row0: case.row0 as u32,
        direction: case.direction,
        eps: 0.0,
        rotary_dim: turned as u32,
    };
    submit(gpu, |commands| record(commands, &op, e as u32, params, rows.len() as u32))?;
    let mut expected = vec![None; (case.row0 + rows.len()) * all * e];
    for (t, head) in
        (0..rows.len()).flat_map(|t| (0..case.heads + case.kv_heads).map(move |head| (t, head)))
    {
        for (i, &frequency) in frequencies.iter().enumerate() {
            let at = ((case.row0 + t) * all + head) * e;
            let half = turned / 2;
            let pair = if i < half { [i, i + half] } else { [i + half, i + e / 2] };
            let angle =
                f64::from(case.direction) * f64::from(frequency) * (t - rows[t][0] as usize) as f64;
            let scale = if i < half { scale.into() } else { 1.0 };
            let [a, b] = pair.map(|i| at + i);
            let rotated = rotate(qkv.before[a], qkv.before[b], angle, scale);
            [expected[a], expected[b]] = rotated.map(Some);
        }
    }
    qkv.check(gpu, &expected)
}

#[test]
fn rope_train_turns_by_the_place_in_the_sequence() {
    for_all(12, cases(), check);
}
