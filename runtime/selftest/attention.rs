//! Rotation, the cache, and attention in its three ways, over an f32 cache and over an f16 one.

use half::f16;

use super::Ability::{self, CooperativeMatrix, F16};
use super::cases::{
    Case, GUARD, Near, Outcome, Random, UNTOUCHED, case, poisoned, subgroups, submit,
};
use crate::error::Result;
use crate::gpu::{Caps, Gpu, Tensor};
use crate::kernels::attention::{
    self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams,
};
use crate::kernels::rope::{self, RopeParams};
use crate::model::pages::PAGE_LEN;

const H: usize = 6;
const G: usize = 2;
const E: usize = 64;
const QKV: usize = (H + 2 * G) * E;
/// Pages of the one sequence, in an order of their own.
const PAGES: [u32; 10] = [3, 0, 7, 4, 1, 8, 5, 2, 9, 6];
const SLOTS: usize = PAGES.len() * G * PAGE_LEN * E;

/// How scores become an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One part a row.
    Whole,
    /// Parts, joined.
    Split,
    /// Tiles of consecutive rows.
    Prefill,
}

pub(super) fn cases(caps: &Caps) -> Vec<Case> {
    let mut cases = Vec::new();
    // A software GPU compiles slowly: only what it will use by default.
    let caches = match (caps.f16, caps.software) {
        (true, true) => &[true][..],
        (true, false) => &[false, true],
        (false, _) => &[false],
    };
    for &kv_f16 in caches {
        let cache: Vec<Ability> = kv_f16.then_some(F16).into_iter().collect();
        let lanes = [cache.clone(), subgroups(caps)].concat();
        let name = if kv_f16 { "f16 cache" } else { "f32 cache" };
        cases.push(case("rope", name.into(), cache.clone(), move |gpu| rotate(gpu, kv_f16)));
        let attend = |way| move |gpu: &Gpu| attend(gpu, kv_f16, way);
        cases.push(case("attention", name.into(), lanes.clone(), attend(Way::Whole)));
        cases.push(case(
            "attention_reduce",
            format!("{name}, 2 splits"),
            lanes,
            attend(Way::Split),
        ));
        if !caps.software {
            let kernel = attention::prefill_spec(caps, heads(kv_f16)).name;
            let coop = kernel.ends_with("_coop").then_some(CooperativeMatrix);
            let uses = cache.into_iter().chain(coop).collect();
            cases.push(case(kernel, name.into(), uses, attend(Way::Prefill)));
        }
    }
    cases
}

fn heads(kv_f16: bool) -> Heads {
    Heads {
        heads: H as u32,
        kv_heads: G as u32,
        head_dim: E as u32,
        page_len: PAGE_LEN as u32,
        kv_f16,
    }
}

/// Where a position's head lies: `[pages, G, PAGE_LEN, E]`.
fn slot(kv_head: usize, position: usize) -> usize {
    ((PAGES[position / PAGE_LEN] as usize * G + kv_head) * PAGE_LEN + position % PAGE_LEN) * E
}

/// Uploads as the cache holds it.
fn upload(gpu: &Gpu, data: &[f32], kv_f16: bool) -> Result<Tensor> {
    if !kv_f16 {
        return gpu.upload("cache", data);
    }
    gpu.upload("cache", &data.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>())
}

fn outcome(gpu: &Gpu, cache: &Tensor, kv_f16: bool, want: Vec<Near>) -> Result<Outcome> {
    if !kv_f16 {
        return Outcome::read(gpu, cache, want);
    }
    let got: Vec<f16> = gpu.read(cache, 0, want.len())?;
    Ok(Outcome { got: got.iter().map(|v| v.to_f32()).collect(), want })
}

fn rotate(gpu: &Gpu, kv_f16: bool) -> Result<Vec<Outcome>> {
    let positions = [0_u32, 37, 300];
    // The last quarter of a head does not turn.
    let turned = 3 * E / 4;
    let mut frequencies: Vec<f32> =
        (0..turned / 2).map(|i| 1e4_f32.powf(-2.0 * i as f32 / turned as f32)).collect();
    frequencies.resize(E / 2, 0.0);
    let qkv = Random(11).vec(positions.len() * QKV);
    let rows = gpu.upload("rows", &positions.map(|position| [0, position]))?;
    let pages = gpu.upload("pages", &PAGES)?;
    let rotations =
        gpu.upload("rotations", &rope::rotations(&frequencies, 1.0, PAGES.len() * PAGE_LEN))?;
    let qkv_tensor = poisoned(gpu, &qkv, qkv.len())?;
    let unwritten = vec![f32::NAN; SLOTS + GUARD];
    let (keys, values) = (upload(gpu, &unwritten, kv_f16)?, upload(gpu, &unwritten, kv_f16)?);
    let spec = rope::spec(E as u32, PAGE_LEN as u32, true, kv_f16, None);
    let op = gpu.op(&spec, &[&rows, &pages, &rotations, &qkv_tensor, &keys, &values])?;
    let params = RopeParams {
        heads: H as u32,
        kv_heads: G as u32,
        max_pages: PAGES.len() as u32,
        rotary_dim: turned as u32,
        ..Default::default()
    };
    submit(gpu, |commands| {
        rope::record(commands, &op, E as u32, params, positions.len() as u32);
        Ok(())
    })?;
    let exact = |v: &f32| Near { value: (*v).into(), bound: 0.0 };
    let mut want_qkv: Vec<Near> = qkv.iter().map(exact).collect();
    let (mut want_keys, mut want_values) =
        (vec![UNTOUCHED; SLOTS + GUARD], vec![UNTOUCHED; SLOTS + GUARD]);
    for (m, position) in positions.iter().map(|p| *p as usize).enumerate() {
        for head in 0..H + G {
            let at = (m * (H + 2 * G) + head) * E;
            let (head_in, bound) = (&qkv[at..at + E], if kv_f16 { 2e-3 } else { 1e-5 });
            let rotated = rotated(head_in, position, &frequencies[..turned / 2], bound);
            match head.checked_sub(H) {
                None => want_qkv[at..at + E].copy_from_slice(&rotated),
                Some(kv_head) => {
                    want_keys[slot(kv_head, position)..][..E].copy_from_slice(&rotated)
                }
            }
        }
        for kv_head in 0..G {
            let v = &qkv[(m * (H + 2 * G) + H + G + kv_head) * E..][..E];
            let want = want_values[slot(kv_head, position)..][..E].iter_mut();
            want.zip(v).for_each(|(want, v)| *want = exact(v));
        }
    }
    Ok(vec![
        written_q(Outcome::read(gpu, &qkv_tensor, want_qkv)?),
        outcome(gpu, &keys, kv_f16, want_keys)?,
        outcome(gpu, &values, kv_f16, want_values)?,
    ])
}

/// Only q: whether k and v stay where they came from is the kernel's affair.
fn written_q(mut qkv: Outcome) -> Outcome {
    let guard = qkv.got.len() - GUARD;
    let kept = |i: usize| i >= guard || i % QKV < H * E;
    let mut pairs =
        qkv.got.iter().copied().zip(qkv.want.iter().copied()).enumerate().filter(|(i, _)| kept(*i));
    (qkv.got, qkv.want) = pairs.by_ref().map(|(_, pair)| pair).unzip();
    qkv
}

/// Pairs `(i, i + R/2)` turned by `position * frequencies[i]`, and the rest, R being twice as many
/// as there are frequencies.
fn rotated(head: &[f32], position: usize, frequencies: &[f32], bound: f64) -> Vec<Near> {
    let half = frequencies.len();
    let turn = |i: usize| {
        if i >= 2 * half {
            return Near { value: head[i].into(), bound };
        }
        let (sin, cos) = (position as f64 * f64::from(frequencies[i % half])).sin_cos();
        let (a, b) = (f64::from(head[i % half]), f64::from(head[i % half + half]));
        Near { value: if i < half { a * cos - b * sin } else { a * sin + b * cos }, bound }
    };
    (0..head.len()).map(turn).collect()
}

fn attend(gpu: &Gpu, kv_f16: bool, way: Way) -> Result<Vec<Outcome>> {
    let positions: Vec<u32> = match way {
        Way::Whole => vec![0, 4, 40],
        Way::Split => vec![2, attention::CHUNK + 20],
        Way::Prefill => (30..43).collect(),
    };
    let mut random = Random(12);
    let (qkv, keys, values) =
        (random.vec(positions.len() * QKV), random.vec(SLOTS), random.vec(SLOTS));
    let qkv_tensor = gpu.upload("qkv", &qkv)?;
    let rows =
        gpu.upload("rows", &positions.iter().map(|position| [0, *position]).collect::<Vec<_>>())?;
    let (pages, keys_tensor, values_tensor) =
        (gpu.upload("pages", &PAGES)?, upload(gpu, &keys, kv_f16)?, upload(gpu, &values, kv_f16)?);
    let out = poisoned(gpu, &[], positions.len() * H * E)?;
    let inputs = [&rows, &pages, &qkv_tensor, &keys_tensor, &values_tensor];
    dispatch(gpu, heads(kv_f16), way, inputs, &out, &positions)?;
    let row = |(m, position): (usize, &u32)| {
        let q = &qkv[m * QKV..][..H * E];
        let head = |(h, q): (usize, &[f32])| {
            reference(q, &keys, &values, h / (H / G), *position as usize + 1)
        };
        q.chunks(E).enumerate().flat_map(head).collect::<Vec<_>>()
    };
    Ok(vec![Outcome::read(gpu, &out, positions.iter().enumerate().flat_map(row).collect())?])
}

fn dispatch(
    gpu: &Gpu,
    heads: Heads,
    way: Way,
    inputs: [&Tensor; 5],
    out: &Tensor,
    positions: &[u32],
) -> Result<()> {
    let (count, max_pages, scale) =
        (positions.len() as u32, PAGES.len() as u32, 1.0 / (E as f32).sqrt());
    let (h, g) = (heads.heads, heads.kv_heads);
    let [rows, pages, qkv, keys, values] = inputs;
    if way == Way::Prefill {
        let op = gpu.op(
            &attention::prefill_spec(gpu.caps(), heads),
            &[rows, pages, qkv, keys, values, out],
        )?;
        let params =
            PrefillParams { heads: h, kv_heads: g, max_pages, row0: 0, count, scale, window: 0 };
        return submit(gpu, |commands| {
            attention::record_prefill(commands, &op, heads, &params, 0);
            Ok(())
        });
    }
    let split = way == Way::Split;
    let splits =
        if split { attention::splits(positions.iter().max().map_or(1, |p| p + 1)) } else { 1 };
    let parts = poisoned(gpu, &[], positions.len() * splits as usize * H * E)?;
    let stats = poisoned(gpu, &[], positions.len() * splits as usize * H * 2)?;
    let first = if split { &parts } else { out };
    let tensors = [rows, pages, qkv, keys, values, first, &stats];
    let (leaves, bound) =
        if split { (Leaves::Split, &tensors[..]) } else { (Leaves::Whole, &tensors[..6]) };
    let op = gpu.op(&attention::spec(gpu.caps(), heads, leaves), bound)?;
    let join = gpu.op(
        &attention::reduce_spec(gpu.caps(), heads.head_dim, None),
        &[rows, &parts, &stats, out],
    )?;
    submit(gpu, |commands| {
        let params = AttentionParams {
            heads: h,
            kv_heads: g,
            max_pages,
            splits,
            scale,
            ..Default::default()
        };
        attention::record(commands, &op, &params, count, 0);
        if split {
            let params = ReduceParams { heads: h, splits, ..Default::default() };
            attention::record_reduce(commands, &join, heads.head_dim, &params, count);
        }
        Ok(())
    })
}

/// `softmax(q kᵀ / sqrt(E)) v` of one head over the first `len` positions.
fn reference(q: &[f32], keys: &[f32], values: &[f32], kv_head: usize, len: usize) -> Vec<Near> {
    let score = |position| {
        let k = &keys[slot(kv_head, position)..][..E];
        let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        (dot / (E as f64).sqrt()).exp()
    };
    let weights: Vec<f64> = (0..len).map(score).collect();
    let sum: f64 = weights.iter().sum();
    let column = |e: usize| {
        let terms =
            weights.iter().enumerate().map(|(t, w)| w * f64::from(values[slot(kv_head, t) + e]));
        Near { value: terms.sum::<f64>() / sum, bound: 1e-4 }
    };
    (0..E).map(column).collect()
}
