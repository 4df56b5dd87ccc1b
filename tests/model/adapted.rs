//! Logits under adapters, against an exact pass with the same factors; what a set changes and what
//! it leaves alone.

use std::collections::HashMap;
use std::sync::Arc;

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule, ModulePath, Target};
use epiphyte::engine::{Change, KvPolicy};
use epiphyte::format::gguf::Gguf;
use epiphyte::{Engine, EngineOptions, Session};

use super::reference::{Halves, Reference};
use super::{Expected, collect, distance, expect, halves, tiers, tiny};
use crate::common::Random;

/// A random adapter on the modules that `wanted` keeps, of ranks 1 to 13.
pub(crate) fn random_adapter(
    shape: &BaseShape,
    seed: u64,
    wanted: impl Fn(ModulePath) -> bool,
) -> Adapter {
    ranked(shape, seed, 13, wanted)
}

/// As [`random_adapter`], of ranks up to `most`.
fn ranked(shape: &BaseShape, seed: u64, most: u32, wanted: impl Fn(ModulePath) -> bool) -> Adapter {
    let mut random = Random::new(seed);
    let mut modules = Vec::new();
    for path in shape.modules().filter(|path| wanted(*path)) {
        let [n, k] = shape.shape(path.target);
        let rank = 1 + random.below(most) as usize;
        let mut values = |len: usize, size: f32| (0..len).map(|_| random.signed(size)).collect();
        // About as large as what the base adds, whatever the sizes.
        let (a, b) = (values(rank * k, 2.0 / (k as f32).sqrt()), values(n * rank, 0.3));
        modules.push(LoraModule { path, rank, a, b, scaling: 0.7 });
    }
    Adapter::new(LoraConfig::default(), modules, None, shape).unwrap()
}

fn everywhere(_: ModulePath) -> bool {
    true
}

fn in_attention(path: ModulePath) -> bool {
    matches!(path.target, Target::QProj | Target::KProj | Target::VProj | Target::OProj)
}

/// Only some modules of some layers: what is left out must not move.
fn here_and_there(path: ModulePath) -> bool {
    path.layer.is_some_and(|layer| layer % 2 == 1)
        && matches!(path.target, Target::VProj | Target::DownProj)
}

fn linears(path: ModulePath) -> bool {
    path.layer.is_some()
}

fn ids(len: usize) -> Vec<u32> {
    let mut random = Random::new(5);
    (0..len).map(|_| random.below(288)).collect()
}

/// Logits of `ids` under a set, in pieces.
pub(super) fn logits(
    engine: &Arc<Engine>,
    adapters: &[(&str, f32)],
    ids: &[u32],
    pieces: &[usize],
) -> Vec<Vec<f32>> {
    let mut session = engine.session();
    session.set_adapters(&Change { adapters, ..Change::default() }).unwrap();
    let (mut all, mut pieces) = (Vec::new(), pieces.iter().cycle());
    while let rest @ [_, ..] = &ids[all.len()..] {
        let piece = rest.len().min(*pieces.next().unwrap());
        session.push_tokens(&rest[..piece]).unwrap();
        collect(&mut session, &mut all);
    }
    all
}

#[test]
fn logits_under_adapters_are_those_of_an_exact_pass() {
    let path = tiny("tiny_llama");
    let gguf = Gguf::open(&path).unwrap();
    let ids = ids(40);
    let shape = Engine::open(&path, EngineOptions::default()).unwrap().base().adapter_shape();
    type Wanted = fn(ModulePath) -> bool;
    let wanted: [(&str, Wanted); 4] = [
        ("all", everywhere),
        ("attention", in_attention),
        ("some", here_and_there),
        ("linears", linears),
    ];
    let adapters: Vec<(&str, Adapter)> = wanted
        .into_iter()
        .zip(1..)
        .map(|((id, wanted), seed)| (id, random_adapter(&shape, seed, wanted)))
        .collect();
    let find = |id: &str| &adapters.iter().find(|(other, _)| *other == id).unwrap().1;
    let sets: [&[(&str, f32)]; 5] = [
        &[("all", 1.0)],
        &[("attention", 1.0)],
        &[("some", -1.5)],
        &[("linears", 0.5), ("all", 0.25)],
        &[("some", 1.0), ("attention", 0.3), ("linears", 1.0), ("all", -0.5)],
    ];
    let reference = |set: &[(&str, f32)]| {
        let set: Vec<(&Adapter, f32)> =
            set.iter().map(|(id, weight)| (find(id), *weight)).collect();
        Reference::adapted(&gguf, &set)
    };
    let mut exact: Vec<(Reference, HashMap<Halves, Expected>)> =
        sets.iter().map(|set| (reference(set), HashMap::new())).collect();
    for (tier, options) in tiers() {
        let engine = Engine::open(&path, options.clone()).unwrap();
        adapters.iter().for_each(|(id, adapter)| drop(engine.add_adapter(id, adapter).unwrap()));
        for (set, (reference, expected)) in sets.iter().zip(&mut exact) {
            for (way, pieces) in
                [("wide", &[40][..]), ("narrow", &[1, 8, 3]), ("mixed", &[9, 1, 17, 5])]
            {
                let found = logits(&engine, set, &ids, pieces);
                let halves = halves(&engine, &options, pieces);
                let expected =
                    expected.entry(halves).or_insert_with(|| expect(reference, &ids, None, halves));
                let (in_bounds, relative) = distance(expected, &found);
                println!(
                    "{set:?}, {tier}, {way}: {in_bounds:.2} of the bound, {relative:.1e} of the \
                    largest logit"
                );
                assert!(in_bounds <= 1.0, "{set:?}, {tier}, {way}: {in_bounds} of the bound");
            }
        }
    }
}

#[test]
fn any_adapter_is_what_an_exact_pass_makes_of_it() {
    let path = tiny("tiny_llama");
    let (gguf, ids) = (Gguf::open(&path).unwrap(), ids(24));
    let tiers = tiers()
        .map(|(tier, options)| (tier, Engine::open(&path, options.clone()).unwrap(), options));
    let shape = tiers[0].1.base().adapter_shape();
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let some: Vec<ModulePath> = shape.modules().filter(|_| random.below(3) == 0).collect();
        let adapter = ranked(&shape, seed, 70, |path| some.contains(&path));
        let weight = random.signed(1.5);
        let reference = Reference::adapted(&gguf, &[(&adapter, weight)]);
        let mut expected = HashMap::new();
        for (tier, engine, options) in tiers.iter().take(3) {
            engine.add_adapter("any", &adapter).unwrap();
            let pieces = [9, 1, 5];
            let found = logits(engine, &[("any", weight)], &ids, &pieces);
            let halves = halves(engine, options, &pieces);
            let expected =
                expected.entry(halves).or_insert_with(|| expect(&reference, &ids, None, halves));
            let (in_bounds, _) = distance(expected, &found);
            println!("seed {seed}, {tier}: {in_bounds:.2} of the bound");
            assert!(
                in_bounds <= 1.0,
                "seed {seed}, {tier}: {in_bounds} of the bound; {:?}",
                adapter.modules
            );
        }
    }
}

#[test]
fn the_base_is_bit_for_bit_as_before_once_adapters_are_gone() {
    let engine = Engine::open(tiny("tiny_llama"), EngineOptions::default()).unwrap();
    let ids = ids(45);
    let before = [vec![45], vec![1, 8, 3]].map(|pieces| logits(&engine, &[], &ids, &pieces));
    let adapter = random_adapter(&engine.base().adapter_shape(), 9, everywhere);
    engine.add_adapter("a", &adapter).unwrap();
    let mut session = engine.session();
    let set = |session: &mut Session, adapters: &[(&str, f32)]| {
        session.set_adapters(&Change { adapters, history: KvPolicy::Recompute }).unwrap();
    };
    set(&mut session, &[("a", 1.0)]);
    session.push_tokens(&ids).unwrap();
    let mut with = Vec::new();
    collect(&mut session, &mut with);
    assert_ne!(with, before[0]);
    set(&mut session, &[]);
    let mut without = Vec::new();
    collect(&mut session, &mut without);
    assert_eq!(without, before[0]);
    assert_eq!(logits(&engine, &[], &ids, &[1, 8, 3]), before[1]);
    drop(session);
    engine.unload_adapter("a").unwrap();
    assert_eq!(logits(&engine, &[], &ids, &[45]), before[0]);
}
