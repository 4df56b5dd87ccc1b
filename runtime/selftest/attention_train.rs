//! Rotation and attention of packed sequences, and their gradients.

use super::cases::{Case, Near, Outcome, Random, UNTOUCHED, case, poisoned, submit};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::attention_train::{self, AttentionTrainParams};
use crate::kernels::rope_train::{self, BACKWARD, FORWARD, RopeTrainParams};
use crate::kernels::{attention_backward, rope};

const H: usize = 4;
const G: usize = 2;
const E: usize = 64;
const QKV: usize = (H + 2 * G) * E;
/// Rows of two sequences, the second over the edge of a tile.
const T: usize = 37;
const SPLIT: usize = 5;
const SCALE: f32 = 0.125;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("rope_train", "forward".into(), vec![], |gpu| rotate(gpu, FORWARD)),
        case("rope_train", "backward".into(), vec![], |gpu| rotate(gpu, BACKWARD)),
        case("attention_train", "2 sequences".into(), vec![], forward),
        case("attention_dq", "2 sequences".into(), vec![], |gpu| backward(gpu, false)),
        case("attention_dkv", "2 sequences".into(), vec![], |gpu| backward(gpu, true)),
    ]
}

/// First row and end of row t's sequence.
fn row(t: usize) -> [u32; 2] {
    if t < SPLIT { [0, SPLIT as u32] } else { [SPLIT as u32, T as u32] }
}

fn rows() -> Vec<[u32; 2]> {
    (0..T).map(row).collect()
}

fn rotate(gpu: &Gpu, direction: f32) -> Result<Vec<Outcome>> {
    // The last quarter of a head does not turn.
    let turned = 3 * E / 4;
    let mut frequencies: Vec<f32> =
        (0..turned / 2).map(|i| 1e4_f32.powf(-2.0 * i as f32 / turned as f32)).collect();
    frequencies.resize(E / 2, 0.0);
    let qkv = Random(41).vec(T * QKV);
    let tensor = poisoned(gpu, &qkv, qkv.len())?;
    let rotations = gpu.upload("rotations", &rope::rotations(&frequencies, 1.0, T))?;
    let op =
        gpu.op(&rope_train::spec(E as u32), &[&gpu.upload("rows", &rows())?, &rotations, &tensor])?;
    let params = RopeTrainParams {
        heads: H as u32,
        kv_heads: G as u32,
        row0: 0,
        direction,
        eps: 0.0,
        rotary_dim: turned as u32,
    };
    submit(gpu, |commands| {
        rope_train::record(commands, &op, E as u32, params, T as u32);
        Ok(())
    })?;
    let near = |at: usize| {
        let (t, head, i) = (at / QKV, at % QKV / E, at % E);
        if i >= turned || head >= H + G {
            return Near { value: qkv[at].into(), bound: 1e-5 };
        }
        let half = turned / 2;
        let angle = f64::from(frequencies[i % half])
            * (t - row(t)[0] as usize) as f64
            * f64::from(direction);
        let (pair, sign) = if i < half { (at + half, -1.0) } else { (at - half, 1.0) };
        let value = f64::from(qkv[at]) * angle.cos() + sign * f64::from(qkv[pair]) * angle.sin();
        Near { value, bound: 1e-5 }
    };
    Ok(vec![Outcome::read(gpu, &tensor, (0..qkv.len()).map(near).collect())?])
}

fn params() -> AttentionTrainParams {
    let (rows, heads, kv_heads) = (T as u32, H as u32, G as u32);
    AttentionTrainParams { rows, heads, kv_heads, row0: 0, scale: SCALE, window: 0 }
}

/// Where q, k and v of row t lie, for a query head.
fn q_k_v(t: usize, head: usize) -> [usize; 3] {
    let kv_head = head / (H / G);
    [head, H + kv_head, H + G + kv_head].map(|head| t * QKV + head * E)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `out [T, H, E]` and `lse [T, H]`.
fn attention(qkv: &[f32]) -> [Vec<f64>; 2] {
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (t, head) in (0..T).flat_map(|t| (0..H).map(move |head| (t, head))) {
        let seen = || row(t)[0] as usize..=t;
        let score = |j| {
            dot(&qkv[q_k_v(t, head)[0]..][..E], &qkv[q_k_v(j, head)[1]..][..E]) * f64::from(SCALE)
        };
        let sum: f64 = seen().map(|j| score(j).exp()).sum();
        let column = |i| {
            seen()
                .map(|j| score(j).exp() / sum * f64::from(qkv[q_k_v(j, head)[2] + i]))
                .sum::<f64>()
        };
        out.extend((0..E).map(column));
        lse.push(sum.ln());
    }
    [out, lse]
}

fn forward(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let qkv = Random(42).vec(T * QKV);
    let (out, lse) = (poisoned(gpu, &[], T * H * E)?, poisoned(gpu, &[], T * H)?);
    let inputs = [gpu.upload("rows", &rows())?, gpu.upload("qkv", &qkv)?];
    let op = gpu.op(&attention_train::spec(E as u32), &[&inputs[0], &inputs[1], &out, &lse])?;
    submit(gpu, |commands| {
        attention_train::record(commands, &op, &params());
        Ok(())
    })?;
    let near =
        |values: Vec<f64>| values.into_iter().map(|value| Near { value, bound: 1e-4 }).collect();
    let [values, sums] = attention(&qkv).map(near);
    Ok(vec![Outcome::read(gpu, &out, values)?, Outcome::read(gpu, &lse, sums)?])
}

/// The gradient by q, or those by k and v.
fn backward(gpu: &Gpu, kv: bool) -> Result<Vec<Outcome>> {
    let mut random = Random(43);
    let (qkv, d_out) = (random.vec(T * QKV), random.vec(T * H * E));
    let [out, lse] =
        attention(&qkv).map(|values| values.into_iter().map(|v| v as f32).collect::<Vec<_>>());
    let [rows, qkv_in] = [gpu.upload("rows", &rows())?, gpu.upload("qkv", &qkv)?];
    let [out_in, lse_in, d_in] =
        [gpu.upload("out", &out)?, gpu.upload("lse", &lse)?, gpu.upload("d_out", &d_out)?];
    let (delta, d_qkv) = (poisoned(gpu, &[], T * H)?, poisoned(gpu, &[], T * QKV)?);
    let delta_op = gpu.op(&attention_backward::delta_spec(E as u32), &[&out_in, &d_in, &delta])?;
    let spec = if kv {
        attention_backward::dkv_spec(E as u32)
    } else {
        attention_backward::dq_spec(E as u32)
    };
    let op = gpu.op(&spec, &[&rows, &qkv_in, &lse_in, &d_in, &delta, &d_qkv])?;
    submit(gpu, |commands| {
        attention_backward::record_delta(commands, &delta_op, &params());
        if kv {
            attention_backward::record_dkv(commands, &op, &params());
        } else {
            attention_backward::record_dq(commands, &op, &params());
        }
        Ok(())
    })?;
    let deltas = out
        .chunks(E)
        .zip(d_out.chunks(E))
        .map(|(o, d)| Near { value: dot(o, d), bound: 1e-4 })
        .collect();
    let mut want = gradient(&qkv, &lse, &out, &d_out);
    for (i, near) in want.iter_mut().enumerate() {
        if (i % QKV >= H * E) != kv {
            *near = UNTOUCHED;
        }
    }
    Ok(vec![Outcome::read(gpu, &delta, deltas)?, Outcome::read(gpu, &d_qkv, want)?])
}

/// `d_qkv [T, (H + 2 G) E]`.
fn gradient(qkv: &[f32], lse: &[f32], out: &[f32], d_out: &[f32]) -> Vec<Near> {
    let mut d_qkv = vec![Near { value: 0.0, bound: 1e-4 }; T * QKV];
    for (t, head) in (0..T).flat_map(|t| (0..H).map(move |head| (t, head))) {
        let at = t * H + head;
        let d = &d_out[at * E..][..E];
        for j in row(t)[0] as usize..=t {
            let ([q, ..], [_, k, v]) = (q_k_v(t, head), q_k_v(j, head));
            let p =
                (dot(&qkv[q..][..E], &qkv[k..][..E]) * f64::from(SCALE) - f64::from(lse[at])).exp();
            let ds = p * (dot(d, &qkv[v..][..E]) - dot(d, &out[at * E..][..E])) * f64::from(SCALE);
            for (i, d) in d.iter().enumerate() {
                d_qkv[q + i].value += ds * f64::from(qkv[k + i]);
                d_qkv[k + i].value += ds * f64::from(qkv[q + i]);
                d_qkv[v + i].value += p * f64::from(*d);
            }
        }
    }
    d_qkv
}
