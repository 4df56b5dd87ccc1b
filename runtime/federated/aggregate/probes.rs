//! How far the product of mean factors is from the mean of products, without forming either: both
//! are applied to the same random vectors.

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

/// Weighted sums of what each delta makes of a module's vectors.
pub(super) struct Probe {
    /// `[COUNT, N]`.
    pub(super) sums: Sums,
    /// `[K]`: vectors of 1 and -1, the same for everyone.
    signs: Vec<Each>,
    /// `[r]`: what the parent's A makes of them.
    seen: Vec<Each>,
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
        let rows = module.a.chunks(signs.len().max(1));
        let seen = rows.map(|row| combined(row.iter().copied(), &signs)).collect();
        let sums = Sums::new(COUNT * module.b.len() / rank);
        Self { sums, signs, seen, is_lost: false }
    }

    /// Adds what a change makes of the vectors, `weight` times.
    pub(super) fn add(&mut self, module: &LoraModule, change: Change<'_>, weight: f64) {
        let seen = self.applied(module, change);
        let fits = |y: &f32| (f64::from(*y) * weight).abs() < LARGEST;
        match seen.iter().all(fits) {
            true => self.sums.add(seen.iter().map(|y| f64::from(*y) * weight)),
            false => self.is_lost = true,
        }
    }

    /// The change of `B A`, applied to the vectors: `d_b (A + d_a) z + B d_a z`, `[COUNT, N]`.
    fn applied(&self, module: &LoraModule, change: Change<'_>) -> Vec<f32> {
        let (r, Change { a, b, shrink }) = (module.rank.max(1), change);
        // Shrunk before anything is added up: what was sent may be as large as f32 gets.
        let shrunk = |v: f32| (f64::from(v) * shrink) as f32;
        let rows = a.chunks(self.signs.len().max(1));
        let changed: Vec<_> =
            rows.map(|row| combined(row.iter().map(|v| shrunk(*v)), &self.signs)).collect();
        let whole = self.seen.iter().zip(&changed);
        let whole: Vec<_> = whole.map(|(y, new)| each(|v| y[v] + new[v])).collect();
        let n = module.b.len() / r;
        let mut out = vec![0.0; COUNT * n];
        for (i, (row, d_row)) in module.b.chunks(r).zip(b.chunks(r)).enumerate() {
            let old = combined(row.iter().copied(), &changed);
            let new = combined(d_row.iter().map(|v| shrunk(*v)), &whole);
            (0..COUNT).for_each(|v| out[v * n + i] = old[v] + new[v]);
        }
        out
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
        let got = probe.applied(module, Change { a: &a, b: &b, shrink: 1.0 });
        let scale = f64::from(module.scaling).powi(2) / COUNT as f64;
        for (sum, got) in probe.sums.values().zip(got) {
            exact += scale * (sum / weight).powi(2);
            error += scale * (sum / weight - f64::from(got)).powi(2);
        }
    }
    Some((error.sqrt(), exact.sqrt()))
}

fn each(value: impl Fn(usize) -> f32) -> Each {
    std::array::from_fn(value)
}

/// The sum of `vectors`, each so many times.
fn combined(times: impl Iterator<Item = f32>, vectors: &[Each]) -> Each {
    let mut sum = [0.0; COUNT];
    for (x, vector) in times.zip(vectors) {
        sum.iter_mut().zip(vector).for_each(|(sum, y)| *sum += x * y);
    }
    sum
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
