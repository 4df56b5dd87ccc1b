//! What lies beside q, k and v: biases and the norms of heads on their way to the rotation, and the
//! gradient of the norms.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::heads_backward::{HeadsBackwardParams, record, spec};
use epiphyte::kernels::rope::{HeadInput, rotations};
use epiphyte::kernels::rope_train::{self, RopeTrainParams};
use proptest::prelude::*;

use super::oracle::{DIV, EPS, check_gradient, gamma, rms_scale, to_f64};
use super::{Checked, Near, Output, Random, for_all, seed, submit};

const EPSILON: f32 = 1e-5;

#[derive(Clone, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    rows: usize,
    row0: usize,
    bias: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let head_dim = proptest::sample::select(vec![32usize, 64, 96, 128, 256]);
    (1usize..3, 1usize..4, head_dim, 1usize..6, 0usize..3, any::<bool>(), seed()).prop_map(
        |(kv_heads, group, head_dim, rows, row0, bias, seed)| Case {
            kv_heads,
            group,
            head_dim,
            rows,
            row0,
            bias,
            seed,
        },
    )
}

impl Case {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn all(&self) -> usize {
        self.heads() + 2 * self.kv_heads
    }

    /// Biases, if any, then gains.
    fn beside(&self, random: &mut Random) -> Vec<f32> {
        let biases = if self.bias { self.all() * self.head_dim } else { 0 };
        random.vec(biases + 2 * self.head_dim, 1.0)
    }

    /// A head with its bias, as the kernel rounds it; and its gain, but for v.
    fn head<'a>(
        &self,
        raw: &[f32],
        beside: &'a [f32],
        head: usize,
    ) -> (Vec<f32>, Option<&'a [f32]>) {
        let (e, biases) = (self.head_dim, beside.len() - 2 * self.head_dim);
        let bias = |i: usize| if self.bias { beside[head * e + i] } else { 0.0 };
        let x = raw.iter().enumerate().map(|(i, raw)| raw + bias(i)).collect();
        let which = match head {
            head if head < self.heads() => Some(0),
            head if head < self.heads() + self.kv_heads => Some(1),
            _ => None,
        };
        (x, which.map(|which| &beside[biases + which * e..][..e]))
    }
}

/// Positions are all 0, so that nothing is turned and what is rotated can be seen.
fn check_forward(gpu: &Gpu, case: &Case) -> Checked {
    let (mut random, e) = (Random(case.seed), case.head_dim);
    let before = random.vec((case.row0 + case.rows) * case.all() * e, 3.0);
    let (qkv, beside) = (Output::holding(gpu, before.clone(), false)?, case.beside(&mut random));
    let rows: Vec<[u32; 2]> = (0..case.rows as u32).map(|t| [t, t + 1]).collect();
    let turns = gpu.upload("rotations", &rotations(&vec![1.0; e / 2], 1.0, 4))?;
    let input = HeadInput { bias: case.bias, norm: true };
    let op = gpu.op(
        &rope_train::beside_spec(e as u32, input),
        &[&gpu.upload("rows", &rows)?, &turns, &qkv.tensor, &gpu.upload("beside", &beside)?],
    )?;
    let params = RopeTrainParams {
        heads: case.heads() as u32,
        kv_heads: case.kv_heads as u32,
        row0: case.row0 as u32,
        direction: rope_train::FORWARD,
        eps: EPSILON,
        rotary_dim: e as u32,
    };
    submit(gpu, |commands| {
        rope_train::record_beside(commands, &op, (e as u32, input), params, case.rows as u32);
    })?;
    let mut expected = vec![None; case.row0 * case.all() * e];
    for (head, raw) in before.chunks(e).enumerate().skip(case.row0 * case.all()) {
        let (x, gain) = case.head(raw, &beside, head % case.all());
        let (scale, error) = rms_scale(&x, EPSILON, e);
        expected.extend((0..e).map(|i| {
            let value = f64::from(x[i]) * gain.map_or(1.0, |gain| scale * f64::from(gain[i]));
            Some(Near { value, bound: 1.01 * (error + 3.0 * EPS) * value.abs() + 1e-35 })
        }));
    }
    qkv.check(gpu, &expected)
}

/// `dx = s (g - x s² mean(g x))`, g = dy gain.
fn oracle(x: &[f64], gain: &[f64], dy: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| x * x).sum::<f64>() / n;
    let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
    let g: Vec<f64> = gain.iter().zip(dy).map(|(gain, dy)| gain * dy).collect();
    let pull = scale * scale * g.iter().zip(x).map(|(g, x)| g * x).sum::<f64>() / n;
    g.iter().zip(x).map(|(g, x)| scale * (g - x * pull)).collect()
}

fn check_backward(gpu: &Gpu, case: &Case) -> Checked {
    let (mut random, e) = (Random(case.seed), case.head_dim);
    let raw = random.vec((case.row0 + case.rows) * case.all() * e, 3.0);
    let before = random.vec(case.rows * case.all() * e, 1.0);
    let (d_qkv, beside) = (Output::holding(gpu, before.clone(), false)?, case.beside(&mut random));
    let op = gpu.op(
        &spec(e as u32, case.bias),
        &[&gpu.upload("raw", &raw)?, &gpu.upload("beside", &beside)?, &d_qkv.tensor],
    )?;
    let params = HeadsBackwardParams {
        heads: case.heads() as u32,
        kv_heads: case.kv_heads as u32,
        row0: case.row0 as u32,
        eps: EPSILON,
    };
    submit(gpu, |commands| record(commands, &op, params, case.rows as u32))?;
    let raw = raw.chunks(e).skip(case.row0 * case.all());
    let expected = raw.zip(before.chunks(e)).enumerate().flat_map(|(head, (raw, dy))| {
        let (x, gain) = case.head(raw, &beside, head % case.all());
        let Some(gain) = gain else {
            let same = |v: &f32| Some(Near { value: (*v).into(), bound: 0.0 });
            return dy.iter().map(same).collect::<Vec<_>>();
        };
        let (x, gain, dy) = (to_f64(&x), to_f64(gain), to_f64(dy));
        let (scale, error) =
            rms_scale(&x.iter().map(|x| *x as f32).collect::<Vec<_>>(), EPSILON, e);
        let size: f64 =
            x.iter().zip(&gain).zip(&dy).map(|((x, g), d)| (x * g * d).abs()).sum::<f64>();
        let near = |(i, value): (usize, f64)| {
            let pull = x[i].abs() * scale * scale * size / e as f64;
            let own = (gain[i] * dy[i]).abs();
            let bound = scale * (own + pull) * (gamma(e + 4) + 3.0 * error + DIV + 4.0 * EPS);
            Some(Near { value, bound: 1.01 * bound + 1e-35 })
        };
        oracle(&x, &gain, &dy).into_iter().enumerate().map(near).collect()
    });
    d_qkv.check(gpu, &expected.collect::<Vec<_>>())
}

#[test]
fn biases_and_norms_of_heads_are_the_formula() {
    for_all(12, cases(), check_forward);
}

#[test]
fn heads_backward_is_the_gradient() {
    for_all(12, cases(), check_backward);
}

#[test]
fn the_oracle_is_the_gradient() {
    let mut random = Random(4);
    let [x, gain, dy] = [8, 8, 8].map(|n| to_f64(&random.vec(n, 1.0)));
    let normed = |x: &[f64]| {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        x.iter().zip(&gain).zip(&dy).map(|((x, g), d)| x * scale * g * d).sum()
    };
    check_gradient(normed, &x, &oracle(&x, &gain, &dy));
}
