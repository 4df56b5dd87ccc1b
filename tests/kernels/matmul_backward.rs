//! `dX = dY W`: in registers, tiled, or on cooperative matrices.

use epiphyte::DType;
use epiphyte::gpu::{Caps, Gpu};
use epiphyte::kernels::matmul::Tile;
use epiphyte::kernels::matmul_backward::{self, MatmulBackwardParams, Way};
use epiphyte::kernels::row_exponents;
use proptest::prelude::*;

use super::oracle::{EPS, check_gradient, gamma};
use super::weights::{Weights, row_unit};
use super::{Checked, Near, Output, Random, for_all, matrices, seed, submit};

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    n: usize,
    /// K is 2 odd + 1 units of the format.
    odd: usize,
    dy_row: usize,
    dx_row: usize,
    dy_offset: usize,
    /// Columns of dy after those that are read.
    dy_rest: usize,
    /// W comes in two chunks, the second from this row on; in one where it has fewer.
    split: usize,
    /// dx holds something that counts.
    add: bool,
    /// The largest |dy| is 2^-tiny, in every other row 2^-10 of that.
    tiny: i32,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1usize..140, 1usize..140, 0usize..4);
    let places = (0usize..3, 0usize..3, 0usize..7, 0usize..7);
    (sizes, places, 1usize..200, any::<bool>(), 0i32..40, seed()).prop_map(
        |(sizes, places, split, add, tiny, seed)| {
            let ((m, n, odd), (dy_row, dx_row, dy_offset, dy_rest)) = (sizes, places);
            Case { m, n, odd, dy_row, dx_row, dy_offset, dy_rest, split, add, tiny, seed }
        },
    )
}

/// `dx[m, k] = Σ_n dy[m, n] w[n, k]`, `[M, K]`, from all of dy.
fn oracle(dy: &[f64], w: &[f64], p: &MatmulBackwardParams) -> Vec<f64> {
    let k_len = 32 * p.k_blocks as usize;
    let mut dx = vec![0.0; p.m as usize * k_len];
    for (m, dx) in dx.chunks_mut(k_len).enumerate() {
        let row = (p.dy_row as usize + m) * p.dy_stride as usize + p.dy_offset as usize;
        for n in 0..p.n as usize {
            for (k, dx) in dx.iter_mut().enumerate() {
                *dx += dy[row + n] * w[n * k_len + k];
            }
        }
    }
    dx
}

/// What rounding to f16 may be off by, relative: correctly rounded, but in whichever direction the
/// device prefers.
const HALF: f64 = 1.0 / 1024.0;
/// The smallest normal f16; what is below may be flushed.
const SUBNORMAL: f64 = 1.0 / 16384.0;

/// The products and how far off a variant's sums may be.
fn expect(dy: &[f32], w: &Weights, p: &MatmulBackwardParams, cooperative: bool) -> Vec<Near> {
    let dy: Vec<f64> = dy.iter().map(|v| f64::from(*v)).collect();
    let values: Vec<f64> = w.values.iter().map(|v| f64::from(*v)).collect();
    let abs = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    // N multiply-adds in groups of 4, a group in any order, 2 of dequantisation.
    let error = gamma(w.n + 6);
    let mut bounds: Vec<f64> =
        oracle(&abs(&dy), &w.sizes, p).iter().map(|size| error * size).collect();
    if cooperative {
        // Of each row, all of which is more than what counts.
        let most: Vec<f64> = abs(&dy)
            .chunks(p.dy_stride as usize)
            .map(|row| row.iter().copied().fold(0.0, f64::max))
            .collect();
        let flushed = |w: f64| if w.abs() < SUBNORMAL { SUBNORMAL } else { 0.0 };
        let of_w: Vec<f64> = values.iter().map(|w| HALF * w.abs() + flushed(*w)).collect();
        let of_w = oracle(&abs(&dy), &of_w, p);
        let of_row = |i: usize| 2f64.powi(-28) * most[i / p.dy_stride as usize];
        let of_dy: Vec<f64> =
            dy.iter().enumerate().map(|(i, dy)| HALF * dy.abs() + of_row(i)).collect();
        let of_dy = oracle(&of_dy, &abs(&values), p);
        // Once more for the products of both errors.
        let both = bounds.iter_mut().zip(of_w.iter().zip(&of_dy));
        both.for_each(|(bound, (of_w, of_dy))| *bound = 1.001 * (*bound + of_w + of_dy));
    }
    let near = |(value, bound)| Near { value, bound };
    oracle(&dy, &values, p).into_iter().zip(bounds).map(near).collect()
}

impl Case {
    /// This one, with lines of dy that are multiples of four elements.
    fn in_fours(&self) -> Self {
        let [n, split, dy_offset, dy_rest] =
            [self.n, self.split, self.dy_offset, self.dy_rest].map(|n| n.next_multiple_of(4));
        Self { n, split, dy_offset, dy_rest, ..self.clone() }
    }
}

/// What the host chooses here, and what it chooses on other devices.
fn variants(caps: &Caps) -> Vec<Caps> {
    let software = |software| Caps { software, cooperative_matrix: None, ..caps.clone() };
    let mut variants = vec![software(false), software(true)];
    variants.extend(caps.cooperative_matrix.map(|_| caps.clone()));
    variants
}

fn check(gpu: &Gpu, dtype: DType, case: &Case) -> Checked {
    variants(gpu.caps()).iter().try_for_each(|caps| {
        // Lines of dy in fours, too, where they are read so.
        let fours = if caps.cooperative_matrix.is_some() { &[false, true][..] } else { &[false] };
        let ways = Tile::all(caps)
            .iter()
            .flat_map(|&tile| fours.iter().map(move |&fours| Way { tile, fours }));
        ways.into_iter().try_for_each(|way| {
            let case = if way.fours { &case.in_fours() } else { case };
            check_variant(gpu, (caps, way), dtype, case)
        })
    })
}

fn check_variant(gpu: &Gpu, (caps, way): (&Caps, Way), dtype: DType, case: &Case) -> Checked {
    let mut random = Random(case.seed);
    // K-quants have rows of 256: few of them are long already.
    let k = row_unit(dtype) * if row_unit(dtype) > 32 { 1 } else { 2 * case.odd + 1 };
    let w = Weights::random(dtype, case.n, k, &mut random);
    let stride = case.dy_offset + case.n + case.dy_rest;
    let size = |row: usize| 2f32.powi(-case.tiny - if row.is_multiple_of(2) { 0 } else { 10 });
    let dy: Vec<f32> =
        (0..case.dy_row + case.m).flat_map(|row| random.vec(stride, size(row))).collect();
    let len = (case.dx_row + case.m) * k;
    let held = random.vec(len, size(0));
    let dx =
        if case.add { Output::holding(gpu, held, false)? } else { Output::poisoned(gpu, len)? };
    let whole = MatmulBackwardParams {
        m: case.m as u32,
        n: case.n as u32,
        k_blocks: (k / 32) as u32,
        dy_row: case.dy_row as u32,
        dy_stride: stride as u32,
        dy_offset: case.dy_offset as u32,
        dx_row: case.dx_row as u32,
        add: u32::from(case.add),
    };
    let dy_tensor = gpu.upload("dy", &dy)?;
    let spec = matmul_backward::spec(caps, dtype, way);
    let exponents = gpu.storage("exponents", 4 * case.m as u64)?;
    let row_exponents = gpu.op(&row_exponents::spec(), &[&dy_tensor, &exponents])?;
    let split = if case.split < case.n { case.split } else { 0 };
    for rows in [0..split, split..case.n].into_iter().filter(|rows| !rows.is_empty()) {
        let (words, scales) = w.upload(gpu, rows.clone())?;
        let mut tensors = vec![&dy_tensor, &words, &scales, &dx.tensor];
        tensors.extend(matmul_backward::reads_exponents(caps).then_some(&exponents));
        let op = gpu.op(&spec, &tensors)?;
        let add = u32::from(case.add || rows.start > 0);
        let p = MatmulBackwardParams {
            n: rows.len() as u32,
            dy_offset: whole.dy_offset + rows.start as u32,
            add,
            ..whole
        };
        submit(gpu, |commands| {
            if matmul_backward::reads_exponents(caps) {
                row_exponents::record(commands, &row_exponents, (&p).into(), p.m);
            }
            matmul_backward::record(commands, &op, caps, way, &p, 0);
        })?;
    }
    let mut expected = vec![None; len];
    let products = expect(&dy, &w, &whole, spec.name.ends_with("_coop"));
    for ((near, expected), before) in products
        .into_iter()
        .zip(&mut expected[case.dx_row * k..])
        .zip(&dx.before[case.dx_row * k..])
    {
        let before = if case.add { f64::from(*before) } else { 0.0 };
        // Adding to what was there, and one chunk to the other.
        let sum = before.abs() + near.value.abs() + near.bound;
        *expected = Some(Near { value: before + near.value, bound: near.bound + 2.0 * EPS * sum });
    }
    dx.check(gpu, &expected).map_err(|e| format!("{}, {dtype:?}, {way:?}: {e}", spec.name).into())
}

#[test]
fn matmul_backward_is_the_product_in_every_format() {
    matrices("in part, without its cooperative variant");
    for dtype in DType::ALL {
        for_all(1, cases(), |gpu, case| check(gpu, dtype, case));
    }
}

#[test]
fn matmul_backward_is_the_product_at_any_size() {
    matrices("in part, without its cooperative variant");
    for_all(8, cases(), |gpu, case| check(gpu, DType::Q4_0, case));
}

/// The loss is `Σ (sin y)`, with `y = x Wᵀ` as the forward pass has it.
#[test]
fn the_oracle_of_matmul_backward_is_the_gradient_of_matmul() {
    let (m_len, n_len, k_len) = (3, 7, 32);
    let mut random = Random(1);
    let mut vec = |len| random.vec(len, 1.0).into_iter().map(f64::from).collect::<Vec<_>>();
    let (x, w) = (vec(m_len * k_len), vec(n_len * k_len));
    let forward = |x: &[f64]| -> Vec<f64> {
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        x.chunks(k_len).flat_map(|x| w.chunks(k_len).map(move |w| dot(x, w))).collect()
    };
    let dy: Vec<f64> = forward(&x).into_iter().map(f64::cos).collect();
    let (m, n) = (m_len as u32, n_len as u32);
    let p = MatmulBackwardParams { m, n, k_blocks: 1, dy_stride: n, ..Default::default() };
    let loss = |x: &[f64]| forward(x).into_iter().map(f64::sin).sum();
    check_gradient(loss, &x, &oracle(&dy, &w, &p));
}
