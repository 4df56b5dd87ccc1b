//! Every kernel against its oracle: f64 loops that look like the formula and take the kernel's own
//! `Params`.
//!
//! Each case runs on every tier of the adapter; where a GPU is software, and slow to compile for,
//! on the first and on one of the others in turn. Outputs are poisoned first, and what a kernel has
//! no business with must keep its bits. A tolerance is a bound derived from the roundings on the
//! way (see [`oracle`]), not a guess.

mod adamw;
mod adapters;
mod attention;
mod attention_backward;
mod attention_train;
mod cross_entropy;
mod embedding;
mod gather_rows;
mod grad_norm;
mod heads_backward;
mod lora;
mod matmul;
mod matmul_backward;
mod matmul_dense;
mod matvec;
mod matvec_coop;
mod oracle;
mod proximal;
mod rms_norm;
mod rms_norm_backward;
mod rope;
mod rope_train;
mod row_exponents;
mod sample;
mod sample_mask;
mod sgd;
mod swiglu;
mod swiglu_backward;
mod weights;

use std::cell::Cell;
use std::error::Error;
use std::sync::LazyLock;

use epiphyte::gpu::{Commands, Gpu, GpuOptions, Tensor};
use half::f16;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::common::skip::skip;

/// What a test gives back; the error says what differs.
type Checked<T = ()> = Result<T, Box<dyn Error>>;

/// Elements after an output that must stay as they were.
const GUARD: usize = 64;
/// What outputs hold before: a NaN that no arithmetic makes.
const POISON: f32 = f32::from_bits(0x7fc0_dead);

struct Tier {
    name: &'static str,
    gpu: Gpu,
}

/// The adapter with everything it has, then with one ability left unused, then with checked
/// shaders.
static TIERS: LazyLock<Vec<Tier>> = LazyLock::new(|| {
    let all = || GpuOptions { name: None, cache_dir: None, ..GpuOptions::default() };
    let tiers = [
        ("all", all()),
        ("no subgroups", GpuOptions { subgroups: false, ..all() }),
        ("no f16", GpuOptions { f16: false, ..all() }),
        ("no immediates", GpuOptions { immediates: false, ..all() }),
        ("checked", GpuOptions { checked: true, ..all() }),
    ];
    tiers
        .into_iter()
        .map(|(name, options)| Tier {
            name,
            gpu: Gpu::open(options).expect("the tests need a Vulkan or Metal adapter"),
        })
        .collect()
});

/// Whether the adapter has cooperative matrices; if not, says `what` is left out.
#[track_caller]
fn matrices(what: &str) -> bool {
    let has = TIERS[0].gpu.caps().cooperative_matrix.is_some();
    if !has {
        skip(&format!("{what}: no cooperative matrices"));
    }
    has
}

thread_local! {
    /// Cases that this test has had.
    static TURN: Cell<usize> = const { Cell::new(0) };
}

/// The tiers of the next case.
fn tiers() -> Vec<&'static Tier> {
    let turn = TURN.replace(TURN.get() + 1);
    let [all, others @ ..] = &TIERS[..] else { unreachable!("there are five") };
    // One step more after each round, so that loops in a test don't keep to one tier.
    let next = (turn + turn / others.len()) % others.len();
    let others = if all.gpu.caps().software { &others[next..=next] } else { others };
    std::iter::once(all).chain(others).collect()
}

/// Runs `test` on the tiers, for `cases` values of `strategy`, or half as many where a GPU is
/// software; a failing value is shrunk and shown.
fn for_all<S: Strategy>(cases: u32, strategy: S, test: impl Fn(&Gpu, &S::Value) -> Checked) {
    let cases = if TIERS[0].gpu.caps().software { cases.div_ceil(2) } else { cases };
    (0..cases).for_each(|_| on(&tiers(), &strategy, &test));
}

/// Runs `test` on `tiers`, for one value of `strategy`.
fn on<S: Strategy>(tiers: &[&Tier], strategy: &S, test: &impl Fn(&Gpu, &S::Value) -> Checked) {
    let config =
        Config { cases: 1, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let on_tiers = |case| {
        tiers.iter().try_for_each(|tier| {
            test(&tier.gpu, &case)
                .map_err(|e| TestCaseError::fail(format!("tier `{}`: {e}", tier.name)))
        })
    };
    if let Err(e) = TestRunner::new(config).run(strategy, on_tiers) {
        panic!("{e}");
    }
}

/// Records and submits.
fn submit(gpu: &Gpu, record: impl FnOnce(&mut Commands<'_>)) -> Checked {
    let mut commands = Commands::new(gpu)?;
    record(&mut commands);
    commands.submit();
    Ok(())
}

/// What an element must be: within `bound` of `value`.
#[derive(Clone, Copy, Debug)]
struct Near {
    value: f64,
    bound: f64,
}

impl Near {
    /// A NaN is near nothing.
    fn holds(self, got: f32) -> bool {
        (f64::from(got) - self.value).abs() <= self.bound
    }

    /// Added in f32 to what was there.
    fn plus(self, before: f64) -> Self {
        let value = self.value + before;
        Self { value, bound: self.bound + oracle::EPS * (value.abs() + self.bound) }
    }
}

/// A buffer that a kernel writes, with what it held before.
struct Output {
    before: Vec<f32>,
    f16: bool,
    tensor: Tensor,
}

impl Output {
    /// `len` poisoned elements and the guard.
    fn poisoned(gpu: &Gpu, len: usize) -> Checked<Self> {
        Self::holding(gpu, vec![POISON; len], false)
    }

    /// `data` and the guard, as f16 or f32.
    fn holding(gpu: &Gpu, data: Vec<f32>, f16: bool) -> Checked<Self> {
        let mut before = data;
        before.resize(before.len() + GUARD, POISON);
        let tensor = upload_kv(gpu, &mut before, f16)?;
        Ok(Self { before, f16, tensor })
    }

    fn read(&self, gpu: &Gpu) -> Checked<Vec<f32>> {
        let len = self.before.len();
        Ok(if self.f16 {
            to_f32(&gpu.read::<f16>(&self.tensor, 0, len)?)
        } else {
            gpu.read(&self.tensor, 0, len)?
        })
    }

    /// Elements that are `Some` must be near; all others, and the guard, must have kept their bits.
    fn check(&self, gpu: &Gpu, expected: &[Option<Near>]) -> Checked {
        let after = self.read(gpu)?;
        assert!(
            expected.len() <= self.before.len() - GUARD,
            "more is expected than the output holds"
        );
        for (i, (got, before)) in after.iter().zip(&self.before).enumerate() {
            match expected.get(i).copied().flatten() {
                Some(near) if !near.holds(*got) => {
                    let Near { value, bound } = near;
                    let ratio = (f64::from(*got) - value).abs() / bound;
                    return Err(format!(
                        "[{i}] is {got:e}, not {value:e}; {ratio:.3} times the bound {bound:e}"
                    )
                    .into());
                }
                None if got.to_bits() != before.to_bits() => {
                    return Err(format!(
                        "[{i}] is {got:e}, but was {before:e} and not to be written"
                    )
                    .into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Uploads as f16 or f32; `data` becomes what the device holds.
fn upload_kv(gpu: &Gpu, data: &mut Vec<f32>, f16: bool) -> Checked<Tensor> {
    if !f16 {
        return Ok(gpu.upload("kv", data)?);
    }
    let halves: Vec<_> = data.iter().map(|v| f16::from_f32(*v)).collect();
    *data = to_f32(&halves);
    Ok(gpu.upload("kv", &halves)?)
}

fn to_f32(halves: &[f16]) -> Vec<f32> {
    halves.iter().map(|v| v.to_f32()).collect()
}

/// `SplitMix64` (Steele et al. 2014): the data of a case, from its seed.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in [-size, size).
    fn signed(&mut self, size: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    }

    fn vec(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| self.signed(size)).collect()
    }

    /// Uniform in [-1, 1), exact as f16 and not subnormal there: such may be flushed.
    fn halves(&mut self, len: usize) -> Vec<f32> {
        let round = |v: f32| f16::from_f32(if v.abs() < 1e-3 { 1e-3 } else { v }).to_f32();
        (0..len).map(|_| round(self.signed(1.0))).collect()
    }

    /// 0..n in random order (Fisher & Yates).
    fn shuffled(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}

/// First row and end of the sequence of each row, for sequences of `lens` rows one after the other.
fn packed(lens: &[usize]) -> Vec<[u32; 2]> {
    let mut rows = Vec::new();
    for &len in lens {
        let start = rows.len() as u32;
        rows.extend(std::iter::repeat_n([start, start + len as u32], len));
    }
    rows
}

/// The seed of a case's data: nothing to shrink.
fn seed() -> impl Strategy<Value = u64> {
    proptest::num::u64::ANY.no_shrink()
}
