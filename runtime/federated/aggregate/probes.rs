//! How far the product of mean factors is from the mean of products, without forming either: both
//! are applied to the same random vectors.

use std::collections::BTreeMap;

use super::super::published::Published;
use super::super::wire::Delta;
use super::exact::Sums;
use crate::adapter::{Factor, LoraModule, ModulePath};
use crate::identity::sha256;

/// Vectors a module: the error of the estimate is about `sqrt(2 / (COUNT * modules))`.
const COUNT: usize = 8;

/// Weighted sums of what each delta makes of the vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probes(pub(super) BTreeMap<ModulePath, Sums>);

impl Probes {
    pub(super) fn new(parent: &Published) -> Self {
        let sums = |m: &LoraModule| (m.path, Sums::new(COUNT * m.b.len() / m.rank.max(1)));
        Self(parent.modules.iter().map(sums).collect())
    }

    pub(super) fn add(&mut self, parent: &Published, delta: &Delta, shrink: f64, weight: f64) {
        for module in &parent.modules {
            let change = |factor| {
                let values = delta.values((module.path, factor)).unwrap_or_default();
                values.iter().map(|v| f64::from(*v) * shrink).collect::<Vec<_>>()
            };
            let seen = applied(module, &change(Factor::A), &change(Factor::B));
            if let Some(sums) = self.0.get_mut(&module.path) {
                sums.add(seen.iter().map(|y| y * weight));
            }
        }
    }

    /// The norm of the difference, and that of the mean of the products' changes, both estimated;
    /// scaled as they act. `means` are those of the factors' changes.
    pub(super) fn error(
        &self,
        parent: &Published,
        weight: f64,
        means: &dyn Fn(ModulePath, Factor) -> Vec<f64>,
    ) -> (f64, f64) {
        let (mut error, mut exact) = (0.0, 0.0);
        for module in &parent.modules {
            let [a, b] = [Factor::A, Factor::B].map(|factor| means(module.path, factor));
            let got = applied(module, &a, &b);
            let sums = self.0.get(&module.path).into_iter().flat_map(Sums::values);
            let scale = f64::from(module.scaling).powi(2) / COUNT as f64;
            for (sum, got) in sums.zip(got) {
                exact += scale * (sum / weight).powi(2);
                error += scale * (sum / weight - got).powi(2);
            }
        }
        (error.sqrt(), exact.sqrt())
    }
}

/// The change of `B A` when its factors change by `d_a` and `d_b`, applied to the module's vectors:
/// `d_b (A + d_a) z + B d_a z`.
fn applied(module: &LoraModule, d_a: &[f64], d_b: &[f64]) -> Vec<f64> {
    let r = module.rank.max(1);
    let width = module.a.len() / r;
    let mut out = Vec::with_capacity(COUNT * module.b.len() / r);
    for signs in vectors(module.path, width) {
        let along = |row: &dyn Fn(usize) -> f64| {
            signs.iter().enumerate().map(|(i, s)| s * row(i)).sum::<f64>()
        };
        let changed: Vec<_> = (0..r).map(|c| along(&|i| d_a[c * width + i])).collect();
        let whole = (0..r).map(|c| along(&|i| f64::from(module.a[c * width + i])) + changed[c]);
        let whole: Vec<_> = whole.collect();
        for (row, d_row) in module.b.chunks(r).zip(d_b.chunks(r)) {
            let old = row.iter().zip(&changed).map(|(b, y)| f64::from(*b) * y);
            let new = d_row.iter().zip(&whole).map(|(b, y)| b * y);
            out.push(old.chain(new).sum());
        }
    }
    out
}

/// Vectors of 1 and -1, the same for everyone.
fn vectors(path: ModulePath, width: usize) -> impl Iterator<Item = Vec<f64>> {
    (0..COUNT).map(move |vector| {
        let block = |i: usize| sha256([format!("{path} {vector} {i}")]);
        let blocks = (0..width.div_ceil(256)).flat_map(block);
        let bits = blocks.flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1));
        bits.take(width).map(|bit| if bit == 1 { 1.0 } else { -1.0 }).collect()
    })
}
