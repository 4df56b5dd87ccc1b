//! What is tested, and the means: random data, poisoned outputs, a comparison. Here also the
//! kernels of one line.

use crate::base::layout::Activation;
use crate::error::Result;
use crate::gpu::{Caps, Commands, Gpu, Tensor};
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::swiglu::{self, SwiGluParams};

use super::Ability::{self, Subgroups};
use super::{attention, families, linear, lora, products, sample, training};

/// Runs a kernel and gives its outputs.
type Run = dyn Fn(&Gpu) -> Result<Vec<Outcome>> + Send + Sync;

/// A variant of a kernel on a tiny shape.
pub(super) struct Case {
    pub(super) kernel: &'static str,
    pub(super) variant: String,
    pub(super) uses: Vec<Ability>,
    /// Only training needs it.
    pub(super) training: bool,
    pub(super) run: Box<Run>,
}

/// Every variant that an engine would use on `gpu` under its present abilities.
pub(super) fn all(gpu: &Gpu) -> Vec<Case> {
    let caps = gpu.caps();
    let mut cases = linear::cases(gpu);
    cases.extend(attention::cases(caps));
    cases.extend(sample::cases());
    cases.extend(lora::cases(caps));
    // A software GPU takes seconds to compile them; it trains nobody's adapter, and the tests hold
    // them to more.
    if !caps.software {
        cases.extend(families::cases(caps));
        let training = products::cases(caps)
            .into_iter()
            .chain(training::cases(caps))
            .chain(families::training_cases());
        cases.extend(training.map(|case| Case { training: true, ..case }));
    }
    cases.push(case("rms_norm", "5 rows".into(), subgroups(caps), rms_norm));
    cases.push(case("swiglu", "5 rows".into(), vec![], swiglu));
    cases
}

pub(super) fn case(
    kernel: &'static str,
    variant: String,
    uses: Vec<Ability>,
    run: impl Fn(&Gpu) -> Result<Vec<Outcome>> + Send + Sync + 'static,
) -> Case {
    Case { kernel, variant, uses, training: false, run: Box::new(run) }
}

/// What a kernel that reduces over lanes uses.
pub(super) fn subgroups(caps: &Caps) -> Vec<Ability> {
    caps.subgroup_size.map(|_| Subgroups).into_iter().collect()
}

/// What an element must be: within `bound` of `value`; still poison where `value` is NaN.
#[derive(Clone, Copy)]
pub(super) struct Near {
    pub(super) value: f64,
    pub(super) bound: f64,
}

impl Near {
    /// The sum of `terms`, within `tolerance` of what they add up to without their signs.
    pub(super) fn sum(terms: impl Iterator<Item = f64>, tolerance: f64) -> Self {
        let (value, size) =
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        Self { value, bound: tolerance * size }
    }
}

/// Not to be written.
pub(super) const UNTOUCHED: Near = Near { value: f64::NAN, bound: 0.0 };
/// Elements after an output that must stay as they were.
pub(super) const GUARD: usize = 64;

/// One output of a kernel and what it must be.
pub(super) struct Outcome {
    pub(super) got: Vec<f32>,
    pub(super) want: Vec<Near>,
}

impl Outcome {
    /// Reads an output that [`poisoned`] made; all beyond `want` must be untouched.
    pub(super) fn read(gpu: &Gpu, tensor: &Tensor, mut want: Vec<Near>) -> Result<Self> {
        let got = gpu.read(tensor, 0, tensor.bytes() as usize / 4)?;
        want.resize(got.len(), UNTOUCHED);
        Ok(Self { got, want })
    }

    /// The first element that is wrong; with `spoil` the first expectation is.
    pub(super) fn difference(&self, spoil: bool) -> Option<String> {
        let wrong = |(i, (got, want)): (usize, (&f32, &Near))| {
            let value =
                if spoil && i == 0 { want.value + 2.0 * want.bound + 1.0 } else { want.value };
            let untouched = value.is_nan() && got.is_nan();
            let near = (f64::from(*got) - value).abs() <= want.bound;
            (!untouched && !near).then(|| {
                format!("element {i} is {got:e} instead of {value:e} +- {:.0e}", want.bound)
            })
        };
        self.got.iter().zip(&self.want).enumerate().find_map(wrong)
    }
}

/// An output of `held` followed by poison, `len` and the guard long.
pub(super) fn poisoned(gpu: &Gpu, held: &[f32], len: usize) -> Result<Tensor> {
    let mut data = held.to_vec();
    data.resize(len + GUARD, f32::NAN);
    gpu.upload("self-test", &data)
}

/// Records and submits.
pub(super) fn submit(
    gpu: &Gpu,
    record: impl FnOnce(&mut Commands<'_>) -> Result<()>,
) -> Result<()> {
    let mut commands = Commands::new(gpu)?;
    record(&mut commands)?;
    commands.submit();
    Ok(())
}

/// A linear congruential generator (Knuth, TAOCP 3.3.4), of which the high bits are used.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in [-1, 1), exact as f16.
    pub(super) fn signed(&mut self) -> f32 {
        (self.bits() >> 21) as f32 / 1024.0 - 1.0
    }

    pub(super) fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.signed()).collect()
    }
}

/// `x / (1 + e^-x)`
pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `1 / sqrt(mean(x²) + eps)`
pub(super) fn rms_scale(x: &[f32], eps: f32) -> f64 {
    let squares: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
    1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt()
}

fn rms_norm(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (rows, k, eps, mut random) = (5, 100, 1e-5, Random(1));
    let (x, gain) = (random.vec(rows * k), random.vec(k));
    let y = poisoned(gpu, &[], rows * k)?;
    let op = gpu.op(
        &rms_norm::spec(gpu.caps(), false),
        &[&gpu.upload("x", &x)?, &gpu.upload("gain", &gain)?, &y],
    )?;
    let params = RmsNormParams { rows: rows as u32, k4: k as u32 / 4, eps };
    submit(gpu, |commands| {
        rms_norm::record(commands, &op, params);
        Ok(())
    })?;
    let row = |x: &[f32]| {
        let scale = rms_scale(x, eps);
        let near = |(x, gain): (&f32, &f32)| Near {
            value: f64::from(*x) * scale * f64::from(*gain),
            bound: 1e-5,
        };
        x.iter().zip(&gain).map(near).collect::<Vec<_>>()
    };
    Ok(vec![Outcome::read(gpu, &y, x.chunks(k).flat_map(row).collect())?])
}

fn swiglu(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (rows, f, mut random) = (5, 72, Random(2));
    let gu: Vec<f32> = random.vec(rows * 2 * f).iter().map(|v| 8.0 * v).collect();
    let h = poisoned(gpu, &[], rows * f)?;
    let op =
        gpu.op(&swiglu::spec(gpu.caps(), Activation::Silu, None), &[&gpu.upload("gu", &gu)?, &h])?;
    submit(gpu, |commands| {
        let params = SwiGluParams { f: f as u32, ..Default::default() };
        swiglu::record(commands, &op, &params, rows as u32);
        Ok(())
    })?;
    let near = |(gate, up): (&f32, &f32)| Near {
        value: silu((*gate).into()) * f64::from(*up),
        bound: 1e-4,
    };
    let row = |gu: &[f32]| gu.iter().zip(&gu[f..]).map(near).collect::<Vec<_>>();
    Ok(vec![Outcome::read(gpu, &h, gu.chunks(2 * f).flat_map(row).collect())?])
}
