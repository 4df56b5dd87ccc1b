//! The device's part: what training changed, clipped, with noise, in few bytes, signed.

use std::collections::BTreeMap;

use serde_json::Map;

use super::invalid;
use super::layout::Layout;
use super::manifest::{Clip, Factors, Losses, Manifest, Noise, bucket};
use super::published::Published;
use super::quantise::Quantisation;
use super::random::{Random, system_seed};
use super::residual::Residual;
use super::sign::Signer;
use super::wire::{self, Key};
use crate::adapter::{Adapter, Factor, LoraModule};
use crate::base::fingerprint;
use crate::error::Result;

/// What writes, in manifests.
pub(super) const RUNTIME: &str = concat!("epiphyte ", env!("CARGO_PKG_VERSION"));

/// How a delta is made, beside what the round's plan says.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeltaOptions {
    /// Examples it was trained on; only the power of two below is told. Where the trainer makes the
    /// delta, 0 stands for those that it has.
    pub examples: u64,
    /// What training did to the loss.
    pub losses: Option<Losses>,
    /// In place of the plan's.
    pub quantisation: Option<Quantisation>,
    /// Leave out what changed in a factor that the round freezes, rather than refuse it.
    pub drop_frozen: bool,
    /// For noise and rounding, in tests alone: with a seed that is known, neither hides anything.
    pub seed: Option<[u8; 32]>,
}

/// What left `parent` and became `trained`, as a signed file to upload. With a residual, what was
/// lost in rounds before is added and what is lost now is kept in it; store it once the upload is
/// done.
///
/// Errors: [`Error::InvalidDelta`](crate::error::Error::InvalidDelta) when the two are not of the
/// same modules, ranks and scalings (a smaller rank takes the parent's first components), when a
/// frozen factor was trained, or when the plan asks for noise without a clip norm;
/// [`Error::BaseMismatch`](crate::error::Error::BaseMismatch); those of the signer.
pub fn make(
    parent: &Published,
    trained: &Adapter,
    options: &DeltaOptions,
    mut residual: Option<&mut Residual>,
    signer: &dyn Signer,
) -> Result<Vec<u8>> {
    let plan = &parent.manifest.next;
    check_same(parent, trained)?;
    let mut values = differences(parent, trained, plan.factors, options.drop_frozen)?;
    if let Some(residual) = residual.as_deref_mut() {
        residual.fit(parent);
        for (key, values) in &mut values {
            let kept = residual.values.get(key).filter(|kept| kept.len() == values.len());
            kept.iter().for_each(|kept| add(values, kept));
        }
    }
    let seed = options.seed.map_or_else(system_seed, Ok)?;
    let mut random = Random::new(seed);
    let clip = plan.clip_norm.map(|norm| clip(&mut values, norm));
    let noise = match (plan.sigma > 0.0, plan.clip_norm) {
        (true, Some(norm)) => Some(add_noise(&mut values, plan.sigma, norm, &mut random)),
        (true, None) => return Err(invalid("clip_norm", "noise needs one; the plan has none")),
        (false, _) => None,
    };
    let manifest = Manifest {
        critical: Vec::new(),
        adapter: parent.manifest.adapter.clone(),
        base_fingerprint: parent.manifest.base_fingerprint.clone(),
        parent: parent.as_parent(),
        round: plan.round,
        factors: plan.factors,
        layout: Layout::of(&trained.modules),
        examples: bucket(options.examples),
        clip,
        noise,
        quantisation: options.quantisation.unwrap_or(plan.quantisation),
        loss: options.losses,
        runtime: RUNTIME.into(),
        expires: plan.expires,
        signer: signer.public_key(),
        others: Map::new(),
    };
    manifest.quantisation.check()?;
    let written = wire::write(&manifest, &values, &mut random, signer)?;
    if let Some(residual) = residual {
        for (key, mut left) in values {
            let sent = written.decoded.get(&key).into_iter().flatten();
            left.iter_mut().zip(sent).for_each(|(left, sent)| *left -= sent);
            residual.values.insert(key, left);
        }
    }
    Ok(written.bytes)
}

fn check_same(parent: &Published, trained: &Adapter) -> Result<()> {
    let manifest = &parent.manifest;
    let made_for = trained.base_fingerprint.as_deref();
    made_for.map_or(Ok(()), |made_for| fingerprint::check(made_for, &manifest.base_fingerprint))?;
    if parent.modules.len() != trained.modules.len() {
        let (ours, theirs) = (trained.modules.len(), parent.modules.len());
        return Err(invalid("modules", format!("{ours} were trained; the parent has {theirs}")));
    }
    Ok(())
}

/// A module's first `rank` components: `[A, B]`.
pub(super) fn prefix(module: &LoraModule, rank: usize) -> [Vec<f32>; 2] {
    let width = module.a.len() / module.rank.max(1);
    let rows = module.b.chunks(module.rank.max(1));
    [
        module.a[..(rank * width).min(module.a.len())].to_vec(),
        rows.flat_map(|row| &row[..rank.min(row.len())]).copied().collect(),
    ]
}

fn differences(
    parent: &Published,
    trained: &Adapter,
    factors: Factors,
    drop_frozen: bool,
) -> Result<BTreeMap<Key, Vec<f32>>> {
    let mut values = BTreeMap::new();
    for module in &trained.modules {
        let differs = |what: &str| invalid(module.path.to_string(), what);
        let old = parent.module(module.path);
        let old = old.ok_or_else(|| differs("the parent has no such module"))?;
        if module.rank > old.rank || module.scaling != old.scaling {
            let reason = format!(
                "rank {} and scaling {}; the parent has {} and {}, and a smaller rank may be \
                trained at the same scaling",
                module.rank, module.scaling, old.rank, old.scaling
            );
            return Err(differs(&reason));
        }
        let old = prefix(old, module.rank);
        for ((factor, new), old) in
            [(Factor::A, &module.a), (Factor::B, &module.b)].into_iter().zip(old)
        {
            if new.len() != old.len() {
                return Err(differs("another width than the parent's"));
            }
            if factors.has(factor) {
                let difference = new.iter().zip(&old).map(|(new, old)| new - old);
                // Spelt out: with Apple's frameworks about, nobody can guess it below.
                values.insert((module.path, factor), difference.collect::<Vec<f32>>());
            } else if !drop_frozen && *new != old {
                let reason = format!(
                    "{factor:?} was trained, and this round is of {} alone; train that alone \
                    (`--freeze {}`), or leave the change out (`--drop-frozen`)",
                    factors.name(),
                    factor.name()
                );
                return Err(differs(&reason));
            }
        }
    }
    match values.values().flatten().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(invalid("delta", "it holds NaN or infinity; train again at a lower rate")),
    }
}

fn add(values: &mut [f32], more: &[f32]) {
    values.iter_mut().zip(more).for_each(|(value, more)| *value += more);
}

/// Shrinks a delta to a norm, over all its numbers.
fn clip(values: &mut BTreeMap<Key, Vec<f32>>, norm: f64) -> Clip {
    let squares = values.values().flatten().map(|v| f64::from(*v).powi(2));
    let was = squares.sum::<f64>().sqrt();
    let was_clipped = was > norm;
    if was_clipped {
        let factor = norm / was;
        values.values_mut().flatten().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
    Clip { norm, was_clipped }
}

fn add_noise(
    values: &mut BTreeMap<Key, Vec<f32>>,
    sigma: f64,
    norm: f64,
    random: &mut Random,
) -> Noise {
    let noised =
        |v: f32, random: &mut Random| (f64::from(v) + sigma * norm * random.normal()) as f32;
    values.values_mut().flatten().for_each(|v| *v = noised(*v, random));
    Noise { mechanism: "gaussian".into(), sigma }
}
