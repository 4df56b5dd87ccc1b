//! What families beyond llama add: the norms of heads, of outputs, and another gate.

use super::cases::{Case, Near, Outcome, Random, case, poisoned, rms_scale, subgroups, submit};
use crate::base::layout::Activation::GeluTanh;
use crate::error::Result;
use crate::gpu::{Caps, Gpu};
use crate::kernels::heads_backward::{self, HeadsBackwardParams};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rope::{HeadInput, rotations};
use crate::kernels::rope_train::{self, RopeTrainParams};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::kernels::swiglu_backward::{self, SwiGluBackwardParams};

const H: usize = 3;
const E: usize = 64;
const QKV: usize = (H + 2) * E;
const ROWS: usize = 4;
const EPS: f32 = 1e-5;

pub(super) fn cases(caps: &Caps) -> Vec<Case> {
    vec![
        case("rms_norm", "added".into(), subgroups(caps), norm_out),
        case("swiglu", "by GELU".into(), vec![], |gpu| gate(gpu, false)),
        // A part of rope, too.
        case("rope_train", "biases and norms".into(), vec![], heads),
    ]
}

pub(super) fn training_cases() -> Vec<Case> {
    vec![
        case("swiglu_backward", "by GELU".into(), vec![], |gpu| gate(gpu, true)),
        case("heads_backward", "4 rows".into(), vec![], through_heads),
    ]
}

fn norm_out(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (k, mut random) = (100, Random(51));
    let (x, gain, held) = (random.vec(ROWS * k), random.vec(k), random.vec(ROWS * k));
    let y = poisoned(gpu, &held, ROWS * k)?;
    let inputs = [&gpu.upload("x", &x)?, &gpu.upload("gain", &gain)?, &y];
    let op = gpu.op(&rms_norm::spec(gpu.caps(), true), &inputs)?;
    let params = RmsNormParams { rows: ROWS as u32, k4: k as u32 / 4, eps: EPS };
    submit(gpu, |commands| {
        rms_norm::record(commands, &op, params);
        Ok(())
    })?;
    let near = |i: usize| {
        let scale = rms_scale(&x[i / k * k..][..k], EPS);
        let added = f64::from(x[i]) * scale * f64::from(gain[i % k]);
        Near { value: f64::from(held[i]) + added, bound: 1e-5 }
    };
    Ok(vec![Outcome::read(gpu, &y, (0..ROWS * k).map(near).collect())?])
}

/// GELU by its tanh approximation, and its derivative.
fn gelu(x: f64) -> [f64; 2] {
    let root = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let sigmoid = 1.0 / (1.0 + (-root * (x + 0.044_715 * x.powi(3))).exp());
    let inner = root * x * (1.0 + 3.0 * 0.044_715 * x * x);
    [x * sigmoid, sigmoid * (1.0 + inner * (1.0 - sigmoid))]
}

fn gate(gpu: &Gpu, backward: bool) -> Result<Vec<Outcome>> {
    let (f, mut random) = (72, Random(52));
    let gu: Vec<f32> = random.vec(ROWS * 2 * f).iter().map(|v| 8.0 * v).collect();
    let dh = random.vec(ROWS * f);
    let pair = |row: usize, i: usize| [0, f].map(|part| f64::from(gu[row * 2 * f + part + i]));
    if backward {
        let tensor = poisoned(gpu, &gu, gu.len())?;
        let inputs = [&gpu.upload("dh", &dh)?, &tensor];
        let op = gpu.op(&swiglu_backward::spec(GeluTanh), &inputs)?;
        let params = SwiGluBackwardParams { f4: f as u32 / 4, ..Default::default() };
        submit(gpu, |commands| {
            swiglu_backward::record(commands, &op, params, ROWS as u32);
            Ok(())
        })?;
        let near = |at: usize| {
            let (row, i) = (at / (2 * f), at % f);
            let [gate, up] = pair(row, i);
            let [value, slope] = gelu(gate);
            let by = if at % (2 * f) < f { up * slope } else { value };
            Near { value: f64::from(dh[row * f + i]) * by, bound: 1e-4 }
        };
        return Ok(vec![Outcome::read(gpu, &tensor, (0..gu.len()).map(near).collect())?]);
    }
    let h = poisoned(gpu, &[], ROWS * f)?;
    let inputs = [&gpu.upload("gu", &gu)?, &h];
    let op = gpu.op(&swiglu::spec(gpu.caps(), GeluTanh, None), &inputs)?;
    submit(gpu, |commands| {
        let params = SwiGluParams { f: f as u32, ..Default::default() };
        swiglu::record(commands, &op, &params, ROWS as u32);
        Ok(())
    })?;
    let near = |at: usize| {
        let [gate, up] = pair(at / f, at % f);
        Near { value: gelu(gate)[0] * up, bound: 1e-4 }
    };
    Ok(vec![Outcome::read(gpu, &h, (0..ROWS * f).map(near).collect())?])
}

/// A head with its bias, and its gain, but for v.
struct Head<'a> {
    x: Vec<f32>,
    gain: Option<&'a [f32]>,
}

impl<'a> Head<'a> {
    /// Number `n` of all; one key and value head.
    fn new(qkv: &[f32], beside: &'a [f32], n: usize) -> Self {
        let head = n % (H + 2);
        let biased = qkv[n * E..][..E].iter().zip(&beside[head * E..]);
        let gain = [0, 1, 2][usize::from(head >= H) + usize::from(head > H)];
        Self {
            x: biased.map(|(v, bias)| v + bias).collect(),
            gain: (gain < 2).then(|| &beside[QKV + gain * E..][..E]),
        }
    }
}

/// At position 0, where nothing is turned.
fn heads(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let mut random = Random(53);
    let (qkv, beside) = (random.vec(ROWS * QKV), random.vec(QKV + 2 * E));
    let tensor = poisoned(gpu, &qkv, qkv.len())?;
    let rows: Vec<[u32; 2]> = (0..ROWS as u32).map(|t| [t, t + 1]).collect();
    let turns = gpu.upload("rotations", &rotations(&[1.0; E / 2], 1.0, ROWS))?;
    let input = HeadInput { bias: true, norm: true };
    let tensors = [&gpu.upload("rows", &rows)?, &turns, &tensor, &gpu.upload("beside", &beside)?];
    let op = gpu.op(&rope_train::beside_spec(E as u32, input), &tensors)?;
    let (heads, kv_heads, direction) = (H as u32, 1, rope_train::FORWARD);
    let params =
        RopeTrainParams { heads, kv_heads, row0: 0, direction, eps: EPS, rotary_dim: E as u32 };
    submit(gpu, |commands| {
        rope_train::record_beside(commands, &op, (E as u32, input), params, ROWS as u32);
        Ok(())
    })?;
    let near = |at: usize| {
        let Head { x, gain } = Head::new(&qkv, &beside, at / E);
        let scaled = gain.map_or(1.0, |gain| rms_scale(&x, EPS) * f64::from(gain[at % E]));
        Near { value: f64::from(x[at % E]) * scaled, bound: 1e-5 }
    };
    Ok(vec![Outcome::read(gpu, &tensor, (0..qkv.len()).map(near).collect())?])
}

fn through_heads(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let mut random = Random(54);
    let (raw, beside) = (random.vec(ROWS * QKV), random.vec(QKV + 2 * E));
    let dy = random.vec(raw.len());
    let tensor = poisoned(gpu, &dy, dy.len())?;
    let tensors = [&gpu.upload("raw", &raw)?, &gpu.upload("beside", &beside)?, &tensor];
    let op = gpu.op(&heads_backward::spec(E as u32, true), &tensors)?;
    let params = HeadsBackwardParams { heads: H as u32, kv_heads: 1, row0: 0, eps: EPS };
    submit(gpu, |commands| {
        heads_backward::record(commands, &op, params, ROWS as u32);
        Ok(())
    })?;
    let near = |at: usize| {
        let (Head { x, gain }, first) = (Head::new(&raw, &beside, at / E), at / E * E);
        let Some(gain) = gain else { return Near { value: dy[at].into(), bound: 0.0 } };
        let (scale, i) = (rms_scale(&x, EPS), at % E);
        let g = |i: usize| f64::from(gain[i]) * f64::from(dy[first + i]);
        let pull = (0..E).map(|i| g(i) * f64::from(x[i])).sum::<f64>() / E as f64;
        let value = scale * (g(i) - f64::from(x[i]) * pull * scale * scale);
        Near { value, bound: 1e-5 }
    };
    Ok(vec![Outcome::read(gpu, &tensor, (0..dy.len()).map(near).collect())?])
}
