//! Linears that a family's files hold as one: the LoRA of one, told apart and put together.
//!
//! Apart, each linear has the file's A and its own rows of B; where B is made of blocks, so that
//! each of its columns is of one linear alone, a linear has the rows of A that its columns take.
//! Together, linears with the same A keep it, and B is theirs one below the other; else the ranks
//! add up, A is theirs one below the other, and B is made of blocks. Both say exactly what was
//! there.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::config::{LoraConfig, Modules};
use super::module::LoraModule;
use crate::base::{BaseShape, ModulePath};

/// A linear of a file by its path there; where it is joined, as a module of its first part.
pub(super) type Linear<'a> = (String, Cow<'a, LoraModule>);

/// What a config says of one linear of a file.
struct Said {
    path: String,
    rank: usize,
    scaling: f32,
}

/// The modules under the paths of linears in files, and the config that means those; both as they
/// are where the family joins nothing.
pub(super) fn join<'a>(
    config: &LoraConfig,
    modules: &'a [LoraModule],
    shape: &BaseShape,
) -> (LoraConfig, Vec<Linear<'a>>) {
    let mut groups: BTreeMap<(ModulePath, String), Vec<&'a LoraModule>> = BTreeMap::new();
    for module in modules {
        let (name, _) = shape.in_files(module.path);
        let first = shape.parts(&name).first().map_or(module.path, |(path, _)| *path);
        groups.entry((first, name)).or_default().push(module);
    }
    let joined: Vec<_> = groups
        .into_iter()
        .map(|((path, name), parts)| {
            let module = match shape.in_files(path).0 == path.to_string() {
                true => Cow::Borrowed(parts[0]),
                false => Cow::Owned(together(path, &name, &parts, shape)),
            };
            (name, module)
        })
        .collect();
    if shape.architecture.family().joined.is_empty() {
        return (config.clone(), joined);
    }
    let said = joined.iter().map(|(path, m)| Said {
        path: path.clone(),
        rank: m.rank,
        scaling: m.scaling,
    });
    (meaning(config, said.collect(), shape.num_hidden_layers), joined)
}

/// What was read from a file of such a family: each linear with what it needs, and the config that
/// means those.
pub(super) fn apart(
    config: &LoraConfig,
    modules: Vec<LoraModule>,
    shape: &BaseShape,
) -> (LoraConfig, Vec<LoraModule>) {
    let mut groups: BTreeMap<String, Vec<LoraModule>> = BTreeMap::new();
    for module in modules {
        groups.entry(shape.in_files(module.path).0).or_default().push(module);
    }
    let parts = groups.into_values();
    let mut modules: Vec<_> = parts.flat_map(|parts| own_columns(parts, config.r)).collect();
    modules.sort_by_key(|module| module.path);
    let said =
        modules.iter().map(|m| Said { path: m.path.to_string(), rank: m.rank, scaling: m.scaling });
    let config = meaning(config, said.collect(), shape.num_hidden_layers);
    (config, modules)
}

/// Parts of one linear as it.
fn together(path: ModulePath, name: &str, parts: &[&LoraModule], shape: &BaseShape) -> LoraModule {
    let all = shape.parts(name);
    let first = parts[0];
    let alike =
        |m: &&LoraModule| m.rank == first.rank && m.a == first.a && m.scaling == first.scaling;
    let shares = parts.len() == all.len() && parts.iter().all(alike);
    let rank = if shares { first.rank } else { parts.iter().map(|m| m.rank).sum() };
    let a = match shares {
        true => first.a.clone(),
        false => parts.iter().flat_map(|m| &m.a).copied().collect(),
    };
    let n = all.last().map_or(0, |(_, rows)| rows.end);
    let scaling = parts.iter().map(|m| m.scaling).find(|&scaling| scaling != 0.0).unwrap_or(0.0);
    let (mut b, mut column) = (vec![0.0; n * rank], 0);
    for part in parts {
        let rows = all.iter().find(|(path, _)| *path == part.path).map(|(_, rows)| rows.clone());
        // One scaling is said for all: the others' is in their B.
        let scale = if part.scaling == scaling { 1.0 } else { part.scaling / scaling };
        for (row, values) in rows.into_iter().flatten().zip(part.b.chunks_exact(part.rank)) {
            let to = &mut b[row * rank + column..][..part.rank];
            to.iter_mut().zip(values).for_each(|(to, v)| *to = scale * v);
        }
        column += if shares { 0 } else { part.rank };
    }
    LoraModule { path, rank, a, b, scaling }
}

/// The parts of one linear, which have the same A, each with the rows of A that it alone uses; as
/// they are unless each row is some part's own. Where nothing is used yet, the rows are told apart if
/// each part has `r` of them.
fn own_columns(parts: Vec<LoraModule>, r: usize) -> Vec<LoraModule> {
    let (rank, count) = (parts[0].rank, parts.len());
    let alike = parts.iter().all(|m| m.rank == rank && m.a == parts[0].a);
    let is_fresh = rank == count * r && parts.iter().all(|m| m.b.iter().all(|&v| v == 0.0));
    let uses = |part: usize, column: usize| match is_fresh {
        true => column / r == part,
        false => parts[part].b.iter().skip(column).step_by(rank).any(|&v| v != 0.0),
    };
    let users = |column: usize| (0..count).filter(|&part| uses(part, column)).count();
    if count < 2 || !alike || !(0..rank).all(|column| users(column) == 1) {
        return parts;
    }
    let own = |part: usize| {
        let (m, columns) = (&parts[part], (0..rank).filter(|&column| uses(part, column)));
        let (columns, k): (Vec<_>, _) = (columns.collect(), m.a.len() / rank);
        let a = columns.iter().flat_map(|&column| &m.a[column * k..][..k]).copied().collect();
        let b = m.b.chunks_exact(rank).flat_map(|b| columns.iter().map(|&column| b[column]));
        LoraModule { path: m.path, rank: columns.len(), a, b: b.collect(), scaling: m.scaling }
    };
    (0..count).map(own).filter(|m| m.rank > 0).collect()
}

/// `config` for linears of these paths: short names where all layers have one alike, and a pattern
/// for each that r and alpha say something else of.
fn meaning(config: &LoraConfig, said: Vec<Said>, layers: usize) -> LoraConfig {
    let mut kinds: BTreeMap<String, Vec<Said>> = BTreeMap::new();
    for one in said {
        let name = one.path.rsplit('.').next().unwrap_or_default().to_string();
        kinds.entry(name).or_default().push(one);
    }
    let (mut names, mut ranks, mut alphas) = (Vec::new(), Vec::new(), Vec::new());
    for (name, mut group) in kinds {
        let in_layers = group[0].path.starts_with("model.layers.");
        let alike = |m: &Said| m.rank == group[0].rank && m.scaling == group[0].scaling;
        if group.iter().all(alike) && (!in_layers || group.len() == layers) {
            group.truncate(1);
            group[0].path = name;
        }
        for Said { path, rank, scaling } in group {
            let root =
                |rank: usize| if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            ranks.extend((rank != config.r).then(|| (path.clone(), rank)));
            if (config.lora_alpha / root(rank)) as f32 != scaling {
                alphas.push((path.clone(), f64::from(scaling) * root(rank)));
            }
            names.push(path);
        }
    }
    LoraConfig {
        rank_pattern: ranks,
        alpha_pattern: alphas,
        target_modules: Modules::Names(names),
        exclude_modules: None,
        layers_to_transform: Vec::new(),
        layers_pattern: Vec::new(),
        ..config.clone()
    }
}
