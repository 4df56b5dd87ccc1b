//! LoRA: each file of `shaders/lora/` at least once, in the fewest kernels. Three rows, the middle
//! one without adapters.

use half::f16;

use super::Ability;
use super::cases::{
    Case, Near, Outcome, Random, UNTOUCHED, case, poisoned, silu, subgroups, submit,
};
use super::linear::{self, Weights};
use crate::base::layout::Activation;
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Caps, Gpu, Tensor};
use crate::kernels::lora::{
    self, Directory, ENTRIES, EmbeddingParams, ExpandParams, MORE, ShrinkParams,
};
use crate::kernels::matvec::MAX_COLS;
use crate::kernels::matvec::{Epilogue, Lora};
use crate::kernels::matvec_coop::{Shape, Tiling};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::model::linear::{Binding, LinearOp, LoraBinding, RowRange, USize};

const ROWS: usize = 3;
/// The set of each row, and one to make them a multiple of 4.
const SETS: [u32; ROWS + 1] = [1, 0, 1, 0];
/// Ranks and weights of the set's two adapters.
const ADAPTERS: [(usize, f32); 2] = [(8, 0.5), (16, -2.0)];
/// Elements of u for one linear.
const RANKS: usize = 24;
const TOLERANCE: f64 = 1e-4;

pub(super) fn cases(caps: &Caps) -> Vec<Case> {
    let lanes = || subgroups(caps);
    let mut cases = vec![
        case("lora_shrink", "3 rows".into(), lanes(), shrink),
        case("lora_expand", "3 rows".into(), vec![], expand),
        case("lora_embedding", "3 rows".into(), vec![], embedding),
        case("matvec", "q4_0, 3 rows, norm, adapters' A".into(), lanes(), |gpu| {
            matvec_shrink(gpu, None)
        }),
        case("matvec", "q4_0, 3 rows, adapters' B".into(), lanes(), |gpu| matvec_expand(gpu, None)),
        case("swiglu", "3 rows, adapters".into(), lanes(), around_swiglu),
    ];
    let ways = Shape::of(caps)
        .into_iter()
        .flat_map(|shape| shape.tilings().map(move |tiling| (shape, tiling)))
        .filter(|(_, tiling)| tiling.cols == MAX_COLS);
    for way in ways {
        let name = |what: &str| {
            format!("q4_0, {} of {} subgroups together, {what}", way.1.split, way.1.subgroups)
        };
        let matrices = || vec![Ability::CooperativeMatrix];
        let shrink = move |gpu: &Gpu| matvec_shrink(gpu, Some(way));
        cases.push(case("matvec_coop", name("norm, adapters' A"), matrices(), shrink));
        let expand = move |gpu: &Gpu| matvec_expand(gpu, Some(way));
        cases.push(case("matvec_coop", name("adapters' B"), matrices(), expand));
    }
    cases
}

/// How cooperative matrices multiply, where they do.
type Way = Option<(Shape, Tiling)>;

/// `op` in this way, and its tolerance.
fn in_way(op: LinearOp, way: Way) -> (LinearOp, f64) {
    match way {
        Some((shape, tiling)) => (op.on_matrices(shape, tiling), linear::HALVES),
        None => (op, TOLERANCE),
    }
}

/// The factors of a site of linears with the same input.
struct Site {
    k: usize,
    modules: usize,
    /// By adapter `[modules * rank, K]`, one after the other.
    a: Vec<f32>,
    /// By adapter `[N, rank]`.
    b: Vec<Vec<f32>>,
}

impl Site {
    /// `n` is the rows of all linears.
    fn random((k, n, modules): (usize, usize, usize), random: &mut Random) -> Self {
        let b = ADAPTERS.iter().map(|(rank, _)| random.vec(n * rank)).collect();
        Self { k, modules, a: random.vec(RANKS * modules * k), b }
    }

    fn u_width(&self) -> u32 {
        (RANKS * self.modules) as u32
    }

    /// u of one row of x.
    fn u(&self, x: &[f64]) -> Vec<Near> {
        let weights = ADAPTERS
            .iter()
            .flat_map(|&(rank, weight)| vec![f64::from(weight); rank * self.modules]);
        let row = |(a, weight): (&[f32], f64)| {
            Near::sum(a.iter().zip(x).map(|(a, x)| weight * f64::from(*a) * x), TOLERANCE)
        };
        self.a.chunks(self.k).zip(weights).map(row).collect()
    }

    /// B u for row `n` of linear number `which`; a term is up to 2 and there are [`RANKS`].
    fn b_times(&self, n: usize, which: usize, u: &[f32]) -> f64 {
        let (mut sum, mut before) = (0.0, 0);
        for ((rank, _), b) in ADAPTERS.iter().zip(&self.b) {
            let u = &u[before + which * rank..][..*rank];
            sum += b[n * rank..]
                .iter()
                .zip(u)
                .map(|(b, u)| f64::from(*b) * f64::from(*u))
                .sum::<f64>();
            before += rank * self.modules;
        }
        sum
    }
}

/// The directory and the buffers of A and B, laid out as `shaders/lora/a.wgsl` and `b.wgsl` say.
fn upload(gpu: &Gpu, sites: &[Site]) -> Result<(Directory, Tensor, Tensor)> {
    let directory = Directory { rows: SETS.len() as u32, sets: 2, sites: sites.len() as u32 };
    let first = directory.words() / 4;
    let (mut a, mut b) = (SETS.to_vec(), SETS.to_vec());
    a.resize(4 * first as usize, 0);
    b.resize(4 * first as usize, 0);
    let (mut for_a, mut for_b): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for (number, site) in sites.iter().enumerate() {
        let mut before = 0;
        for (i, (&(rank, weight), factor)) in ADAPTERS.iter().zip(&site.b).enumerate() {
            let rows = rank * site.modules;
            let at = SETS.len() + ((sites.len() + number) * ENTRIES as usize + i) * 4;
            let more = if i + 1 < ADAPTERS.len() { MORE } else { 0 };
            let entry = |values: &[f32], second: usize| {
                [
                    first + values.len() as u32 / 8,
                    second as u32 | more,
                    weight.to_bits(),
                    before as u32,
                ]
            };
            a[at..at + 4].copy_from_slice(&entry(&for_a, rows));
            b[at..at + 4].copy_from_slice(&entry(&for_b, rank));
            for_a.extend(&site.a[before * site.k..][..rows * site.k]);
            for_b.extend(factor);
            before += rows;
        }
    }
    let halves = |pair: &[f32; 2]| {
        let [low, high] = pair.map(|v| u32::from(f16::from_f32(v).to_bits()));
        low | high << 16
    };
    a.extend(for_a.as_chunks().0.iter().map(halves));
    b.extend(for_b.as_chunks().0.iter().map(halves));
    Ok((directory, gpu.upload("A", &a)?, gpu.upload("B", &b)?))
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// By row what `of` makes of it; [`UNTOUCHED`] where it has no adapters.
fn rows_with(width: usize, of: impl Fn(usize) -> Vec<Near>) -> Vec<Near> {
    (0..ROWS).flat_map(|m| if SETS[m] == 0 { vec![UNTOUCHED; width] } else { of(m) }).collect()
}

fn shrink(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (k, mut random) = (104, Random(31));
    let (site, x) = (Site::random((k, 4, 1), &mut random), random.vec(ROWS * k));
    let (directory, a, _) = upload(gpu, std::slice::from_ref(&site))?;
    let u = poisoned(gpu, &[], ROWS * RANKS)?;
    let op = gpu.op(&lora::shrink_spec(gpu.caps(), directory), &[&gpu.upload("x", &x)?, &a, &u])?;
    let params = ShrinkParams { k8s: k as u32 / 8, u_width: site.u_width(), ..Default::default() };
    submit(gpu, |commands| {
        lora::record_shrink(commands, &op, &params, ROWS as u32);
        Ok(())
    })?;
    Ok(vec![Outcome::read(gpu, &u, rows_with(RANKS, |m| site.u(&exact(&x[m * k..][..k]))))?])
}

fn expand(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (n, mut random) = (70, Random(32));
    let (site, u, y) =
        (Site::random((4, n, 2), &mut random), random.vec(ROWS * 2 * RANKS), random.vec(ROWS * n));
    let (directory, _, b) = upload(gpu, std::slice::from_ref(&site))?;
    let y_tensor = poisoned(gpu, &y, y.len())?;
    let op = gpu.op(&lora::expand_spec(directory), &[&y_tensor, &b, &gpu.upload("u", &u)?])?;
    let (u_width, end0, end1) = (site.u_width(), 30, n as u32);
    let params = ExpandParams { n: n as u32, u_width, end0, end1, ..Default::default() };
    submit(gpu, |commands| {
        lora::record_expand(commands, &op, &params, ROWS as u32);
        Ok(())
    })?;
    let near = |(i, y): (usize, &f32)| {
        let (m, n) = (i / n, i % n);
        let row = &u[m * 2 * RANKS..][..2 * RANKS];
        let added = if SETS[m] == 0 { 0.0 } else { site.b_times(n, usize::from(n >= 30), row) };
        Near { value: f64::from(*y) + added, bound: TOLERANCE }
    };
    Ok(vec![Outcome::read(gpu, &y_tensor, y.iter().enumerate().map(near).collect())?])
}

fn embedding(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (vocab, d, mut random) = (9, 70, Random(33));
    let (site, x) = (Site::random((vocab, d, 1), &mut random), random.vec(ROWS * d));
    let ids = [7_u32, 2, 0];
    let (directory, a, b) = upload(gpu, std::slice::from_ref(&site))?;
    let x_tensor = poisoned(gpu, &x, x.len())?;
    let op = gpu.op(
        &lora::embedding_spec(directory),
        &[&gpu.upload("token_ids", &ids)?, &x_tensor, &a, &b],
    )?;
    let params = EmbeddingParams { d: d as u32, scale: 1.0, ..Default::default() };
    submit(gpu, |commands| {
        lora::record_embedding(commands, &op, &params, ROWS as u32);
        Ok(())
    })?;
    // Here A is `[V, rank]`: a row of it, times the weight, stands for u.
    let u = |id: usize| {
        let mut before = 0;
        let of = |&(rank, weight): &(usize, f32)| {
            let row = &site.a[before * vocab + id * rank..][..rank];
            before += rank;
            row.iter().map(|a| weight * a).collect::<Vec<f32>>()
        };
        ADAPTERS.iter().flat_map(of).collect::<Vec<f32>>()
    };
    let near = |(i, x): (usize, &f32)| {
        let m = i / d;
        let added = if SETS[m] == 0 { 0.0 } else { site.b_times(i % d, 0, &u(ids[m] as usize)) };
        Near { value: f64::from(*x) + added, bound: TOLERANCE }
    };
    Ok(vec![Outcome::read(gpu, &x_tensor, x.iter().enumerate().map(near).collect())?])
}

fn matvec_shrink(gpu: &Gpu, way: Way) -> Result<Vec<Outcome>> {
    let mut random = Random(34);
    let (n, k) = (linear::N, linear::K);
    let (weights, site) =
        (Weights::random(gpu, DType::Q4_0, &mut random)?, Site::random((k, 4, 1), &mut random));
    let (x, gain) = (random.vec(ROWS * k), random.vec(k));
    let (directory, a, _) = upload(gpu, std::slice::from_ref(&site))?;
    let (y, u) = (poisoned(gpu, &[], ROWS * n)?, poisoned(gpu, &[], ROWS * RANKS)?);
    let (x_tensor, gain_tensor) = (gpu.upload("x", &x)?, gpu.upload("gain", &gain)?);
    let lora = Some(LoraBinding { lora: Lora::Shrink(directory), factors: &a, u: &u, site: 0 });
    let norm = Some((&gain_tensor, linear::EPS));
    let binding =
        Binding { x: &x_tensor, norm, y: &y, y_stride: n, epilogue: Epilogue::Store, lora };
    let (op, tolerance) = in_way(LinearOp::new(gpu, &weights.linear, binding)?, way);
    let size = USize { width: site.u_width(), parts: 1, ..Default::default() };
    submit(gpu, |commands| op.record(commands, RowRange::first(ROWS as u32), size))?;
    let product = |x: &[f32]| linear::reference(&weights.values, x, Some(&gain), tolerance);
    let made = rows_with(RANKS, |m| site.u(&linear::normed(&x[m * k..][..k], Some(&gain))));
    Ok(vec![
        Outcome::read(gpu, &y, x.chunks(k).flat_map(product).collect())?,
        Outcome::read(gpu, &u, made)?,
    ])
}

fn matvec_expand(gpu: &Gpu, way: Way) -> Result<Vec<Outcome>> {
    let mut random = Random(35);
    let (n, k, parts) = (linear::N, linear::K, 2);
    let (weights, site) =
        (Weights::random(gpu, DType::Q4_0, &mut random)?, Site::random((4, n, 1), &mut random));
    let (x, before, shares) =
        (random.vec(ROWS * k), random.vec(ROWS * n), random.vec(ROWS * parts * RANKS));
    let (directory, _, b) = upload(gpu, std::slice::from_ref(&site))?;
    let y = poisoned(gpu, &before, ROWS * n)?;
    let (x_tensor, shares_tensor) = (gpu.upload("x", &x)?, gpu.upload("parts", &shares)?);
    let lora = Some(LoraBinding {
        lora: Lora::Expand(directory),
        factors: &b,
        u: &shares_tensor,
        site: 0,
    });
    let binding =
        Binding { x: &x_tensor, norm: None, y: &y, y_stride: n, epilogue: Epilogue::Add, lora };
    let (op, tolerance) = in_way(LinearOp::new(gpu, &weights.linear, binding)?, way);
    let size = USize { width: site.u_width(), parts: parts as u32, ..Default::default() };
    submit(gpu, |commands| op.record(commands, RowRange::first(ROWS as u32), size))?;
    let row = |m: usize| {
        let shares = &shares[m * parts * RANKS..][..parts * RANKS];
        let u: Vec<f32> = (0..RANKS).map(|i| shares[i] + shares[RANKS + i]).collect();
        let sums = linear::reference(&weights.values, &x[m * k..][..k], None, tolerance);
        let near = |(n, sum): (usize, &Near)| {
            let added = if SETS[m] == 0 { 0.0 } else { site.b_times(n, 0, &u) };
            Near {
                value: sum.value + f64::from(before[m * linear::N + n]) + added,
                bound: sum.bound + TOLERANCE,
            }
        };
        sums.iter().enumerate().map(near).collect::<Vec<_>>()
    };
    Ok(vec![Outcome::read(gpu, &y, (0..ROWS).flat_map(row).collect())?])
}

/// B before and A after, as decoding has it around the MLP's middle.
fn around_swiglu(gpu: &Gpu) -> Result<Vec<Outcome>> {
    // More than a workgroup, and a part of one.
    let (f, mut random) = (264, Random(36));
    let sites = [Site::random((4, 2 * f, 2), &mut random), Site::random((f, 4, 1), &mut random)];
    let [gate_up, down] = &sites;
    let (gu, u) = (random.vec(ROWS * 2 * f), random.vec(ROWS * 2 * RANKS));
    let (directory, a, b) = upload(gpu, &sites)?;
    let parts = swiglu::parts(gpu.caps(), f as u32) as usize;
    let (h, shares) = (poisoned(gpu, &[], ROWS * f)?, poisoned(gpu, &[], ROWS * parts * RANKS)?);
    let (gu_tensor, u_tensor) = (gpu.upload("gu", &gu)?, gpu.upload("u", &u)?);
    let op = gpu.op(
        &swiglu::spec(gpu.caps(), Activation::Silu, Some(directory)),
        &[&gu_tensor, &h, &a, &b, &u_tensor, &shares],
    )?;
    let (gate_up_width, down_width) = (gate_up.u_width(), down.u_width());
    let params =
        SwiGluParams { f: f as u32, gate_up_width, down_site: 1, down_width, ..Default::default() };
    submit(gpu, |commands| {
        swiglu::record(commands, &op, &params, ROWS as u32);
        Ok(())
    })?;
    let whole = |m: usize, which: usize, i: usize| {
        let added = || gate_up.b_times(which * f + i, which, &u[m * 2 * RANKS..][..2 * RANKS]);
        f64::from(gu[(2 * m + which) * f + i]) + if SETS[m] == 0 { 0.0 } else { added() }
    };
    let value = |m: usize, i: usize| silu(whole(m, 0, i)) * whole(m, 1, i);
    let near = |i: usize| Near {
        value: value(i / f, i % f),
        bound: 10.0 * TOLERANCE * (1.0 + value(i / f, i % f).abs()),
    };
    let part_len = f.div_ceil(parts).next_power_of_two();
    let share = |m: usize, part: usize| {
        let inside = |i: usize| i / part_len == part;
        let columns: Vec<f64> = (0..f).map(|i| if inside(i) { value(m, i) } else { 0.0 }).collect();
        let wider = |near: Near| Near { bound: 10.0 * near.bound + 10.0 * TOLERANCE, ..near };
        down.u(&columns).into_iter().map(wider).collect::<Vec<_>>()
    };
    let made = rows_with(parts * RANKS, |m| (0..parts).flat_map(|part| share(m, part)).collect());
    Ok(vec![
        Outcome::read(gpu, &h, (0..ROWS * f).map(near).collect())?,
        Outcome::read(gpu, &shares, made)?,
    ])
}
