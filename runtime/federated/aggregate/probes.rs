//! How far the product of mean factors is from the mean of products, without forming either: both
//! are applied to the same random vectors.

use std::collections::BTreeMap;

use super::super::linalg::dot;
use super::super::published::Published;
use super::super::wire::Delta;
use super::exact::Sums;
use crate::adapter::{Factor, LoraModule, ModulePath};
use crate::identity::sha256;
use crate::parallel;

/// Vectors a module: the error of the estimate is about `sqrt(2 / (COUNT * modules))`.
const COUNT: usize = 8;

/// Weighted sums of what each delta makes of the vectors.
pub(super) struct Probes {
    pub(super) sums: BTreeMap<ModulePath, Sums>,
    vectors: BTreeMap<ModulePath, Vec<Vector>>,
}

/// A vector of 1 and -1, the same for everyone, and what the parent's A makes of it.
struct Vector {
    signs: Vec<f64>,
    seen: Vec<f64>,
}

impl Probes {
    pub(super) fn new(parent: &Published) -> Self {
        let sums = |m: &LoraModule| (m.path, Sums::new(COUNT * m.b.len() / m.rank.max(1)));
        Self {
            sums: parent.modules.iter().map(sums).collect(),
            vectors: parent.modules.iter().map(|m| (m.path, vectors(m))).collect(),
        }
    }

    pub(super) fn add(&mut self, parent: &Published, delta: &Delta, shrink: f64, weight: f64) {
        let each = |(path, sums): (&ModulePath, &mut Sums)| {
            let change = |factor| {
                let values = delta.values((*path, factor)).unwrap_or_default();
                values.iter().map(|v| f64::from(*v) * shrink).collect::<Vec<_>>()
            };
            if let Some((module, vectors)) = parent.module(*path).zip(self.vectors.get(path)) {
                let seen = applied(module, vectors, &change(Factor::A), &change(Factor::B));
                sums.add(seen.iter().map(|y| y * weight));
            }
        };
        parallel::map(self.sums.iter_mut().collect(), each);
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
            let vectors = self.vectors.get(&module.path).map_or(&[][..], Vec::as_slice);
            let got = applied(module, vectors, &a, &b);
            let sums = self.sums.get(&module.path).into_iter().flat_map(Sums::values);
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
fn applied(module: &LoraModule, vectors: &[Vector], d_a: &[f64], d_b: &[f64]) -> Vec<f64> {
    let r = module.rank.max(1);
    let mut out = Vec::with_capacity(vectors.len() * module.b.len() / r);
    for Vector { signs, seen } in vectors {
        let changed: Vec<_> = d_a.chunks(signs.len()).map(|row| dot(row, signs)).collect();
        let whole: Vec<_> = seen.iter().zip(&changed).map(|(old, new)| old + new).collect();
        for (row, d_row) in module.b.chunks(r).zip(d_b.chunks(r)) {
            let old = row.iter().zip(&changed).map(|(b, y)| f64::from(*b) * y);
            out.push(old.sum::<f64>() + dot(d_row, &whole));
        }
    }
    out
}

fn vectors(module: &LoraModule) -> Vec<Vector> {
    let width = module.a.len() / module.rank.max(1);
    let vector = |number: usize| {
        let block = |i: usize| sha256([format!("{} {number} {i}", module.path)]);
        let blocks = (0..width.div_ceil(256)).flat_map(block);
        let bits = blocks.flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1));
        let signs: Vec<_> = bits.take(width).map(|bit| if bit == 1 { 1.0 } else { -1.0 }).collect();
        let along = |row: &[f32]| row.iter().zip(&signs).map(|(a, s)| f64::from(*a) * s).sum();
        let seen = module.a.chunks(width.max(1)).map(along).collect();
        Vector { signs, seen }
    };
    (0..COUNT).map(vector).collect()
}
