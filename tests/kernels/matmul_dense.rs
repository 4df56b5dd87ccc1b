//! `C = beta C + alpha A B` in every tiling, and that the products made of it are LoRA's forward
//! and backward pass.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::matmul_dense::{self, MatmulDenseParams, Sizes, Tiling, View};
use proptest::prelude::*;

use super::oracle::{check_gradient, gamma};
use super::{Checked, Near, Output, Random, for_all, seed, submit};

/// A matrix in a buffer: elements before it, elements after each row (or column), the columns
/// follow one another.
type Place = (usize, usize, bool);

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: Place,
    b: Place,
    /// A and B lie in one buffer.
    shared: bool,
    /// Elements of C before the first row, and between rows.
    c: (usize, usize),
    alpha: f32,
    beta: f32,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    // A rank, or something larger than a tile; more of K than a step, or than all teams take at
    // once.
    let side = || prop_oneof![1usize..34, 60usize..140];
    let place = || (0usize..9, 0usize..5, any::<bool>());
    let factor = || prop_oneof![Just(0f32), Just(1.0), Just(-0.375), Just(3.0)];
    let sizes = (side(), side(), prop_oneof![1usize..40, 90usize..600]);
    (sizes, place(), place(), (0usize..9, 0usize..5), any::<bool>(), (factor(), factor()), seed())
        .prop_map(|((m, n, k), a, b, c, shared, (alpha, beta), seed)| Case {
            m,
            n,
            k,
            a,
            b,
            shared,
            c,
            alpha,
            beta,
            seed,
        })
}

/// Where a `[rows, columns]` matrix lies, and where it ends.
fn view((offset, rest, by_columns): Place, rows: usize, columns: usize) -> (View, usize) {
    let (lines, len) = if by_columns { (columns, rows) } else { (rows, columns) };
    let stride = len + rest;
    let view = View::new(offset as u32, stride as u32);
    (if by_columns { view.transposed() } else { view }, offset + lines * stride)
}

/// `beta C + alpha Σ_k A(m, k) B(k, n)`, as what C holds after.
fn oracle(a: &[f64], b: &[f64], c: &[f64], p: &MatmulDenseParams) -> Vec<f64> {
    let mut after = c.to_vec();
    for (m, n) in (0..p.m).flat_map(|m| (0..p.n).map(move |n| (m, n))) {
        let term = |k| {
            a[(p.a_offset + m * p.a_m + k * p.a_k) as usize]
                * b[(p.b_offset + k * p.b_k + n * p.b_n) as usize]
        };
        let held = &mut after[(p.c_offset + m * p.c_m + n) as usize];
        let before = if p.beta == 0.0 { 0.0 } else { f64::from(p.beta) * *held };
        *held = before + f64::from(p.alpha) * (0..p.k).map(term).sum::<f64>();
    }
    after
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn check(gpu: &Gpu, tiling: Tiling, case: &Case) -> Checked {
    let mut random = Random(case.seed);
    let (a_view, a_len) = view(case.a, case.m, case.k);
    let (mut b_view, b_len) = view(case.b, case.k, case.n);
    let mut a = random.vec(a_len, 1.0);
    let mut b = random.vec(b_len, 1.0);
    if case.shared {
        b_view.offset += a_len as u32;
        a.extend(b);
        b = a.clone();
    }
    let stride = case.n + case.c.1;
    let len = case.c.0 + case.m * stride;
    // With a beta of 0, what was there is poison.
    let c = if case.beta == 0.0 {
        Output::poisoned(gpu, len)?
    } else {
        Output::holding(gpu, random.vec(len, 1.0), false)?
    };
    let (m, n, k) = (case.m as u32, case.n as u32, case.k as u32);
    let c_view = View::new(case.c.0 as u32, stride as u32);
    let p = MatmulDenseParams {
        alpha: case.alpha,
        beta: case.beta,
        ..MatmulDenseParams::new(Sizes { m, n, k }, a_view, b_view, c_view)
    };
    let a_tensor = gpu.upload("a", &a)?;
    let b_tensor = if case.shared { None } else { Some(gpu.upload("b", &b)?) };
    let op =
        gpu.op(&tiling.spec(), &[&a_tensor, b_tensor.as_ref().unwrap_or(&a_tensor), &c.tensor])?;
    submit(gpu, |commands| matmul_dense::record(commands, &op, tiling, &p))?;
    let abs = |values: Vec<f64>| values.into_iter().map(f64::abs).collect::<Vec<_>>();
    let (a, b, before) = (exact(&a), exact(&b), exact(&c.before[..len]));
    let values = oracle(&a, &b, &before, &p);
    let sizes = MatmulDenseParams { alpha: p.alpha.abs(), beta: p.beta.abs(), ..p };
    let sizes = oracle(&abs(a), &abs(b), &abs(before), &sizes);
    let written = |i: usize| i >= case.c.0 && (i - case.c.0) % stride < case.n;
    // K multiply-adds, at most 19 additions of the teams' sums, the two factors, the last sum.
    let near = |i: usize| Near { value: values[i], bound: gamma(case.k + 22) * sizes[i] };
    let expected: Vec<_> = (0..len).map(|i| written(i).then(|| near(i))).collect();
    c.check(gpu, &expected).map_err(|e| format!("{tiling:?}: {e}").into())
}

#[test]
fn matmul_dense_is_the_product_in_every_tiling() {
    for tiling in Tiling::ALL {
        for_all(6, cases(), |gpu, case| check(gpu, tiling, case));
    }
}

#[test]
fn tiles_are_large_where_there_are_many() {
    let gpu = |software| epiphyte::gpu::Caps {
        subgroup_size: Some(32),
        f16: true,
        cooperative_matrix: None,
        scalar_fragments: false,
        block_bytes: 0,
        immediates: true,
        software,
        max_binding_bytes: 128 << 20,
    };
    let choose = |m, n| Tiling::choose(&gpu(false), m, n);
    assert_eq!(choose(512, 2048), Tiling::Square);
    assert_eq!(choose(16_384, 16), Tiling::Tall);
    assert_eq!(choose(8, 16_384), Tiling::Wide);
    assert_eq!(choose(512, 16), Tiling::Thin);
    assert_eq!(choose(4, 576), Tiling::Thin);
    assert_eq!(Tiling::choose(&gpu(true), 512, 2048), Tiling::Direct);
}

/// `y = x Wᵀ + s (x Aᵀ) Bᵀ` and the loss `Σ sin y`: sizes, `W [N, K]`, `x [M, K]`, and `A [r, K]`,
/// `B [N, r]` in one buffer.
struct Lora {
    x: Vec<f64>,
    w: Vec<f64>,
    factors: Vec<f64>,
}

const M: u32 = 3;
const N: u32 = 7;
const K: u32 = 5;
const R: u32 = 2;
const B_OFFSET: u32 = R * K;
const S: f32 = 0.75;

impl Lora {
    fn y(&self, x: &[f64], factors: &[f64]) -> Vec<f64> {
        let (m_len, n_len, k_len, r_len) = (M as usize, N as usize, K as usize, R as usize);
        let (a, b) = factors.split_at(B_OFFSET as usize);
        let mut y = vec![0.0; m_len * n_len];
        for (i, y) in y.iter_mut().enumerate() {
            let (m, n) = (i / n_len, i % n_len);
            for k in 0..k_len {
                let ba: f64 = (0..r_len).map(|r| b[n * r_len + r] * a[r * k_len + k]).sum();
                *y += x[m * k_len + k] * (self.w[n * k_len + k] + f64::from(S) * ba);
            }
        }
        y
    }

    fn loss(&self, x: &[f64], factors: &[f64]) -> f64 {
        self.y(x, factors).into_iter().map(f64::sin).sum()
    }
}

#[test]
fn the_oracle_of_matmul_dense_makes_lora_forward_and_backward() {
    let mut random = Random(2);
    let mut vec = |len: u32| exact(&random.vec(len as usize, 1.0));
    let lora = Lora { x: vec(M * K), w: vec(N * K), factors: vec(R * K + N * R) };
    let (x, y, u) = (View::new(0, K), View::new(0, N), View::new(0, R));
    let (a, b) = (View::new(0, K), View::new(B_OFFSET, R));
    let product = |(m, n, k),
                   left: (&[f64], View),
                   right: (&[f64], View),
                   c: &[f64],
                   (offset, stride),
                   alpha,
                   beta| {
        let p = MatmulDenseParams {
            alpha,
            beta,
            ..MatmulDenseParams::new(Sizes { m, n, k }, left.1, right.1, View::new(offset, stride))
        };
        oracle(left.0, right.0, c, &p)
    };
    let (xs, ws, factors) = (&lora.x[..], &lora.w[..], &lora.factors[..]);
    let zeros = |len: u32| vec![0.0; len as usize];

    let base = product(
        (M, N, K),
        (xs, x),
        (ws, View::new(0, K).transposed()),
        &zeros(M * N),
        (0, N),
        1.0,
        0.0,
    );
    let us =
        product((M, R, K), (xs, x), (factors, a.transposed()), &zeros(M * R), (0, R), 1.0, 0.0);
    let ys = product((M, N, R), (&us, u), (factors, b.transposed()), &base, (0, N), S, 1.0);
    let off =
        ys.iter().zip(lora.y(xs, factors)).map(|(y, want)| (y - want).abs()).fold(0.0, f64::max);
    assert!(off < 1e-14, "y is off by {off}");

    let dys: Vec<f64> = ys.into_iter().map(f64::cos).collect();
    let dus = product((M, R, N), (&dys, y), (factors, b), &zeros(M * R), (0, R), S, 0.0);
    let grads = zeros(R * K + N * R);
    let grads = product((N, R, M), (&dys, y.transposed()), (&us, u), &grads, (B_OFFSET, R), S, 1.0);
    let grads = product((R, K, M), (&dus, u.transposed()), (xs, x), &grads, (0, K), 1.0, 1.0);
    check_gradient(|factors| lora.loss(xs, factors), factors, &grads);

    let dxs = product((M, K, N), (&dys, y), (ws, View::new(0, K)), &zeros(M * K), (0, K), 1.0, 0.0);
    let dxs = product((M, K, R), (&dus, u), (factors, a), &dxs, (0, K), 1.0, 1.0);
    check_gradient(|x| lora.loss(x, factors), xs, &dxs);
}
