//! `y = x Wᵀ` for few rows of x, row by row; with [`super::matvec_coop`] also on cooperative
//! matrices.

use epiphyte::DType;
use epiphyte::gpu::{Caps, Commands, Gpu, KernelSpec, Op};
use epiphyte::kernels::matvec::{
    self, COLS, Epilogue, LinearParams, Lora, MAX_SPLIT, SOFTWARE, Tiling, Variant,
};
use epiphyte::kernels::matvec_coop::{self, Shape};
use half::f16;
use proptest::prelude::*;

use super::adapters::{Adapters, Site};
use super::oracle::{self, EPS, gamma, rms_scale, strided_depth};
use super::weights::{Weights, row_unit};
use super::{Checked, Near, Output, Random, TIERS, for_all, on, seed, submit};

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) m: usize,
    /// Rows of W; with `SwiGlu` those of gate alone.
    pub(super) n: usize,
    /// K is 2 odd + 1 units of the format.
    pub(super) odd: usize,
    pub(super) x_row: usize,
    pub(super) y_offset: usize,
    /// Columns of y after those that are written.
    pub(super) y_rest: usize,
    pub(super) cols: u32,
    pub(super) norm: bool,
    pub(super) epilogue: Epilogue,
    pub(super) style: Style,
    pub(super) seed: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    /// As the host chooses it.
    Chosen,
    /// As on a GPU: 64 lanes, 4 << i of them in a team where subgroups allow.
    Gpu(u32),
    /// A lane by itself, four rows of W.
    Software,
    /// On cooperative matrices, loaded from scalars where it says so or the device knows no other
    /// way.
    Coop(matvec_coop::Tiling, bool),
}

/// A kernel under test.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    Rows(Variant),
    Coop(matvec_coop::Variant),
}

impl Kernel {
    fn spec(&self, caps: &Caps, dtype: DType) -> KernelSpec {
        match *self {
            Self::Rows(variant) => matvec::spec(caps, dtype, variant),
            Self::Coop(variant) => matvec_coop::spec(dtype, variant),
        }
    }

    fn record(&self, commands: &mut Commands<'_>, op: &Op, p: &LinearParams) {
        match *self {
            Self::Rows(variant) => matvec::record(commands, op, variant, p, 0),
            Self::Coop(variant) => matvec_coop::record(commands, op, variant, p, 0),
        }
    }

    /// The fewest lanes that share a sum.
    fn lanes(&self) -> u32 {
        match self {
            Self::Rows(variant) => variant.tiling.lanes,
            Self::Coop(..) => 4,
        }
    }

    /// `Σ x w` for row `n` of W, of the normalised x where there is a gain; without B u.
    fn product(
        &self,
        row: &[f32],
        gain: Option<&[f32]>,
        w: &Weights,
        n: usize,
        p: &LinearParams,
    ) -> Near {
        match self {
            Self::Rows(_) => product(row, gain, w, n, (p, self.lanes())),
            Self::Coop(..) => product_of_halves(row, gain, w, n, (p, self.lanes())),
        }
    }
}

impl Case {
    fn tiling(&self, caps: &Caps, k_blocks: u32) -> Tiling {
        let most = caps.subgroup_size.map_or(32, |size| size.min(32));
        match self.style {
            Style::Gpu(i) => {
                let lanes = (4 << i).min(most);
                // One team, two, four, where there are as many lanes.
                let split = (1 << (i % 3)).min(64 / lanes);
                Tiling {
                    wg: 64,
                    lanes,
                    split,
                    unroll: 1 << ((i + 1) % 3),
                    guard: true,
                    blocks: false,
                }
            }
            Style::Software => SOFTWARE,
            Style::Chosen | Style::Coop(..) => matvec::tiling(caps, self.n as u32, k_blocks),
        }
    }

    /// None where the device has no cooperative matrices.
    fn kernel(&self, caps: &Caps, k: usize, norm: bool, lora: Option<Lora>) -> Option<Kernel> {
        let Self { cols, epilogue, .. } = *self;
        if let Style::Coop(tiling, scalar) = self.style {
            let guard = tiling.guard(k as u32 / 32);
            let variant = |shape: Shape| {
                let shape = Shape { scalar: shape.scalar || scalar, ..shape };
                // A lane stages one row of x at most.
                let cols = tiling.cols.min(shape.lanes * tiling.subgroups);
                let tiling = matvec_coop::Tiling { cols, ..tiling };
                matvec_coop::Variant { shape, tiling, guard, norm, epilogue, lora }
            };
            return Shape::of(caps).map(variant).map(Kernel::Coop);
        }
        let tiling = self.tiling(caps, k as u32 / 32);
        Some(Kernel::Rows(Variant { tiling, cols, norm, epilogue, lora }))
    }

    fn params(&self, k: usize) -> LinearParams {
        let swiglu = self.epilogue.is_gated();
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

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let style =
        prop_oneof![Just(Style::Chosen), Just(Style::Software), (0u32..4).prop_map(Style::Gpu)];
    let epilogue = prop_oneof![
        Just(Epilogue::Store),
        Just(Epilogue::Add),
        Just(Epilogue::SwiGlu),
        Just(Epilogue::GeGlu)
    ];
    let sizes = (1usize..11, 1usize..150, 0usize..5, 0usize..3, 0usize..7, 0usize..7);
    let variant = (prop_oneof![Just(1u32), Just(2), Just(COLS)], any::<bool>(), epilogue, style);
    (sizes, variant, seed()).prop_map(
        |((m, n, odd, x_row, y_offset, y_rest), (cols, norm, epilogue, style), seed)| Case {
            m,
            n,
            odd,
            x_row,
            y_offset,
            y_rest,
            cols,
            norm,
            epilogue,
            style,
            seed,
        },
    )
}

fn product(
    row: &[f32],
    gain: Option<&[f32]>,
    w: &Weights,
    n: usize,
    (p, lanes): (&LinearParams, u32),
) -> Near {
    // A lane adds quarters of blocks; then the teams' sums.
    let depth = strided_depth(4 * p.k_blocks as usize, lanes) + MAX_SPLIT as usize;
    // Squares: 4 roundings in a vec4, 8 additions of them.
    let (scale, scale_error) = gain.map_or((1.0, 0.0), |_| rms_scale(row, p.eps, 12 + depth));
    let (sum, size) = w.dot(n, |k| f64::from(row[k]) * gain.map_or(1.0, |gain| f64::from(gain[k])));
    // In a block: the gain, 2 of dequantisation, 4 of a vec4's dot, 8 additions, 3 for scale and
    // offset.
    let error = gamma(18 + depth) * size + (scale_error + EPS) * sum.abs();
    Near { value: sum * scale, bound: 1.001 * error * scale }
}

/// Products of halves are exact in f32, and there are K additions in any order. Where x is
/// normalised, it may be rounded to one half or the next.
fn product_of_halves(
    row: &[f32],
    gain: Option<&[f32]>,
    w: &Weights,
    n: usize,
    (p, lanes): (&LinearParams, u32),
) -> Near {
    let half = |v: f64| f16::from_f64(v).to_f64();
    let depth = 4 + strided_depth(w.k / 4, lanes);
    let (scale, scale_error) = gain.map_or((1.0, 0.0), |_| rms_scale(row, p.eps, depth));
    let (mut value, mut size, mut rounded) = (0.0, 0.0, 0.0);
    for (k, x) in row.iter().enumerate() {
        let x = f64::from(*x) * scale * gain.map_or(1.0, |gain| f64::from(gain[k]));
        // The scale's error, its product with the gain, that with x.
        let off = gain.map_or(0.0, |_| x.abs() * (scale_error + 2.0 * EPS) * 1.001);
        let (low, high, w) = (half(x - off), half(x + off), half(f64::from(w.values[n * w.k + k])));
        let term = (low + high) / 2.0 * w;
        (value, size) = (value + term, size + low.abs().max(high.abs()) * w.abs());
        rounded += (high - low) / 2.0 * w.abs();
    }
    Near { value, bound: 1.001 * (gamma(w.k + 2) * size + rounded) }
}

/// `y` before and the product.
fn oracle(
    x: &[f32],
    gain: Option<&[f32]>,
    w: &Weights,
    before: &[f32],
    p: &LinearParams,
    (kernel, epilogue): (Kernel, Epilogue),
) -> Vec<Option<Near>> {
    let mut y = vec![None; before.len()];
    for m in 0..p.m as usize {
        let row = &x[(p.x_row as usize + m) * w.k..][..w.k];
        let columns = if epilogue.is_gated() { p.pair } else { p.n } as usize;
        for n in 0..columns {
            let at = m * p.y_stride as usize + p.y_offset as usize + n;
            let v = kernel.product(row, gain, w, n, p);
            y[at] = Some(match epilogue {
                Epilogue::Store => v,
                Epilogue::Add => v.plus(before[at].into()),
                Epilogue::SwiGlu => oracle::swiglu(v, kernel.product(row, gain, w, n + columns, p)),
                Epilogue::GeGlu => oracle::geglu(v, kernel.product(row, gain, w, n + columns, p)),
            });
        }
    }
    y
}

pub(super) fn check(gpu: &Gpu, dtype: DType, case: &Case) -> Checked {
    let mut random = Random(case.seed);
    let k = row_unit(dtype) * (2 * case.odd + 1);
    let p = case.params(k);
    let Some(kernel) = case.kernel(gpu.caps(), k, case.norm, None) else { return Ok(()) };
    let w = Weights::random(dtype, p.n as usize, k, &mut random);
    let (x, gain) = (random.vec((case.x_row + case.m) * k, 1.0), random.vec(k, 2.0));
    let rows = case.m * p.y_stride as usize;
    // Without Add, what was there is poison.
    let add = case.epilogue == Epilogue::Add;
    let y = if add {
        Output::holding(gpu, random.vec(rows, 1.0), false)?
    } else {
        Output::poisoned(gpu, rows)?
    };
    let (words, scales) = w.upload(gpu, 0..w.n)?;
    let spec = kernel.spec(gpu.caps(), dtype);
    let op = gpu.op(
        &spec,
        &[&gpu.upload("x", &x)?, &gpu.upload("gain", &gain)?, &words, &scales, &y.tensor],
    )?;
    submit(gpu, |commands| kernel.record(commands, &op, &p))?;
    let gain = case.norm.then_some(&*gain);
    let expected = oracle(&x, gain, &w, &y.before[..rows], &p, (kernel, case.epilogue));
    y.check(gpu, &expected).map_err(|e| format!("{dtype:?} {kernel:?}: {e}").into())
}

#[test]
fn matvec_is_the_product_in_every_format() {
    for dtype in DType::ALL {
        for_all(3, cases(), |gpu, case| check(gpu, dtype, case));
    }
}

#[test]
fn matvec_makes_every_epilogue_with_and_without_the_norm() {
    for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu, Epilogue::GeGlu] {
        for norm in [false, true] {
            for_all(2, cases(), |gpu, case| {
                check(gpu, DType::Q4_0, &Case { epilogue, norm, ..case.clone() })
            });
        }
    }
}

#[test]
fn matvec_serves_every_number_of_columns_in_every_style() {
    for cols in [1, 2, COLS] {
        for style in [Style::Chosen, Style::Software, Style::Gpu(0), Style::Gpu(1)] {
            for_all(1, cases(), |gpu, case| {
                check(gpu, DType::Q4_1, &Case { cols, style, ..case.clone() })
            });
        }
    }
}

/// What every lane loads for itself there, no other tier sees.
#[test]
fn matvec_in_blocks_needs_no_subgroups() {
    let tier = TIERS.iter().find(|tier| tier.gpu.caps().subgroup_size.is_none()).unwrap();
    for (cols, norm) in [(1, true), (COLS, false), (COLS, true)] {
        let style = Style::Software;
        on(&[tier], &cases(), &|gpu, case| {
            check(gpu, DType::Q4_1, &Case { cols, style, norm, ..case.clone() })
        });
    }
}

/// Adapters of their own for the rows of a case, whose linears have `before` rows of W before these
/// and some after.
fn adapters(case: &Case, k: usize, before: usize, random: &mut Random) -> Adapters {
    let site = Site { number: 1, k, modules: vec![before + case.n, 3] };
    Adapters::random(vec![site], case.x_row, case.m, random)
}

/// y as without adapters, and u beside it.
pub(super) fn check_shrink(gpu: &Gpu, case: &Case) -> Checked {
    let mut random = Random(case.seed);
    let k = row_unit(DType::Q4_0) * (2 * case.odd + 1);
    let adapters = adapters(case, k, 0, &mut random);
    let u_width = adapters.u_width(0, case.x_row);
    let [alone, _] = adapters.alone(0, case.x_row);
    let p = LinearParams { site: 1, u_width: u_width as u32, alone, ..case.params(k) };
    let w = Weights::random(DType::Q4_0, case.n, k, &mut random);
    let (x, gain) = (random.vec((case.x_row + case.m) * k, 1.0), random.vec(k, 2.0));
    let rows = case.m * p.y_stride as usize;
    let y = Output::poisoned(gpu, rows)?;
    let u = Output::poisoned(gpu, (case.x_row + case.m) * u_width)?;
    let ((words, scales), [a, _]) = (w.upload(gpu, 0..w.n)?, adapters.upload(gpu)?);
    let lora = Some(Lora::Shrink(adapters.directory));
    let Some(kernel) = case.kernel(gpu.caps(), k, case.norm, lora) else { return Ok(()) };
    let (x_tensor, gain_tensor) = (gpu.upload("x", &x)?, gpu.upload("gain", &gain)?);
    let tensors = [&x_tensor, &gain_tensor, &words, &scales, &y.tensor, &a, &u.tensor];
    let op = gpu.op(&kernel.spec(gpu.caps(), DType::Q4_0), &tensors)?;
    submit(gpu, |commands| kernel.record(commands, &op, &p))?;
    let gain = case.norm.then_some(&*gain);
    let product = oracle(&x, gain, &w, &y.before[..rows], &p, (kernel, case.epilogue));
    y.check(gpu, &product).map_err(|e| format!("y{e}, {kernel:?}"))?;
    let mut expected = vec![None; (case.x_row + case.m) * u_width];
    for m in case.x_row..case.x_row + case.m {
        let row = &x[m * k..][..k];
        // Eight products, and four of these together.
        let depth = 8 + strided_depth(k / 8, kernel.lanes());
        let (scale, scale_error) = gain.map_or((1.0, 0.0), |_| rms_scale(row, p.eps, depth));
        let scaled = |column: usize| {
            let value = f64::from(row[column]) * gain.map_or(1.0, |gain| f64::from(gain[column]));
            Near { value, bound: if case.norm { EPS * value.abs() } else { 0.0 } }
        };
        for (i, near) in adapters.shrink((0, m), 0..k, scaled, depth + 1).into_iter().enumerate() {
            let bound = 1.001 * (near.bound + (scale_error + EPS) * near.value.abs()) * scale;
            expected[m * u_width + i] = Some(Near { value: near.value * scale, bound });
        }
    }
    u.check(gpu, &expected).map_err(|e| format!("u{e}, {kernel:?}").into())
}

/// y with `B u`, where u comes in `parts` and W is not the first chunk of its linear.
pub(super) fn check_expand(gpu: &Gpu, case: &Case, (parts, row0): (usize, usize)) -> Checked {
    let mut random = Random(case.seed);
    let k = row_unit(DType::Q4_1) * (2 * case.odd + 1);
    let adapters = adapters(case, k, row0, &mut random);
    let u_width = adapters.u_width(0, case.x_row);
    let [row0_u32, u_width_u32, parts_u32] = [row0, u_width, parts].map(|n| n as u32);
    let [_, alone] = adapters.alone(0, case.x_row);
    let p = LinearParams {
        row0: row0_u32,
        site: 1,
        u_width: u_width_u32,
        parts: parts_u32,
        alone,
        ..case.params(k)
    };
    let w = Weights::random(DType::Q4_1, case.n, k, &mut random);
    let x = random.vec((case.x_row + case.m) * k, 1.0);
    let u = adapters.random_u(0, (parts, u_width), &mut random);
    let add = case.epilogue == Epilogue::Add;
    let rows = case.m * p.y_stride as usize;
    let y = if add {
        Output::holding(gpu, random.vec(rows, 1.0), false)?
    } else {
        Output::poisoned(gpu, rows)?
    };
    let ((words, scales), [_, b]) = (w.upload(gpu, 0..w.n)?, adapters.upload(gpu)?);
    let lora = Some(Lora::Expand(adapters.directory));
    let Some(kernel) = case.kernel(gpu.caps(), k, false, lora) else { return Ok(()) };
    let (x_tensor, u_tensor) = (gpu.upload("x", &x)?, gpu.upload("parts", &u)?);
    let tensors = [&x_tensor, &x_tensor, &words, &scales, &y.tensor, &b, &u_tensor];
    let op = gpu.op(&kernel.spec(gpu.caps(), DType::Q4_1), &tensors)?;
    submit(gpu, |commands| kernel.record(commands, &op, &p))?;
    let mut expected = vec![None; rows];
    for (m, n) in (0..case.m).flat_map(|m| (0..case.n).map(move |n| (m, n))) {
        let row = case.x_row + m;
        let of = |i: usize| {
            (0..parts)
                .map(move |part| (row * parts + part) * u_width + i)
                .map(|at| f64::from(u[at]))
        };
        let added =
            adapters.expand((0, row), row0 + n, |i| (of(i).sum(), of(i).map(f64::abs).sum()));
        let product = kernel.product(&x[row * k..][..k], None, &w, n, &p);
        // The sums begin with it: its own roundings (u's parts, B, the adapters), then all of the
        // product's additions.
        let more = parts + 5 + adapters.additions((0, row), 8 * kernel.lanes() as usize);
        let depth =
            18 + strided_depth(4 * p.k_blocks as usize, kernel.lanes()) + MAX_SPLIT as usize + more;
        let sum = Near {
            value: product.value + added.0,
            bound: product.bound + 1.001 * gamma(depth) * added.1,
        };
        let at = m * p.y_stride as usize + p.y_offset as usize + n;
        expected[at] = Some(if add { sum.plus(y.before[at].into()) } else { sum });
    }
    y.check(gpu, &expected).map_err(|e| format!("{kernel:?}: {e}").into())
}

#[test]
fn matvec_makes_u_beside_the_product() {
    for (cols, style) in
        [(1, Style::Chosen), (2, Style::Gpu(0)), (COLS, Style::Gpu(1)), (COLS, Style::Software)]
    {
        for norm in [false, true] {
            for_all(1, cases(), |gpu, case| {
                check_shrink(
                    gpu,
                    &Case { cols, style, norm, epilogue: Epilogue::Store, ..case.clone() },
                )
            });
        }
    }
}

#[test]
fn matvec_adds_what_u_expands_to() {
    for (cols, style) in
        [(1, Style::Gpu(1)), (2, Style::Chosen), (COLS, Style::Chosen), (COLS, Style::Gpu(0))]
    {
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            for_all(1, (cases(), (1usize..4, 0usize..40)), |gpu, (case, lora)| {
                check_expand(
                    gpu,
                    &Case { cols, style, epilogue, norm: false, ..case.clone() },
                    *lora,
                )
            });
        }
    }
}
