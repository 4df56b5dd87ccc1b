//! The products of training: gradients through weights in every first-class format, and those of
//! LoRA's factors.

use super::Ability::CooperativeMatrix;
use super::cases::{Case, Near, Outcome, Random, case, poisoned, submit};
use super::linear::{FORMATS, K, N, Weights};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Caps, Gpu};
use crate::kernels::matmul::Tile;
use crate::kernels::matmul_backward::{self, MatmulBackwardParams, Way};
use crate::kernels::matmul_dense::{self, MatmulDenseParams, Sizes, Tiling, View};
use crate::kernels::row_exponents;
use crate::quant::BLOCK;

/// Rows of dy: more than a fragment.
const ROWS: usize = 19;
/// As gradients are: most of these would be lost as plain f16.
const GRADIENT: f32 = 1.0 / 16_777_216.0;

pub(super) fn cases(caps: &Caps) -> Vec<Case> {
    // On a software GPU only the first-class formats: each takes a tenth of a second to compile.
    let formats = DType::ALL.into_iter().filter(|dtype| !caps.software || FORMATS.contains(dtype));
    let tiles = |dtype| Tile::all(caps).iter().map(move |tile| backward(caps, dtype, *tile));
    let mut cases: Vec<Case> = formats.flat_map(tiles).collect();
    let here = |tiling: &Tiling| caps.software == (*tiling == Tiling::Direct);
    cases.extend(Tiling::ALL.into_iter().filter(here).map(|tiling| {
        let kernel = tiling.spec().name;
        case(kernel, format!("{tiling:?}"), vec![], move |gpu| dense(gpu, tiling))
    }));
    cases
}

fn backward(caps: &Caps, dtype: DType, tile: Tile) -> Case {
    let way = Way { tile, fours: true };
    let kernel = matmul_backward::spec(caps, dtype, way).name;
    // Cooperative matrices round both factors to f16.
    let (uses, tolerance) =
        if kernel.ends_with("_coop") { (vec![CooperativeMatrix], 2e-3) } else { (vec![], 1e-4) };
    let variant = format!("{}, {ROWS} rows, {tile:?} tile", dtype.name());
    case(kernel, variant, uses, move |gpu| multiply_backward(gpu, dtype, way, tolerance))
}

/// `dx = dy W`, and the same once more added to it.
fn multiply_backward(gpu: &Gpu, dtype: DType, way: Way, tolerance: f64) -> Result<Vec<Outcome>> {
    let mut random = Random(5);
    let weights = Weights::random(gpu, dtype, &mut random)?;
    let dy: Vec<f32> = random.vec(ROWS * N).into_iter().map(|v| v * GRADIENT).collect();
    let (dy_tensor, dx) = (gpu.upload("dy", &dy)?, poisoned(gpu, &[], ROWS * K)?);
    let spec = matmul_backward::spec(gpu.caps(), dtype, way);
    let exponents = gpu.storage("exponents", 4 * ROWS as u64)?;
    let row_exponents = gpu.op(&row_exponents::spec(), &[&dy_tensor, &exponents])?;
    for (chunk, add) in weights.linear.chunks.iter().flat_map(|chunk| [(chunk, 0), (chunk, 1)]) {
        let mut tensors = vec![&dy_tensor, &chunk.words, &chunk.scales, &dx];
        tensors.extend(matmul_backward::reads_exponents(gpu.caps()).then_some(&exponents));
        let op = gpu.op(&spec, &tensors)?;
        let params = MatmulBackwardParams {
            m: ROWS as u32,
            n: N as u32,
            k_blocks: (K / BLOCK) as u32,
            dy_stride: N as u32,
            add,
            ..Default::default()
        };
        submit(gpu, |commands| {
            if matmul_backward::reads_exponents(gpu.caps()) {
                row_exponents::record(commands, &row_exponents, (&params).into(), ROWS as u32);
            }
            matmul_backward::record(commands, &op, gpu.caps(), way, &params, 0);
            Ok(())
        })?;
    }
    let sum = |m: usize, k: usize| {
        let column = weights.values[k..].iter().step_by(K);
        Near::sum(
            dy[m * N..][..N].iter().zip(column).map(|(dy, w)| 2.0 * f64::from(*dy) * f64::from(*w)),
            tolerance,
        )
    };
    let want = (0..ROWS * K).map(|i| sum(i / K, i % K)).collect();
    Ok(vec![Outcome::read(gpu, &dx, want)?])
}

/// `C = C / 2 + 3 A B`, A by rows and B by columns.
fn dense(gpu: &Gpu, tiling: Tiling) -> Result<Vec<Outcome>> {
    // More than a tile, and than a step of K, of all tilings.
    let (m, n, k, mut random) = (67, 65, 101, Random(6));
    let (a, b, before) = (random.vec(m * k), random.vec(k * n), random.vec(m * n));
    let c = poisoned(gpu, &before, m * n)?;
    let op = gpu.op(&tiling.spec(), &[&gpu.upload("a", &a)?, &gpu.upload("b", &b)?, &c])?;
    let (rows, columns) = (View::new(0, k as u32), View::new(0, k as u32).transposed());
    let sizes = Sizes { m: m as u32, n: n as u32, k: k as u32 };
    let params = MatmulDenseParams {
        alpha: 3.0,
        beta: 0.5,
        ..MatmulDenseParams::new(sizes, rows, columns, View::new(0, n as u32))
    };
    submit(gpu, |commands| {
        matmul_dense::record(commands, &op, tiling, &params);
        Ok(())
    })?;
    let sum = |(i, before): (usize, &f32)| {
        let terms = a[i / n * k..][..k]
            .iter()
            .zip(&b[i % n * k..])
            .map(|(a, b)| 3.0 * f64::from(*a) * f64::from(*b));
        Near::sum(terms.chain([0.5 * f64::from(*before)]), 1e-4)
    };
    Ok(vec![Outcome::read(gpu, &c, before.iter().enumerate().map(sum).collect())?])
}
