//! The start-up self-test: every kernel variant that the engine would use on a device, against
//! small CPU references.
//!
//! In: an open [`Gpu`]. Out: a [`Report`]; abilities whose kernels fail are taken from the device's
//! [`Caps`], so that everything after uses the next tier. The verdicts are kept by driver, so that
//! the next start only reads them.

mod attention;
mod attention_train;
mod cache;
mod cases;
mod families;
mod linear;
mod lora;
mod products;
mod sample;
mod training;

use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu};
use crate::parallel;
use crate::progress::{LoadPhase, Loading};
use cases::Case;

/// What a kernel variant asks of the device beyond the reference tier, and what its failure takes
/// away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ability {
    /// [`Caps::cooperative_matrix`]
    CooperativeMatrix,
    /// [`Caps::f16`]
    F16,
    /// [`Caps::subgroup_size`]
    Subgroups,
}

/// How one variant of a kernel did.
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelCheck {
    /// The stem of its shader.
    pub kernel: String,
    /// Which of its variants, on what shape.
    pub variant: String,
    /// What it needs, the first to be blamed first.
    pub uses: Vec<Ability>,
    /// It gave what the CPU gives.
    pub ok: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Wall time with its compilation, next to others running.
    pub milliseconds: f64,
    /// Only training needs it.
    pub training: bool,
}

/// What the self-test found.
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What the device may be used with.
    pub caps: Caps,
    /// The variants of the tier in use, and before them those that failed in tiers above.
    pub verdicts: Vec<KernelCheck>,
    /// Every kernel of training gave what the CPU gives, or the device is a software GPU, where
    /// tests hold them to it.
    pub trains: bool,
    /// Read from the cache.
    pub cached: bool,
}

/// Says of a kernel and what it uses whether to spoil what the CPU expects of it: to test the test.
pub type Sabotage<'a> = &'a (dyn Fn(&str, &[Ability]) -> bool + Sync);

/// Tests `gpu`, or reads what an earlier test of this driver found, and takes away what does not
/// work.
///
/// Errors: [`Error::Gpu`] naming kernel and driver when the reference tier fails;
/// [`Error::DeviceLost`]; [`Error::OutOfMemory`].
pub fn run(gpu: &mut Gpu) -> Result<Report> {
    run_for(gpu, &mut Loading::to_the_end(&mut |_| {}))
}

/// As [`run`]; `loading` hears how many kernels are tested, unless their verdicts were kept.
///
/// Errors: as [`run`]; [`Error::Cancelled`].
pub(crate) fn run_for(gpu: &mut Gpu, loading: &mut Loading<'_>) -> Result<Report> {
    let path = cache::path(gpu);
    if let Some(mut report) = path.as_deref().and_then(cache::read) {
        gpu.restrict(&report.caps);
        report.caps = gpu.caps().clone();
        return Ok(report);
    }
    let report = run_tiers(gpu, &|_, _| false, loading)?;
    if let Some(path) = path {
        cache::write(&path, &report);
    }
    Ok(report)
}

/// As [`run`] without the cache, and with failures made up by `sabotage`.
///
/// Errors: as [`run`].
pub fn run_with(gpu: &mut Gpu, sabotage: Sabotage<'_>) -> Result<Report> {
    run_tiers(gpu, sabotage, &mut Loading::to_the_end(&mut |_| {}))
}

fn run_tiers(gpu: &mut Gpu, sabotage: Sabotage<'_>, loading: &mut Loading<'_>) -> Result<Report> {
    let mut verdicts = Vec::new();
    loop {
        let tier = test(gpu, sabotage, loading)?;
        // A device whose reference tier can't train can answer all the same.
        let hopeless = |v: &KernelCheck| v.training && v.uses.is_empty();
        let Some(failed) = tier.iter().find(|v| !v.ok && !hopeless(v)) else {
            let trains = tier.iter().all(|v| v.ok);
            verdicts.extend(tier);
            return Ok(Report { caps: gpu.caps().clone(), verdicts, trains, cached: false });
        };
        let judged: Vec<KernelCheck> = tier.iter().filter(|v| !hopeless(v)).cloned().collect();
        let Some(caps) = fence(gpu.caps(), &judged) else {
            return Err(unusable(gpu, &tier, failed));
        };
        for verdict in tier.into_iter().filter(|v| !v.ok) {
            let KernelCheck { kernel, variant, reason, .. } = &verdict;
            log::warn!(
                "{kernel} ({variant}) fails here: {}",
                reason.as_deref().unwrap_or_default()
            );
            verdicts.push(verdict);
        }
        log::warn!(
            "{}: going on without {}",
            gpu.description(),
            lost(gpu.caps(), &caps).join(", ")
        );
        gpu.restrict(&caps);
    }
}

/// `caps` without what the failed of `verdicts` blame; `None` when one failed that needs nothing
/// special.
///
/// Those that need the least are heard first: where attention fails with subgroups on f32 already,
/// it is not f16's fault that it fails on f16 too.
pub fn fence(caps: &Caps, verdicts: &[KernelCheck]) -> Option<Caps> {
    let failed = || verdicts.iter().filter(|v| !v.ok);
    let least = failed().map(|v| v.uses.len()).min()?;
    let mut fenced = caps.clone();
    for verdict in failed().filter(|v| v.uses.len() == least) {
        match verdict.uses.first()? {
            Ability::CooperativeMatrix => fenced.cooperative_matrix = None,
            Ability::F16 => fenced.f16 = false,
            Ability::Subgroups => fenced.subgroup_size = None,
        }
    }
    let mut caps = caps.clone();
    caps.restrict(&fenced);
    Some(caps)
}

/// What `after` lacks of `before`, in words.
fn lost(before: &Caps, after: &Caps) -> Vec<&'static str> {
    let gone = [
        (before.cooperative_matrix != after.cooperative_matrix, "cooperative matrices"),
        (before.f16 != after.f16, "f16"),
        (before.subgroup_size != after.subgroup_size, "subgroups"),
    ];
    gone.into_iter().filter_map(|(gone, name)| gone.then_some(name)).collect()
}

fn unusable(gpu: &Gpu, tier: &[KernelCheck], failed: &KernelCheck) -> Error {
    let failed = tier.iter().find(|v| !v.ok && v.uses.is_empty() && !v.training).unwrap_or(failed);
    let reason = failed.reason.as_deref().unwrap_or_default();
    let hint = if gpu.caps().immediates { " or with EPIPHYTE_DISABLE=immediates" } else { "" };
    Error::Gpu {
        op: format!("self-test of {} ({})", failed.kernel, failed.variant),
        reason: format!(
            "{reason}; {} can't be used: try another driver, another GPU (EPIPHYTE_GPU){hint}",
            gpu.description()
        ),
    }
}

/// Every variant of the present tier, on a few threads: compiling takes most of the time.
fn test(gpu: &Gpu, sabotage: Sabotage<'_>, loading: &mut Loading<'_>) -> Result<Vec<KernelCheck>> {
    let cases = cases::all(gpu);
    let total = cases.len() as u64;
    let cancel = loading.cancel.clone();
    let judged = |case: &Case| {
        cancel.check()?;
        judge(gpu, case, sabotage)
    };
    let mut report = |done: usize| loading.report(LoadPhase::SelfTest, done as u64, total);
    gpu.counters.tested.fetch_add(total, Ordering::Relaxed);
    let verdicts = parallel::map_reporting(&cases, judged, &mut report);
    gpu.check()?;
    verdicts.into_iter().collect()
}

/// Errors: only those that are not the kernel's fault.
fn judge(gpu: &Gpu, case: &Case, sabotage: Sabotage<'_>) -> Result<KernelCheck> {
    let start = Instant::now();
    let spoil = sabotage(case.kernel, &case.uses);
    let reason = match gpu.scoped(case.kernel, || (case.run)(gpu)) {
        Ok(outcomes) => outcomes.iter().find_map(|outcome| outcome.difference(spoil)),
        Err(Error::Gpu { op, reason }) => Some(format!("{op}: {reason}")),
        Err(other) => return Err(other),
    };
    Ok(KernelCheck {
        kernel: case.kernel.to_string(),
        variant: case.variant.clone(),
        uses: case.uses.clone(),
        ok: reason.is_none(),
        reason,
        milliseconds: start.elapsed().as_secs_f64() * 1e3,
        training: case.training,
    })
}
