//! From what came in to the next version.

use std::collections::BTreeMap;

use super::super::linalg::dot;
use super::super::published::{Draft, Published, RoundPlan, publish};
use super::super::random::{Random, system_seed};
use super::super::sign::Signer;
use super::super::wire::{Delta, Key};
use super::admit::Refusal;
use super::collect::{Collected, Taken};
use super::options::{Mode, Robust};
use super::report::{ModeError, Report, report};
use super::{Inputs, OptimizerState, Outcome, gather, probes};
use crate::adapter::{Factor, LoraModule};
use crate::error::Result;
use crate::parallel;

/// Means of the factors' changes.
pub(super) type Means = BTreeMap<Key, Vec<f64>>;

pub(super) fn finish(
    inputs: &Inputs<'_>,
    mut collected: Collected<'_>,
    mut next: RoundPlan,
    state: &mut OptimizerState,
    signer: &dyn Signer,
) -> Result<Outcome> {
    let Inputs { parent, options, .. } = *inputs;
    state.check(&parent.manifest.digest)?;
    if collected.is_sum() {
        look_again(&mut collected)?;
    }
    if let Robust::Krum { byzantine } = options.robust {
        gather::krum(&mut collected, byzantine)?;
    }
    let clients = collected.taken.len() as u64;
    let mut report = report(inputs, &collected);
    if clients < options.min_clients.max(1) {
        let reason = format!("{clients} deltas were taken; {} are needed", options.min_clients);
        report.not_published = Some(reason);
        return Ok(Outcome { version: None, report });
    }
    let made = match options.mode {
        Mode::Svd => gather::svd(&collected)?,
        Mode::Stack => gather::stack(&collected)?,
        _ => average(inputs, &collected, state, &mut report)?,
    };
    report.mode_error = made.error.or(report.mode_error);
    next.round = parent.manifest.next.round + 1;
    next.factors = options.mode.next(parent.manifest.next.factors);
    let draft = Draft {
        adapter: parent.manifest.adapter.clone(),
        version: parent.manifest.version + 1,
        parent: Some(parent.as_parent()),
        base_fingerprint: parent.manifest.base_fingerprint.clone(),
        clients,
        mode: options.mode.name().into(),
        next,
        config: made.config.unwrap_or_else(|| parent.config.clone()),
        modules: made.modules,
    };
    let version = publish(draft, signer)?;
    state.belongs_to(&version.manifest.digest);
    report.version = Some(version.manifest.version);
    Ok(Outcome { version: Some(version), report })
}

/// Modules of a version.
pub(super) struct Made {
    pub(super) modules: Vec<LoraModule>,
    /// In place of the parent's.
    pub(super) config: Option<String>,
    pub(super) error: Option<ModeError>,
}

/// Each delta's cosine to the mean, and those out whose cosine is too low.
fn look_again(collected: &mut Collected<'_>) -> Result<()> {
    let options = collected.round.options;
    if !(options.cosines || options.min_cosine.is_some()) || collected.taken.is_empty() {
        return Ok(());
    }
    let mean = Mean::new(collected);
    let wanted = |taken: &&Taken| taken.path.is_some() || options.min_cosine.is_some();
    let taken = collected.taken.values().filter(wanted).collect();
    let cosines = parallel::map(taken, |taken: &Taken| {
        let norm = collected.entries.get(taken.entry).and_then(|entry| entry.norm);
        Ok((taken.entry, mean.cosine(&taken.glance(norm.unwrap_or_default())?)))
    });
    let cosines = cosines.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
    let mut low = Vec::new();
    for (key, taken) in &collected.taken {
        let Some(&cosine) = cosines.get(&taken.entry) else { continue };
        collected.entries[taken.entry].cosine = Some(cosine);
        if let Some(allowed) = options.min_cosine.filter(|allowed| cosine < *allowed) {
            low.push((key.clone(), Refusal::Cosine { cosine, allowed }));
        }
    }
    low.into_iter().try_for_each(|(key, refusal)| collected.remove(&key, refusal))
}

/// The mean of all that were taken at first.
struct Mean {
    factors: Means,
    norm: f64,
}

impl Mean {
    fn new(collected: &Collected<'_>) -> Self {
        let factors = means_of_sums(collected, collected.weight.value());
        Self { norm: norm(&factors), factors }
    }

    fn cosine(&self, delta: &Delta) -> f64 {
        let mut room = Vec::new();
        let product = |(key, mean): (&Key, &Vec<f64>)| {
            delta.numbers(*key, &mut room).map_or(0.0, |numbers| dot(numbers, mean))
        };
        let size = delta.norm() * self.norm;
        if size > 0.0 { self.factors.iter().map(product).sum::<f64>() / size } else { 0.0 }
    }
}

fn means_of_sums(collected: &Collected<'_>, divisor: f64) -> Means {
    let mean = |sums: &super::exact::Sums| sums.values().map(|sum| sum / divisor).collect();
    collected.sums.iter().map(|(key, sums)| (*key, mean(sums))).collect()
}

fn norm(means: &Means) -> f64 {
    means.values().flatten().map(|v| v * v).sum::<f64>().sqrt()
}

/// Adds the mean of the changes to the parent's factors, as the server's optimizer has it.
fn average(
    inputs: &Inputs<'_>,
    collected: &Collected<'_>,
    state: &mut OptimizerState,
    report: &mut Report,
) -> Result<Made> {
    let Inputs { parent, options, .. } = *inputs;
    let weight = collected.weight.value();
    let mut means = match collected.is_sum() {
        true => means_of_sums(collected, weight),
        false => gather::means(collected),
    };
    report.mean_norm = Some(norm(&means));
    let error = collected.probes.as_ref().and_then(|probes| {
        let mean = |path, factor: Factor| means.get(&(path, factor)).cloned().unwrap_or_default();
        let (norm, exact_norm) = probes::error(probes, parent, weight, &mean)?;
        Some(ModeError { norm, exact_norm, is_estimate: true })
    });
    if let (Some(noise), Some(clip)) = (options.noise, parent.manifest.next.clip_norm) {
        let mut random = Random::new(system_seed()?);
        let expected = noise.expected as f64;
        for value in means.values_mut().flatten() {
            *value = (*value * weight + noise.sigma * clip * random.normal()) / expected;
        }
    }
    let modules = moved(parent, means, |key, mean| state.step(options.optimizer, key, mean));
    Ok(Made { modules, config: None, error })
}

fn moved(
    parent: &Published,
    mut means: Means,
    mut step: impl FnMut(Key, Vec<f64>) -> Vec<f64>,
) -> Vec<LoraModule> {
    let mut modules = parent.modules.clone();
    for module in &mut modules {
        for (factor, values) in [(Factor::A, &mut module.a), (Factor::B, &mut module.b)] {
            let key = (module.path, factor);
            let change = means.remove(&key).map(|mean| step(key, mean)).unwrap_or_default();
            for (value, change) in values.iter_mut().zip(change) {
                *value = (f64::from(*value) + change) as f32;
            }
        }
    }
    modules
}
