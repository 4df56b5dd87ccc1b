//! What needs every delta at once: robust means, and the modes that average products.

use std::collections::BTreeMap;

use super::super::client::prefix;
use super::super::invalid;
use super::super::linalg::{Product, svd_of_sum};
use super::super::wire::Delta;
use super::admit::{Admitted, Refusal};
use super::collect::Collected;
use super::exact::{Sum, Sums};
use super::finish::{Made, Means};
use super::options::Robust;
use super::report::ModeError;
use crate::adapter::{LoraConfig, LoraModule, MAX_RANK, Modules};
use crate::error::Result;
use crate::parallel;

/// Means of the changes of the factors of the round.
pub(super) fn means(collected: &Collected<'_>) -> Means {
    let deltas: Vec<_> = collected.kept.values().collect();
    let keys = deltas.first().map_or_else(Vec::new, |(delta, _)| delta.keys().collect());
    let mean = |key| (key, mean_of(&deltas, key, collected.round.options.robust));
    parallel::map(keys, mean).into_iter().collect()
}

fn mean_of(
    deltas: &[&(Delta, Admitted)],
    key: super::super::wire::Key,
    robust: Robust,
) -> Vec<f64> {
    let values = |(delta, admitted): &(Delta, Admitted)| {
        let values = delta.values(key).unwrap_or_default();
        values.into_iter().map(|v| f64::from(v) * admitted.shrink).collect::<Vec<_>>()
    };
    let all: Vec<_> = deltas.iter().map(|delta| values(delta)).collect();
    let n = all.first().map_or(0, Vec::len);
    let cut = match robust {
        Robust::TrimmedMean { fraction } => (fraction * all.len() as f64).floor() as usize,
        // All but the middle one or two.
        Robust::Median => all.len().saturating_sub(1) / 2,
        Robust::Mean | Robust::Krum { .. } => return weighted(deltas, &all, n),
    };
    let middle = |i: usize| {
        let mut column: Vec<_> = all.iter().map(|values| values[i]).collect();
        column.sort_by(f64::total_cmp);
        let middle = &column[cut..column.len() - cut];
        middle.iter().sum::<f64>() / middle.len() as f64
    };
    (0..n).map(middle).collect()
}

fn weighted(deltas: &[&(Delta, Admitted)], all: &[Vec<f64>], n: usize) -> Vec<f64> {
    let (mut sums, mut weight) = (Sums::new(n), Sum::default());
    for ((_, admitted), values) in deltas.iter().zip(all) {
        sums.add(values, admitted.weight);
        weight.add(admitted.weight);
    }
    let weight = weight.value();
    sums.values().map(|sum| sum / weight).collect()
}

/// Leaves out the `byzantine` deltas farthest from their neighbours (Blanchard et al. 2017): a
/// delta's score is the sum of the squared distances to the nearest `n - byzantine - 2`. Distances
/// are those of the change of `scaling B A`.
///
/// Errors: `InvalidDelta` for too few deltas.
pub(super) fn krum(collected: &mut Collected<'_>, byzantine: usize) -> Result<()> {
    let n = collected.kept.len();
    if n < 2 * byzantine + 3 {
        let needed = 2 * byzantine + 3;
        return Err(invalid(
            "krum",
            format!("{n} deltas; {needed} are needed for {byzantine} liars"),
        ));
    }
    let parent = collected.round.parent;
    let deltas: Vec<_> = collected.kept.values().collect();
    let grams = parallel::map(parent.modules.iter().collect(), |module: &LoraModule| {
        let products: Vec<_> = deltas.iter().map(|delta| change(module, delta)).collect();
        let scale = f64::from(module.scaling).powi(2);
        let pairs = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)));
        pairs.map(|(i, j)| scale * products[i].dot(&products[j])).collect::<Vec<_>>()
    });
    let gram = |i: usize, j: usize| {
        let (high, low) = (i.max(j), i.min(j));
        grams.iter().map(|gram| gram[high * (high + 1) / 2 + low]).sum::<f64>()
    };
    let gram: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| gram(i, j)).collect()).collect();
    let score = |i: usize| {
        let distance = |j: usize| gram[i][i] + gram[j][j] - 2.0 * gram[i][j];
        let mut others: Vec<_> = (0..n).filter(|j| *j != i).map(distance).collect();
        others.sort_by(f64::total_cmp);
        others.iter().take(n - byzantine - 2).sum::<f64>()
    };
    let names: Vec<_> = collected.kept.keys().cloned().collect();
    let mut scored: Vec<_> =
        names.into_iter().enumerate().map(|(i, name)| (score(i), name)).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let far: Vec<_> = scored.split_off(n - byzantine).into_iter().map(|(_, name)| name).collect();
    let keys = collected.taken.iter().filter(|(_, taken)| far.contains(&taken.name));
    let keys: Vec<_> = keys.map(|(key, _)| key.clone()).collect();
    keys.iter().try_for_each(|key| collected.remove(key, Refusal::FarFromOthers))
}

/// The change of `B A`.
fn change(module: &LoraModule, (delta, admitted): &(Delta, Admitted)) -> Product {
    let rank = delta.manifest.layout.of_module(module.path).rank;
    let [a, b] = prefix(module, rank);
    let [d_a, d_b] = delta.module(module.path).map(|values| {
        let shrink = |v: f32| (f64::from(v) * admitted.shrink) as f32;
        values.map(|values| values.into_iter().map(shrink).collect::<Vec<_>>())
    });
    match (d_a, d_b) {
        (None, Some(d_b)) => Product::new(&a, &d_b, rank),
        (Some(d_a), None) => Product::new(&d_a, &b, rank),
        (Some(d_a), Some(d_b)) => {
            let new_a: Vec<_> = a.iter().zip(&d_a).map(|(a, d)| a + d).collect();
            Product::change(&new_a, &d_b, &b, &d_a, rank)
        }
        (None, None) => Product::new(&[], &[], 0),
    }
}

/// Components of the deltas' whole products, weighted so that their sum is the mean: vectors of
/// `p B` and of A.
fn components(collected: &Collected<'_>, module: &LoraModule) -> [Vec<Vec<f64>>; 2] {
    let mut weight = Sum::default();
    collected.kept.values().for_each(|(_, admitted)| weight.add(admitted.weight));
    let (mut a_rows, mut b_columns) = (Vec::new(), Vec::new());
    for (delta, admitted) in collected.kept.values() {
        let rank = delta.manifest.layout.of_module(module.path).rank;
        let deltas = delta.module(module.path);
        let [a, b] = [0, 1].map(|factor| {
            let old = &prefix(module, rank)[factor];
            let new = deltas[factor].iter().flatten();
            let new =
                old.iter().zip(new).map(|(v, d)| f64::from(*v) + f64::from(*d) * admitted.shrink);
            new.collect::<Vec<_>>()
        });
        let p = admitted.weight / weight.value();
        a_rows.extend(a.chunks(a.len() / rank.max(1)).map(<[f64]>::to_vec));
        let column = |c| b.iter().skip(c).step_by(rank).map(|v| v * p).collect();
        b_columns.extend((0..rank).map(column));
    }
    [a_rows, b_columns]
}

/// A module of components.
fn module_of(old: &LoraModule, a_rows: &[Vec<f64>], b_columns: &[Vec<f64>]) -> LoraModule {
    let n = b_columns.first().map_or(0, Vec::len);
    let rows = (0..n).flat_map(|i| b_columns.iter().map(move |column| column[i] as f32));
    LoraModule {
        path: old.path,
        rank: a_rows.len(),
        a: a_rows.iter().flatten().map(|v| *v as f32).collect(),
        b: rows.collect(),
        scaling: old.scaling,
    }
}

/// The mean of the products, cut back to the parent's rank. A singular value's root goes to either
/// factor.
pub(super) fn svd(collected: &Collected<'_>) -> Result<Made> {
    let modules = collected.round.parent.modules.iter().collect();
    let made = parallel::map(modules, |module: &LoraModule| {
        let [a, b] = components(collected, module);
        let [width, height] = [&a, &b].map(|vectors| vectors.first().map_or(0, Vec::len));
        let svd = svd_of_sum(&b, &a, module.rank);
        let scaled = |vectors: &[Vec<f64>], width: usize| {
            let vectors = vectors.iter().zip(&svd.values);
            let scale = |(vector, value): (&Vec<f64>, &f64)| {
                vector.iter().map(|x| x * value.sqrt()).collect::<Vec<_>>()
            };
            let mut scaled: Vec<_> = vectors.map(scale).collect();
            scaled.resize(module.rank, vec![0.0; width]);
            scaled
        };
        let kept: f64 = svd.values.iter().map(|value| value * value).sum();
        let scale = f64::from(module.scaling).powi(2);
        let lost = (svd.energy - kept).max(0.0);
        let new = module_of(module, &scaled(&svd.v, width), &scaled(&svd.u, height));
        (new, scale * lost, scale * svd.energy)
    });
    let (lost, energy) = made.iter().fold((0.0, 0.0), |(l, e), made| (l + made.1, e + made.2));
    let error = ModeError { norm: lost.sqrt(), exact_norm: energy.sqrt(), is_estimate: false };
    let modules = made.into_iter().map(|(module, ..)| module).collect();
    Ok(Made { modules, config: None, error: Some(error) })
}

/// The products side by side.
///
/// Errors: `InvalidDelta` when the ranks together are more than a base takes.
pub(super) fn stack(collected: &Collected<'_>) -> Result<Made> {
    let modules = collected.round.parent.modules.iter().map(|module| {
        let [a, b] = components(collected, module);
        if a.len() > MAX_RANK as usize {
            let reason = format!("the ranks add up to {}, and {MAX_RANK} fit; use svd", a.len());
            return Err(invalid(module.path.to_string(), reason));
        }
        Ok(module_of(module, &a, &b))
    });
    let modules = modules.collect::<Result<Vec<_>>>()?;
    let (config, _) = LoraConfig::parse(collected.round.parent.config.as_bytes())?;
    let config = stacked(config, &modules).to_json();
    Ok(Made { modules, config: Some(config), error: None })
}

/// The config that means what modules are: every one by its path.
fn stacked(config: LoraConfig, modules: &[LoraModule]) -> LoraConfig {
    let (first, path) = (modules.first(), |m: &LoraModule| m.path.to_string());
    let alpha = |m: &LoraModule| f64::from(m.scaling) * m.rank as f64;
    let ranks: BTreeMap<_, _> = modules.iter().map(|m| (path(m), m.rank)).collect();
    LoraConfig {
        r: first.map_or(1, |m| m.rank),
        lora_alpha: first.map_or(0.0, alpha),
        use_rslora: false,
        rank_pattern: ranks.into_iter().collect(),
        alpha_pattern: modules.iter().map(|m| (path(m), alpha(m))).collect(),
        target_modules: Modules::Names(modules.iter().map(path).collect()),
        exclude_modules: None,
        layers_to_transform: Vec::new(),
        layers_pattern: Vec::new(),
        ..config
    }
}
