//! Several adapters as one, on the processor: a method a file. `docs/merging.md` says what each
//! does and when to take it.
//!
//! What an adapter adds to a module is `scaling * B A`; methods work on these products, not on the
//! factors, which are known up to a change of basis only. Sums of products stay factors all the
//! way. Methods with a rule for every element make the rows of the product one after another,
//! several times over, so that a module takes its factors and the square of its shorter side in
//! memory. Numbers are kept in f32, sums made in f64 and in a fixed order.

mod cat;
mod dare;
mod eigen;
mod factored;
mod linear;
mod loftq;
mod magnitude_prune;
mod manifest;
mod random;
mod recipe;
mod recipe_file;
mod relation;
mod report;
mod rows;
mod site;
mod slerp;
mod soup;
mod svd;
mod task_arithmetic;
mod ties;

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::{Adapter, LoraConfig, LoraModule, MAX_RANK, Modules};
use crate::base::{BaseShape, ModulePath, Target};
use crate::error::{Error, Result};
use factored::{Factored, Term};
use report::Tally;
use rows::{Keep, Matrix, Mix, Rule, Sparse};
use site::{Merging, Part, Site};

pub use cat::Cat;
pub use dare::{DareLinear, DareTies};
pub use linear::Linear;
pub use loftq::{Loftq, LoftqModule, loftq};
pub use magnitude_prune::MagnitudePrune;
pub use manifest::{Manifest, ManifestParent};
pub use recipe::{Elect, Method, Rank, Recipe, Semantics, Space};
pub use recipe_file::{RecipeFile, RecipeParent};
pub use relation::{Relation, relations};
pub use report::{MergeReport, MergedModule, MergedParent};
pub use slerp::Slerp;
pub use soup::Soup;
pub use svd::Svd;
pub use task_arithmetic::TaskArithmetic;
pub use ties::Ties;

/// An adapter that goes into another.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// Its name, in the report and the manifest.
    pub id: &'a str,
    /// The adapter.
    pub adapter: &'a Adapter,
    /// How much of it; may be negative.
    pub weight: f64,
    /// Share of its elements that stays, for methods that take some out; `None` for the method's.
    pub density: Option<f64>,
}

/// The new adapter, and what became of its parents in it.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Every scaling is 1; a module has LoRA where a parent has.
    pub adapter: Adapter,
    /// What was kept and lost.
    pub report: MergeReport,
}

/// Merges adapters of one base. `progress` hears of modules done and in all.
///
/// The result's scaling is 1 whatever the parents' are, also with `use_rslora`, where PEFT's result
/// is too large by the root of its rank.
///
/// Errors: [`Error::InvalidArgument`] for a recipe that can't be followed;
/// [`Error::InvalidAdapter`] naming a parent that is of another base, a module of it that does not
/// fit or holds NaN, or a module of which the merged numbers are too large for f32.
pub fn merge(
    parents: &[Parent<'_>],
    recipe: &Recipe,
    shape: &BaseShape,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Merged> {
    recipe.check(parents)?;
    let rank = match &recipe.method {
        Method::Svd(svd) => recipe.rank.or(Some(svd.default_rank(parents))),
        _ => recipe.rank,
    };
    let recipe = &Recipe { rank, ..*recipe };
    let base_fingerprint = one_base(parents)?;
    for module in parents.iter().flat_map(|parent| &parent.adapter.modules) {
        module.check(shape)?;
    }
    let sites = sites(parents);
    let (mut modules, mut tally) = (Vec::with_capacity(sites.len()), Tally::new(parents));
    progress(0, sites.len());
    for (done, site) in sites.iter().enumerate() {
        let module = merge_module(site, recipe, shape, &mut tally)?;
        module.check(shape).map_err(|_| {
            let reason = "the merged numbers are too large for f32; give smaller weights".into();
            Error::InvalidAdapter { what: site.path.to_string(), reason }
        })?;
        modules.push(module);
        progress(done + 1, sites.len());
    }
    let report = tally.into_report(recipe, warnings(parents, &modules));
    let config = config(parents, &modules, shape);
    let mut adapter = Adapter::new(config, modules, base_fingerprint, shape)?;
    adapter.manifest = Some(Manifest::new(parents, recipe).to_json());
    Ok(Merged { adapter, report })
}

/// The base of all parents that name one.
///
/// Errors: [`Error::InvalidAdapter`] naming the first that is of another.
fn one_base(parents: &[Parent<'_>]) -> Result<Option<String>> {
    let mut named = parents.iter().filter_map(|parent| {
        parent.adapter.base_fingerprint.as_ref().map(|fingerprint| (parent.id, fingerprint))
    });
    let Some((first, base)) = named.next() else { return Ok(None) };
    match named.find(|(_, other)| *other != base) {
        None => Ok(Some(base.clone())),
        Some((other, _)) => Err(Error::InvalidAdapter {
            what: other.into(),
            reason: format!("it is of another base than `{first}`; merge adapters of one base"),
        }),
    }
}

fn sites<'a>(parents: &[Parent<'a>]) -> Vec<Site<'a>> {
    let mut parts: BTreeMap<ModulePath, Vec<Part<'a>>> = BTreeMap::new();
    for (i, parent) in parents.iter().enumerate() {
        let (weight, density) = (parent.weight, parent.density);
        for module in &parent.adapter.modules {
            let part = Part { parent: i, weight, density, module };
            parts.entry(module.path).or_default().push(part);
        }
    }
    let weights: Vec<_> = parents.iter().map(|parent| parent.weight).collect();
    let site = |(path, parts)| Site { path, parts, weights: weights.clone() };
    parts.into_iter().map(site).collect()
}

fn merge_module(
    site: &Site<'_>,
    recipe: &Recipe,
    shape: &BaseShape,
    tally: &mut Tally,
) -> Result<LoraModule> {
    let [n, k] = shape.shape(site.path.target);
    let ranks = || site.parts.iter().map(|part| part.module.rank);
    let side = n.min(k);
    let factored = match recipe.method.merge(site)? {
        Merging::Sum(terms) => {
            let singular = matches!(recipe.method, Method::Svd(_));
            sum(&terms, recipe.rank, singular, side)
        }
        Merging::Product(mix) => {
            tally.took_out(site, &[&mix]);
            let all = Rank::Fixed(ranks().sum::<usize>().min(side));
            factored::compress(&mix, recipe.rank.unwrap_or(all))
        }
        Merging::Factors { a, b } => {
            tally.took_out(site, &[&a, &b]);
            let rank = a.rows();
            let module = factors(site.path, rank, a.to_f32(), b.to_f32());
            let term = Term { coefficient: 1.0, module: &module };
            sum(&[term], recipe.rank, false, side)
        }
    };
    let Factored { rank, squares, lost, .. } = factored;
    let module = factors(site.path, rank, factored.a, factored.b);
    tally.merged(site, &module, squares, lost);
    Ok(module)
}

/// A sum at a rank; as it is where that loses nothing, unless singular values are asked for.
fn sum(terms: &[Term<'_>], rank: Option<Rank>, singular: bool, side: usize) -> Factored {
    let total = factored::total_rank(terms);
    match rank {
        None => factored::stack(terms),
        Some(Rank::Fixed(rank)) if rank >= total && !singular => factored::stack(terms),
        // The sum may have as many singular values as the module.
        Some(rank) if total >= side => {
            let parent = |term: &Term<'_>| {
                Sparse::new(Matrix::product(term.module), term.coefficient, Keep::All)
            };
            let parents = terms.iter().map(parent).collect();
            let mix = Mix { parents, rule: Rule::Sum { divisor: 1.0 }, lambda: 1.0 };
            factored::compress(&mix, rank)
        }
        Some(rank) => factored::truncate(terms, rank),
    }
}

fn factors(path: ModulePath, rank: usize, a: Vec<f32>, b: Vec<f32>) -> LoraModule {
    LoraModule { path, rank, a, b, scaling: 1.0 }
}

/// A config under which every scaling is 1: the rank that most modules have, and patterns for the
/// others.
fn config(parents: &[Parent<'_>], modules: &[LoraModule], shape: &BaseShape) -> LoraConfig {
    let mut counts = BTreeMap::<usize, usize>::new();
    modules.iter().for_each(|module| *counts.entry(module.rank).or_default() += 1);
    let r = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let others = || modules.iter().filter(|module| module.rank != r);
    let name = parents.iter().find_map(|p| p.adapter.config.base_model_name_or_path.clone());
    LoraConfig {
        r,
        lora_alpha: r as f64,
        rank_pattern: others().map(|m| (m.path.to_string(), m.rank)).collect(),
        alpha_pattern: others().map(|m| (m.path.to_string(), m.rank as f64)).collect(),
        target_modules: Modules::Names(targets(modules, shape)),
        base_model_name_or_path: name,
        ..LoraConfig::default()
    }
}

/// The kinds of modules, where every layer has all of them; else every path.
fn targets(modules: &[LoraModule], shape: &BaseShape) -> Vec<String> {
    let paths: BTreeSet<ModulePath> = modules.iter().map(|module| module.path).collect();
    let kinds: BTreeSet<Target> = paths.iter().map(|path| path.target).collect();
    let whole = shape.modules().filter(|path| kinds.contains(&path.target));
    match whole.eq(paths.iter().copied()) {
        true => kinds.iter().map(|kind| kind.name().into()).collect(),
        false => paths.iter().map(ModulePath::to_string).collect(),
    }
}

fn warnings(parents: &[Parent<'_>], modules: &[LoraModule]) -> Vec<String> {
    let mut warnings = Vec::new();
    let silent: Vec<_> =
        parents.iter().filter(|p| p.adapter.base_fingerprint.is_none()).map(|p| p.id).collect();
    if !silent.is_empty() {
        warnings.push(format!("no word of the base it was made for: {}", silent.join(", ")));
    }
    if let Some(module) = modules.iter().find(|module| module.rank > MAX_RANK as usize) {
        let (rank, path) = (module.rank, module.path);
        warnings.push(format!("rank {rank} of {path}: at most {MAX_RANK} can run; give a rank"));
    }
    warnings
}
