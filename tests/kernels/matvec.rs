//! `y = x Wᵀ` for few rows of x.

use epiphyte::DType;
use epiphyte::gpu::{Caps, Gpu};
use epiphyte::kernels::matvec::{self, Epilogue, LinearParams, SOFTWARE_PREFILL, Tiling, Variant};
use proptest::prelude::*;

use super::oracle::{self, EPS, gamma, rms_scale, strided_depth};
use super::weights::{Weights, row_unit};
use super::{Checked, Near, Output, Random, for_all, seed, submit};

#[derive(Clone, Debug)]
struct Case {
    m: usize,
    /// Rows of W; with `SwiGlu` those of gate alone.
    n: usize,
    /// K is 2 odd + 1 units of the format.
    odd: usize,
    x_row: usize,
    y_offset: usize,
    /// Columns of y after those that are written.
    y_rest: usize,
    cols: u32,
    norm: bool,
    epilogue: Epilogue,
    style: Style,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Style {
    /// As the host chooses it.
    Chosen,
    /// As on a GPU: 64 lanes, 4 << i of them a row where subgroups allow.
    Gpu(u32),
    /// A lane a row.
    SoftwarePrefill,
}

impl Case {
    fn tiling(&self, caps: &Caps, k_blocks: u32) -> Tiling {
        let most = caps.subgroup_size.map_or(32, |size| size.min(32));
        match self.style {
            Style::Gpu(i) => Tiling { wg: 64, lanes: (4 << i).min(most), unroll: 1 << (i % 3), guard: true },
            Style::SoftwarePrefill => SOFTWARE_PREFILL,
            Style::Chosen => matvec::tiling(caps, k_blocks),
        }
    }

    fn params(&self, k: usize) -> LinearParams {
        let swiglu = self.epilogue == Epilogue::SwiGlu;
        LinearParams {
            m: self.m as u32,
            n: if swiglu { 2 * self.n } else { self.n } as u32,
            k_blocks: (k / 32) as u32,
            x_row: self.x_row as u32,
            y_stride: (self.y_offset + self.n + self.y_rest) as u32,
            y_offset: self.y_offset as u32,
            pair: if swiglu { self.n } else { 0 } as u32,
            eps: 1e-5,
            ..Default::default()
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let style = prop_oneof![Just(Style::Chosen), Just(Style::SoftwarePrefill), (0u32..4).prop_map(Style::Gpu)];
    let epilogue = prop_oneof![Just(Epilogue::Store), Just(Epilogue::Add), Just(Epilogue::SwiGlu)];
    let sizes = (1usize..11, 1usize..150, 0usize..5, 0usize..3, 0usize..7, 0usize..7);
    let variant = (prop_oneof![Just(1u32), Just(2), Just(4), Just(8)], any::<bool>(), epilogue, style);
    (sizes, variant, seed()).prop_map(|((m, n, odd, x_row, y_offset, y_rest), (cols, norm, epilogue, style), seed)| {
        Case { m, n, odd, x_row, y_offset, y_rest, cols, norm, epilogue, style, seed }
    })
}

/// `y` before and the product; `lanes` lanes share a row.
fn oracle(
    x: &[f32],
    gain: Option<&[f32]>,
    w: &Weights,
    before: &[f32],
    p: &LinearParams,
    epilogue: Epilogue,
    lanes: u32,
) -> Vec<Option<Near>> {
    let depth = strided_depth(p.k_blocks as usize, lanes);
    let mut y = vec![None; before.len()];
    for m in 0..p.m as usize {
        let row = &x[(p.x_row as usize + m) * w.k..][..w.k];
        // Squares: 4 roundings in a vec4, 8 additions of them.
        let (scale, scale_error) = gain.map_or((1.0, 0.0), |_| rms_scale(row, p.eps, 12 + depth));
        let product = |n: usize| {
            let (sum, size) = w.dot(n, |k| f64::from(row[k]) * gain.map_or(1.0, |gain| f64::from(gain[k])));
            // In a block: the gain, 2 of dequantisation, 4 of a vec4's dot, 8 additions, 3 for scale and offset.
            let error = gamma(18 + depth) * size + (scale_error + EPS) * sum.abs();
            Near { value: sum * scale, bound: 1.001 * error * scale }
        };
        let columns = if epilogue == Epilogue::SwiGlu { p.pair } else { p.n } as usize;
        for n in 0..columns {
            let at = m * p.y_stride as usize + p.y_offset as usize + n;
            let v = product(n);
            y[at] = Some(match epilogue {
                Epilogue::Store => v,
                Epilogue::Add => {
                    let value = f64::from(before[at]) + v.value;
                    Near { value, bound: v.bound + EPS * (value.abs() + v.bound) }
                }
                Epilogue::SwiGlu => oracle::swiglu(v, product(n + columns)),
            });
        }
    }
    y
}

fn check(gpu: &Gpu, dtype: DType, case: &Case) -> Checked {
    let mut random = Random(case.seed);
    let k = row_unit(dtype) * (2 * case.odd + 1);
    let p = case.params(k);
    let w = Weights::random(dtype, p.n as usize, k, &mut random);
    let (x, gain) = (random.vec((case.x_row + case.m) * k, 1.0), random.vec(k, 2.0));
    let rows = case.m * p.y_stride as usize;
    // Without Add, what was there is poison.
    let add = case.epilogue == Epilogue::Add;
    let y = if add { Output::holding(gpu, random.vec(rows, 1.0), false)? } else { Output::poisoned(gpu, rows)? };
    let (words, scales) = w.upload(gpu, 0..w.n)?;
    let tiling = case.tiling(gpu.caps(), p.k_blocks);
    let variant = Variant { tiling, cols: case.cols, norm: case.norm, epilogue: case.epilogue, lora: None };
    let spec = matvec::spec(gpu.caps(), dtype, variant);
    let op = gpu.op(&spec, &[&gpu.upload("x", &x)?, &gpu.upload("gain", &gain)?, &words, &scales, &y.tensor])?;
    submit(gpu, |commands| matvec::record(commands, (&op.kernel, &op.group), variant, &p, 0))?;
    let gain = case.norm.then_some(&*gain);
    let expected = oracle(&x, gain, &w, &y.before[..rows], &p, case.epilogue, tiling.lanes);
    y.check(gpu, &expected).map_err(|e| format!("{dtype:?} {tiling:?}: {e}").into())
}

#[test]
fn matvec_is_the_product_in_every_format() {
    for dtype in DType::ALL {
        for_all(3, cases(), |gpu, case| check(gpu, dtype, case));
    }
}

#[test]
fn matvec_makes_every_epilogue_with_and_without_the_norm() {
    for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu] {
        for norm in [false, true] {
            for_all(2, cases(), |gpu, case| check(gpu, DType::Q4_0, &Case { epilogue, norm, ..case.clone() }));
        }
    }
}

#[test]
fn matvec_serves_every_number_of_columns_in_every_style() {
    for cols in [1, 2, 4, 8] {
        for style in [Style::Chosen, Style::SoftwarePrefill, Style::Gpu(0), Style::Gpu(1)] {
            for_all(1, cases(), |gpu, case| check(gpu, DType::Q4_1, &Case { cols, style, ..case.clone() }));
        }
    }
}
