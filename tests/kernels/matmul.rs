//! `y = x Wᵀ` for many rows of x, tiled or on cooperative matrices.

use epiphyte::DType;
use epiphyte::gpu::{Caps, Gpu};
use epiphyte::kernels::matmul::{self, Tile};
use epiphyte::kernels::matvec::{Epilogue, LinearParams};
use half::f16;
use proptest::prelude::*;

use super::oracle::{EPS, gamma};
use super::weights::{Weights, row_unit};
use super::{Checked, Near, Output, Random, for_all, matrices, seed, submit};

/// m, n, odd: K is 2 odd + 1 units; `x_row`, `y_offset`, rest: columns of y after those written;
/// add, seed.
type Case = (usize, usize, usize, usize, usize, usize, bool, u64);

fn cases() -> impl Strategy<Value = Case> {
    (1usize..140, 1usize..140, 0usize..4, 0usize..3, 0usize..7, 0usize..7, any::<bool>(), seed())
}

fn half(v: f64) -> f64 {
    f16::from_f64(v).to_f64()
}

/// `Σ x w` and how far off its sum may be.
fn product(caps: &Caps, x: &[f32], w: &Weights, n: usize) -> Near {
    if caps.cooperative_matrix.is_some() {
        let terms = x
            .iter()
            .zip(&w.values[n * w.k..])
            .map(|(x, w)| half(f64::from(*x)) * half(f64::from(*w)));
        let (value, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
        // Products of halves are exact in f32; K additions, in any order.
        return Near { value, bound: gamma(w.k) * size };
    }
    let (value, size) = w.dot(n, |k| x[k].into());
    // A chain of K multiply-adds (a rounding of the product, K of the sums), 2 of dequantisation.
    Near { value, bound: gamma(w.k + 3) * size }
}

fn check(gpu: &Gpu, dtype: DType, case: &Case) -> Checked {
    Tile::all(gpu.caps()).iter().try_for_each(|tile| check_tile(gpu, dtype, *tile, case))
}

fn check_tile(
    gpu: &Gpu,
    dtype: DType,
    tile: Tile,
    &(m, n, odd, x_row, y_offset, rest, add, seed): &Case,
) -> Checked {
    let mut random = Random(seed);
    // K-quants have rows of 256: few of them are long already.
    let k = row_unit(dtype) * if row_unit(dtype) > 32 { 1 } else { 2 * odd + 1 };
    let w = Weights::random(dtype, n, k, &mut random);
    let x = random.vec((x_row + m) * k, 1.0);
    let stride = y_offset + n + rest;
    let y = if add {
        Output::holding(gpu, random.vec(m * stride, 1.0), false)?
    } else {
        Output::poisoned(gpu, m * stride)?
    };
    let p = LinearParams {
        m: m as u32,
        n: n as u32,
        k_blocks: (k / 32) as u32,
        x_row: x_row as u32,
        y_stride: stride as u32,
        y_offset: y_offset as u32,
        ..Default::default()
    };
    let (words, scales) = w.upload(gpu, 0..n)?;
    let (x_tensor, gain) = (gpu.upload("x", &x)?, gpu.storage("gain", 16)?);
    let spec =
        matmul::spec(gpu.caps(), dtype, if add { Epilogue::Add } else { Epilogue::Store }, tile);
    let op = gpu.op(&spec, &[&x_tensor, &gain, &words, &scales, &y.tensor])?;
    submit(gpu, |commands| matmul::record(commands, &op, tile, &p, 0))?;
    let mut expected = vec![None; m * stride];
    for i in 0..m * n {
        let at = i / n * stride + y_offset + i % n;
        let mut near = product(gpu.caps(), &x[(x_row + i / n) * k..][..k], &w, i % n);
        if add {
            let before = f64::from(y.before[at]);
            near.value += before;
            // On cooperative matrices the sum may begin with what was there.
            near.bound += gamma(w.k) * before.abs() + EPS * (near.value.abs() + near.bound);
        }
        expected[at] = Some(near);
    }
    y.check(gpu, &expected).map_err(|e| format!("{dtype:?}, {tile:?}: {e}").into())
}

#[test]
fn matmul_is_the_product_in_every_format() {
    matrices("in part, without its cooperative variant");
    for dtype in DType::ALL {
        for_all(1, cases(), |gpu, case| check(gpu, dtype, case));
    }
}

#[test]
fn matmul_is_the_product_at_any_size() {
    matrices("in part, without its cooperative variant");
    for_all(8, cases(), |gpu, case| check(gpu, DType::Q4_0, case));
}

#[test]
fn matmul_is_the_product_in_whole_tiles() {
    matrices("in part, without its cooperative variant");
    let cases = (1usize..4, 1usize..3, 0usize..3, 0usize..3, any::<bool>(), seed());
    // Some tiles lie inside, others hang over; lines begin at multiples of four elements.
    let case =
        |(m, n, odd, rest, add, seed)| (m * 64 + 3, n * 128 + 4, odd, 1, 4, 4 * rest, add, seed);
    for_all(6, cases.prop_map(case), |gpu, case| check(gpu, DType::Q4_0, case));
}
