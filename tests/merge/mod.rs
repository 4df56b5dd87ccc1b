//! Merging adapters: against PEFT and mergekit's formulas, what holds for any adapters, what is
//! refused.

mod golden;
mod loftq;
mod properties;
mod recipe_file;
mod refused;

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule, ModulePath, Modules, Target};
use epiphyte::merge::{MergeReport, Merged, Method, Parent, Rank, Recipe, merge};
use serde_json::Value;

use crate::common::Random;

const SHAPE: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Llama,
    num_hidden_layers: 2,
    hidden_size: 18,
    intermediate_size: 26,
    q_size: 18,
    kv_size: 6,
    vocab_size: 37,
    num_attention_heads: 3,
    num_key_value_heads: 1,
    tie_word_embeddings: false,
};
const FULL: Option<Rank> = Some(Rank::Fixed(64));

/// An adapter of modules, each with a config that says what it is.
fn adapter(modules: Vec<LoraModule>) -> Adapter {
    let targets = modules.iter().map(|module| module.path.to_string()).collect();
    let config = LoraConfig {
        r: 1,
        lora_alpha: 1.0,
        rank_pattern: modules.iter().map(|m| (m.path.to_string(), m.rank)).collect(),
        alpha_pattern: modules
            .iter()
            .map(|m| (m.path.to_string(), f64::from(m.scaling) * m.rank as f64))
            .collect(),
        target_modules: Modules::Names(targets),
        ..LoraConfig::default()
    };
    Adapter::new(config, modules, Some("base".into()), &SHAPE).unwrap()
}

fn random_module(path: ModulePath, rank: usize, random: &mut Random) -> LoraModule {
    let [n, k] = SHAPE.shape(path.target);
    let mut fill = |len: usize| (0..len).map(|_| random.signed(0.5)).collect();
    LoraModule { path, rank, a: fill(rank * k), b: fill(n * rank), scaling: 0.75 }
}

/// Wide, tall and square modules, of a rank each.
fn random_adapter(ranks: [usize; 4], seed: u64) -> Adapter {
    let mut random = Random::new(seed);
    let paths = [
        ModulePath { layer: None, target: Target::EmbedTokens },
        ModulePath::in_layer(0, Target::QProj),
        ModulePath::in_layer(0, Target::VProj),
        ModulePath::in_layer(1, Target::UpProj),
    ];
    let modules = paths.into_iter().zip(ranks).filter(|(_, rank)| *rank > 0);
    adapter(modules.map(|(path, rank)| random_module(path, rank, &mut random)).collect())
}

fn parents<'a>(adapters: &'a [Adapter], weights: &[f64]) -> Vec<Parent<'a>> {
    const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let parent = |((adapter, weight), id): ((&'a Adapter, &f64), _)| Parent {
        id,
        adapter,
        weight: *weight,
        density: None,
    };
    adapters.iter().zip(weights).zip(IDS).map(parent).collect()
}

/// A method by its name and options in JSON.
fn method(name: &str, options: Value) -> Method {
    Method::from_options(name, options.as_object().unwrap()).unwrap()
}

fn merged(parents: &[Parent<'_>], method: Method, rank: Option<Rank>) -> Merged {
    merge(parents, &Recipe { method, rank }, &SHAPE, &mut |_, _| {}).unwrap()
}

fn report(parents: &[Parent<'_>], method: Method, rank: Option<Rank>) -> MergeReport {
    merged(parents, method, rank).report
}

/// What an adapter adds to a module, `[N, K]`; zeros where it leaves it alone.
fn added(adapter: &Adapter, path: ModulePath) -> Vec<f64> {
    let [n, k] = SHAPE.shape(path.target);
    let Some(m) = adapter.module(path) else { return vec![0.0; n * k] };
    let element = |at: usize| -> f64 {
        let (i, j) = (at / k, at % k);
        let terms = (0..m.rank).map(|r| f64::from(m.b[i * m.rank + r]) * f64::from(m.a[r * k + j]));
        terms.sum::<f64>() * f64::from(m.scaling)
    };
    (0..n * k).map(element).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The distance in the length of what is expected.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<_> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(expected).max(1e-12)
}

/// The largest distance of two adapters over all modules.
fn apart(found: &Adapter, expected: &Adapter) -> f64 {
    SHAPE
        .modules()
        .map(|path| distance(&added(found, path), &added(expected, path)))
        .fold(0.0, f64::max)
}
