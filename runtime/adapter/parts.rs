//! What a format found in a file, and its assembly into modules: everything is judged before any
//! tensor is read.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::MAX_RANK;
use super::config::LoraConfig;
use super::copies::Copied;
use super::joined;
use super::module::{LoraModule, all_finite};
use super::report::{AdapterFormat, Item, LoadReport, ModuleItem, Verdict};
use super::targets::TargetModule;
use crate::base::{BaseShape, ModulePath};
use crate::error::{Error, Result};
use crate::parallel;

/// One of a module's two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factor {
    /// `[r, K]`: takes the input to the rank.
    A,
    /// `[N, r]`: takes it from there to the output.
    B,
}

impl Factor {
    /// As `train --freeze` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A tensor that a format took for a factor.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// As the file spells it.
    pub(crate) name: String,
    pub(crate) path: ModulePath,
    pub(crate) factor: Factor,
    /// As [`LoraModule`] has it, once the format's own order is undone: `[r, K]` or `[N, r]`.
    pub(crate) shape: [usize; 2],
    /// The rows that are the module's, of a B that files hold for several.
    pub(crate) rows: Option<Range<usize>>,
}

impl Found {
    /// What a tensor of this name is to each module that the linear `path` holds; none for what is
    /// no linear of this base, or has other rows than they have.
    pub(crate) fn of(
        name: &str,
        path: &str,
        factor: Factor,
        shape: [usize; 2],
        base: &BaseShape,
    ) -> Vec<Self> {
        let parts = base.parts(path);
        let n = parts.last().map_or(0, |(_, rows)| rows.end);
        let several = parts.len() > 1 && factor == Factor::B;
        if several && shape[0] != n {
            return Vec::new();
        }
        let one = |(path, rows): (ModulePath, Range<usize>)| Self {
            name: name.into(),
            path,
            factor,
            shape: if several { [rows.len(), shape[1]] } else { shape },
            rows: several.then_some(rows),
        };
        parts.into_iter().map(one).collect()
    }

    /// Its numbers, of those of the tensor.
    fn own(&self, mut values: Vec<f32>) -> Vec<f32> {
        if let Some(rows) = &self.rows {
            values.truncate(rows.end * self.shape[1]);
            values.drain(..rows.start * self.shape[1]);
        }
        values
    }
}

/// Everything in an adapter's file but the numbers.
pub(crate) struct Parts {
    pub(crate) format: AdapterFormat,
    pub(crate) config: LoraConfig,
    pub(crate) keys: Vec<Item>,
    pub(crate) found: Vec<Found>,
    /// Tensors that are no factors, judged by the format.
    pub(crate) others: Vec<Item>,
    /// Tensors that may be copies of the base's; the judgements on them go to `others`.
    pub(crate) copies: Vec<Copied>,
    pub(crate) base_fingerprint: Option<String>,
    pub(crate) manifest: Option<String>,
    pub(crate) n_bytes: u64,
}

/// Where an adapter comes from, as files of both kinds say it.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// The base it was made for.
    pub(crate) fingerprint: Option<&'a str>,
    /// How it was merged.
    pub(crate) manifest: Option<&'a str>,
}

/// The key of [`Origin::manifest`].
pub(crate) const MANIFEST_KEY: &str = "epiphyte.merge";

/// Reads a tensor's numbers; from several threads.
pub(crate) type Read<'a> = dyn Fn(&Found) -> Result<Vec<f32>> + Sync + 'a;

/// A module's factors as indices into [`Parts::found`].
type Pair = [Option<usize>; 2];

impl Parts {
    /// Judges everything, then reads the factors with `read`. The modules are empty when something
    /// is refused.
    ///
    /// Errors: those of `read`.
    pub(crate) fn assemble(
        mut self,
        shape: &BaseShape,
        read: &Read<'_>,
    ) -> Result<(LoraConfig, Vec<LoraModule>, LoadReport)> {
        let targets = self.targets(shape);
        let found = std::mem::take(&mut self.found);
        let mut report = LoadReport {
            format: self.format,
            base_fingerprint: self.base_fingerprint,
            manifest: self.manifest,
            n_bytes: self.n_bytes,
            keys: self.keys,
            tensors: self.others,
            ..LoadReport::default()
        };
        let pairs = match &targets {
            Some(targets) => judge(&found, targets, shape, &mut report.tensors),
            None => {
                let reason = "not looked at: a key of the config is refused";
                report.tensors.extend(found.iter().map(|found| Item::ignored(&found.name, reason)));
                BTreeMap::new()
            }
        };
        let mut modules = Vec::new();
        if report.refused().next().is_none() {
            let targets = targets.unwrap_or_default();
            report.missing =
                targets.keys().filter(|path| !pairs.contains_key(path)).copied().collect();
            modules = load(&found, &pairs, &targets, &mut report, read)?;
            if !shape.architecture.family().joined.is_empty() {
                (self.config, modules) = joined::apart(&self.config, modules, shape);
            }
            tell(&modules, &mut report);
        }
        report.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        // One tensor may be a factor of several modules.
        report.tensors.dedup();
        Ok((self.config, modules, report))
    }

    /// The modules that the config targets; `None`, with the key refused, when it can't be told.
    fn targets(&mut self, shape: &BaseShape) -> Option<BTreeMap<ModulePath, TargetModule>> {
        if self.keys.iter().any(|item| item.verdict == Verdict::Refused) {
            return None;
        }
        match self.config.modules(shape) {
            Ok(modules) => Some(modules.into_iter().map(|module| (module.path, module)).collect()),
            Err(Error::InvalidAdapter { what, reason }) => {
                self.keys.retain(|item| item.name != what);
                self.keys.push(Item::refused(what, reason));
                None
            }
            Err(other) => {
                self.keys.push(Item::refused("target_modules", other.to_string()));
                None
            }
        }
    }
}

/// Pairs up the factors, refusing what does not fit.
fn judge(
    found: &[Found],
    targets: &BTreeMap<ModulePath, TargetModule>,
    shape: &BaseShape,
    items: &mut Vec<Item>,
) -> BTreeMap<ModulePath, Pair> {
    let mut pairs: BTreeMap<ModulePath, Pair> = BTreeMap::new();
    let mut refusals: BTreeMap<usize, String> = BTreeMap::new();
    for (i, tensor) in found.iter().enumerate() {
        let slot = &mut pairs.entry(tensor.path).or_default()[tensor.factor as usize];
        match *slot {
            Some(first) => {
                refusals
                    .insert(i, format!("the same factor as `{}`; remove one", found[first].name));
            }
            None => {
                *slot = Some(i);
                refusals.extend(misfit(tensor, targets, shape).map(|reason| (i, reason)));
            }
        }
    }
    for pair in pairs.values() {
        if let [Some(lone), None] | [None, Some(lone)] = *pair {
            let other = if found[lone].factor == Factor::A { "B" } else { "A" };
            refusals
                .entry(lone)
                .or_insert(format!("the {other} factor that belongs to it is missing"));
        }
    }
    items.extend(found.iter().enumerate().map(|(i, tensor)| match refusals.remove(&i) {
        Some(reason) => Item::refused(&tensor.name, reason),
        None => Item::matched(&tensor.name),
    }));
    if pairs.is_empty() && items.iter().all(|item| item.verdict != Verdict::Refused) {
        items.push(Item::refused("lora_A", "the file holds no LoRA tensors"));
    }
    pairs
}

/// Why a tensor does not fit the base and the config.
fn misfit(
    tensor: &Found,
    targets: &BTreeMap<ModulePath, TargetModule>,
    shape: &BaseShape,
) -> Option<String> {
    if !shape.has(tensor.path) {
        return Some(format!(
            "the base has {} layers; it was made for another",
            shape.num_hidden_layers
        ));
    }
    let Some(target) = targets.get(&tensor.path) else {
        return Some(format!(
            "the config does not target {}, so it would have no effect; correct target_modules",
            tensor.path
        ));
    };
    let [n, k] = shape.shape(tensor.path.target);
    let expected = if tensor.factor == Factor::A { [target.rank, k] } else { [n, target.rank] };
    (tensor.shape != expected).then(|| {
        let (found, rank) = (tensor.shape, target.rank);
        format!(
            "its shape is {found:?}, and {expected:?} is needed for rank {rank}; the base or \
            the config is another"
        )
    })
}

/// Reads the factors, refusing numbers that are none.
fn load(
    found: &[Found],
    pairs: &BTreeMap<ModulePath, Pair>,
    targets: &BTreeMap<ModulePath, TargetModule>,
    report: &mut LoadReport,
    read: &Read<'_>,
) -> Result<Vec<LoraModule>> {
    let wanted: Vec<_> = pairs
        .iter()
        .filter_map(|(path, pair)| match (pair, targets.get(path)) {
            (&[Some(a), Some(b)], Some(target)) => Some((*path, [a, b], target)),
            _ => None,
        })
        .collect();
    let factors = parallel::map(wanted, |(path, pair, target)| {
        let [a, b] = pair.map(|i| read(&found[i]).map(|values| found[i].own(values)));
        let module = LoraModule { path, rank: target.rank, a: a?, b: b?, scaling: target.scaling };
        let bad = [&module.a, &module.b].map(|values| !all_finite(values));
        Ok((module, [0, 1].map(|factor| bad[factor].then_some(pair[factor]))))
    });
    let mut modules = Vec::with_capacity(factors.len());
    for read in factors {
        let (module, bad) = read?;
        for i in bad.into_iter().flatten() {
            let item = report.tensors.iter_mut().find(|item| item.name == found[i].name);
            let reason = "it holds NaN, infinity or numbers beyond f32; train it again";
            item.into_iter().for_each(|item| *item = Item::refused(&item.name, reason));
        }
        modules.push(module);
    }
    let refused = report.refused().next().is_some();
    Ok(if refused { Vec::new() } else { modules })
}

/// Lists the modules, and what looks wrong about them.
fn tell(modules: &[LoraModule], report: &mut LoadReport) {
    if report.refused().next().is_some() {
        return;
    }
    let bytes = |module: &LoraModule| 4 * (module.a.len() + module.b.len()) as u64;
    let item = |m: &LoraModule| ModuleItem {
        path: m.path,
        rank: m.rank,
        scaling: m.scaling,
        n_bytes: bytes(m),
    };
    report.modules = modules.iter().map(item).collect();
    let zeros = modules.iter().filter(|module| module.b.iter().all(|&v| v == 0.0));
    warn(report, &zeros.map(|module| module.path).collect::<Vec<_>>());
}

fn warn(report: &mut LoadReport, zeros: &[ModulePath]) {
    let mut warn = |paths: &[ModulePath], what: &str| {
        if let Some(first) = paths.first() {
            let (n, all) = (paths.len(), report.modules.len());
            report
                .warnings
                .push(format!("{what}: {n} modules, the first {first}; {all} have factors"));
        }
    };
    warn(zeros, "lora_B is all zero and changes nothing");
    let missing = report.missing.clone();
    warn(&missing, "targeted, but without tensors, and left as in the base");
    if report.modules.iter().any(|module| module.scaling == 0.0) {
        report.warnings.push("lora_alpha is 0 for some modules, which changes nothing".into());
    }
    if let Some(ModuleItem { path, rank, .. }) =
        report.modules.iter().max_by_key(|module| module.rank)
        && *rank > MAX_RANK as usize
    {
        let warning = format!(
            "rank {rank} of {path}: at most {MAX_RANK} can run, merge it into the base instead"
        );
        report.warnings.push(warning);
    }
}
