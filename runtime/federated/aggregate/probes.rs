//! How far the product of mean factors is from the mean of products, without forming either: both
//! are applied to the same random vectors.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::published::Published;
use super::exact::{LARGEST, Sums};
use crate::adapter::{Factor, LoraModule, ModulePath};
use crate::identity::sha256;

/// Vectors a module: the error of the estimate is about `sqrt(2 / (COUNT * modules))`.
const COUNT: usize = 8;

/// One number of each vector. In f32, since an estimate's own error is far larger.
type Each = [f32; COUNT];

/// By module.
pub(super) type Probes = BTreeMap<ModulePath, Probe>;

/// What of a module's products is no sum over the deltas: of `(B + d_b) (A + d_a)` the product of
/// both changes.
pub(super) struct Probe {
    /// `[N, COUNT]`: weighted sums of what each delta's `d_b d_a` makes of the vectors.
    pub(super) sums: Sums,
    /// `[K]`: vectors of 1 and -1, the same for everyone.
    signs: Vec<Each>,
    /// A number was too large to be added: nothing is known of the module.
    pub(super) is_lost: bool,
}

/// The change of a module's A (`[r, K]`) and B (`[N, r]`), before both are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) shrink: f64,
}

/// Of every module.
pub(super) fn probes(parent: &Published) -> Probes {
    parent.modules.iter().map(|module| (module.path, Probe::new(module))).collect()
}

impl Probe {
    fn new(module: &LoraModule) -> Self {
        let rank = module.rank.max(1);
        let signs = signs(module.path, module.a.len() / rank);
        Self { sums: Sums::new(COUNT * module.b.len() / rank), signs, is_lost: false }
    }

    /// Adds what a change makes of the vectors, `weight` times.
    pub(super) fn add(&mut self, change: Change<'_>, weight: f64) {
        let Change { a, b, shrink } = change;
        // Shrunk before anything is added up: what was sent may be as large as f32 gets.
        let [a, b] = [a, b].map(|factor| shrunk(factor, shrink));
        let seen = products(&b, &products(&a, &self.signs));
        let seen = seen.as_flattened();
        let fits = |y: &f32| (f64::from(*y) * weight).abs() < LARGEST;
        match seen.iter().all(fits) {
            true => self.sums.add(seen, weight),
            false => self.is_lost = true,
        }
    }
}

/// The norm of the difference, and that of the mean of the products' changes, both estimated;
/// scaled as they act; nothing where a module's probe was lost. `means` are those of the factors'
/// changes.
pub(super) fn error(
    probes: &Probes,
    parent: &Published,
    weight: f64,
    means: &dyn Fn(ModulePath, Factor) -> Vec<f64>,
) -> Option<(f64, f64)> {
    let (mut error, mut exact) = (0.0, 0.0);
    for module in &parent.modules {
        let probe = probes.get(&module.path)?;
        let mean = |factor| means(module.path, factor).into_iter().map(|v| v as f32).collect();
        let [a, b]: [Vec<f32>; 2] = [Factor::A, Factor::B].map(mean);
        let [old, new] = [&module.a, &a].map(|a| products(a, &probe.signs));
        let (by_b, by_a) = (products(&b, &old), products(&module.b, &new));
        let both = products(&b, &new);
        let scale = f64::from(module.scaling).powi(2) / COUNT as f64;
        let alone = by_b.as_flattened().iter().zip(by_a.as_flattened());
        for ((sum, both), (b, a)) in probe.sums.values().zip(both.as_flattened()).zip(alone) {
            let mean = sum / weight;
            exact += scale * (mean + f64::from(*b) + f64::from(*a)).powi(2);
            error += scale * (mean - f64::from(*both)).powi(2);
        }
    }
    Some((error.sqrt(), exact.sqrt()))
}

fn shrunk(numbers: &[f32], shrink: f64) -> Cow<'_, [f32]> {
    match shrink < 1.0 {
        true => numbers.iter().map(|v| (f64::from(*v) * shrink) as f32).collect(),
        false => numbers.into(),
    }
}

/// A matrix of rows times `vectors`: each row's sum of them.
fn products(rows: &[f32], vectors: &[Each]) -> Vec<Each> {
    rows.chunks(vectors.len().max(1)).map(|row| combined(row, vectors)).collect()
}

/// The sum of `vectors`, each so many times.
fn combined(times: &[f32], vectors: &[Each]) -> Each {
    /// Sums side by side, so that none waits for the one before.
    const LANES: usize = 4;
    let ((times, times_rest), (vectors, rest)) =
        (times.as_chunks::<LANES>(), vectors.as_chunks::<LANES>());
    let mut sums = [Each::default(); LANES];
    let add = |sum: &mut Each, x: f32, vector: &Each| {
        sum.iter_mut().zip(vector).for_each(|(sum, y)| *sum += x * y);
    };
    for (times, vectors) in times.iter().zip(vectors) {
        let lanes = sums.iter_mut().zip(times).zip(vectors);
        lanes.for_each(|((sum, x), vector)| add(sum, *x, vector));
    }
    let [first, ..] = &mut sums;
    times_rest.iter().zip(rest).for_each(|(x, vector)| add(first, *x, vector));
    each(|v| sums.iter().map(|sum| sum[v]).sum())
}

fn each(value: impl Fn(usize) -> f32) -> Each {
    std::array::from_fn(value)
}

fn signs(path: ModulePath, width: usize) -> Vec<Each> {
    let vector = |number: usize| {
        let block = |i: usize| sha256([format!("{path} {number} {i}")]);
        let blocks = (0..width.div_ceil(256)).flat_map(block);
        let bits = blocks.flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1));
        bits.take(width).map(|bit| if bit == 1 { 1.0 } else { -1.0 }).collect::<Vec<_>>()
    };
    let vectors: [Vec<f32>; COUNT] = std::array::from_fn(vector);
    (0..width).map(|i| each(|v| vectors[v][i])).collect()
}
