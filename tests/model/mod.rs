//! Whole-model logits on every tier and path: against transformers' (golden file) and against
//! [`reference`] in f64.

pub(crate) mod adapted;
mod embed;
mod exported;
mod families;
mod formats;
mod importance;
mod matrix;
mod peft;
mod reference;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use epiphyte::format::gguf::Gguf;
use epiphyte::kernels::matvec::COLS;
use epiphyte::{Engine, EngineOptions, GpuOptions, Session};
use safetensors::SafeTensors;

use crate::common::odd_llama::odd_llama;
use crate::common::{Random, golden};
use reference::{Halves, Reference};

const STEMS: [&str; 3] = ["tiny_llama", "tiny_llama_linear", "tiny_llama_llama3"];
/// Between two f64 passes whose RoPE tables differ, of the largest logit; see
/// `transformers_logits.py`.
const BETWEEN_EXACT: f64 = 1e-5;
/// Of the largest logit, whatever the derived bound: what issue and documentation promise for the
/// f32 tier.
const PROMISED: f64 = 1e-3;

fn tiers() -> [(&'static str, EngineOptions); 5] {
    let with = |gpu: GpuOptions, kv_f32| EngineOptions { gpu, kv_f32, ..EngineOptions::default() };
    let all = GpuOptions::default;
    [
        ("all", with(all(), false)),
        ("f32 cache", with(all(), true)),
        ("no subgroups", with(GpuOptions { subgroups: false, ..all() }, true)),
        ("no f16", with(GpuOptions { f16: false, ..all() }, false)),
        ("no immediates", with(GpuOptions { immediates: false, ..all() }, false)),
    ]
}

/// What a tier rounds to f16 when it is given pieces of these lengths.
fn halves(engine: &Engine, options: &EngineOptions, pieces: &[usize]) -> Halves {
    let (caps, wide) = (engine.gpu().caps(), pieces.iter().any(|len| *len > COLS as usize));
    Halves {
        cache: caps.f16 && !options.kv_f32,
        products: caps.cooperative_matrix.is_some() && wide,
    }
}

/// Logits `[T, V]` of `ids`, given to the session in pieces of these lengths, over and over.
fn logits(engine: &Arc<Engine>, ids: &[u32], pieces: &[usize]) -> Vec<Vec<f32>> {
    let mut session = engine.session();
    let mut all = Vec::new();
    let mut pieces = pieces.iter().cycle();
    while let rest @ [_, ..] = &ids[all.len()..] {
        let piece = rest.len().min(*pieces.next().unwrap());
        session.push_tokens(&rest[..piece]).unwrap();
        collect(&mut session, &mut all);
    }
    all
}

fn collect(session: &mut Session, all: &mut Vec<Vec<f32>>) {
    let from = all.len();
    session
        .logits(from, |index, logits| {
            assert_eq!(index, all.len(), "in order");
            all.push(logits.to_vec());
        })
        .unwrap();
}

/// What a row of logits is held to.
struct Expected {
    /// `[T, V]`: value and bound.
    rows: Vec<Vec<(f64, f64)>>,
    largest: f64,
}

/// The largest difference, in bounds and in parts of the largest logit.
fn distance(expected: &Expected, found: &[Vec<f32>]) -> (f64, f64) {
    assert_eq!(expected.rows.len(), found.len());
    let (mut in_bounds, mut relative) = (0.0_f64, 0.0_f64);
    for (row, found) in expected.rows.iter().zip(found) {
        assert_eq!(row.len(), found.len());
        for ((value, bound), found) in row.iter().zip(found) {
            assert!(found.is_finite());
            let off = (f64::from(*found) - value).abs();
            in_bounds = in_bounds.max(off / bound);
            relative = relative.max(off / expected.largest);
        }
    }
    (in_bounds, relative)
}

/// The expected logits of `ids`: the reference's values and bounds, or `golden` values and bounds
/// wider by what two exact passes may differ.
fn expect(reference: &Reference, ids: &[u32], golden: Option<&[f32]>, halves: Halves) -> Expected {
    let exact = reference.logits(ids, halves);
    let largest = exact.iter().flatten().fold(0.0_f64, |max, near| max.max(near.value.abs()));
    let vocab = exact[0].len();
    let at = |t: usize, v: usize| match golden {
        Some(golden) => {
            (f64::from(golden[t * vocab + v]), exact[t][v].bound() + BETWEEN_EXACT * largest)
        }
        None => (exact[t][v].value, exact[t][v].bound()),
    };
    Expected {
        rows: (0..ids.len()).map(|t| (0..vocab).map(|v| at(t, v)).collect()).collect(),
        largest,
    }
}

/// transformers' ids and logits.
fn transformers(stem: &str) -> (Vec<u32>, Vec<f32>) {
    static FILE: LazyLock<Vec<u8>> =
        LazyLock::new(|| std::fs::read(golden("tiny_llama_logits.safetensors")).unwrap());
    let file = SafeTensors::deserialize(&FILE).unwrap();
    let (ids, logits) = (
        file.tensor(&format!("{stem}.ids")).unwrap(),
        file.tensor(&format!("{stem}.logits")).unwrap(),
    );
    let ids = ids.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as u32).collect();
    (ids, logits.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

fn tiny(stem: &str) -> PathBuf {
    golden(&format!("{stem}.gguf"))
}

/// Compares on every tier and on every path: wide, narrow, and both mixed.
fn check(path: &std::path::Path, ids: &[u32], golden: Option<&[f32]>) {
    let reference = Reference::new(&Gguf::open(path).unwrap());
    let mut expected = HashMap::new();
    let name = path.file_stem().unwrap().to_string_lossy();
    for (tier, options) in tiers() {
        let engine = Engine::open(path, options.clone()).unwrap();
        for (way, pieces) in
            [("wide", &[4096][..]), ("narrow", &[1, 8, 3]), ("mixed", &[9, 1, 70, 5, 17, 2])]
        {
            let halves = halves(&engine, &options, pieces);
            let expected =
                expected.entry(halves).or_insert_with(|| expect(&reference, ids, golden, halves));
            let (in_bounds, relative) = distance(expected, &logits(&engine, ids, pieces));
            println!(
                "{name}, {tier}, {way}: {in_bounds:.3} of the bound, {relative:.1e} of the \
                largest logit"
            );
            assert!(in_bounds <= 1.0, "{name}, {tier}, {way}: {in_bounds} times the derived bound");
            let promised = halves == Halves::default();
            assert!(
                !promised || relative <= PROMISED,
                "{name}, {tier}, {way}: off by {relative} of the largest logit"
            );
        }
    }
}

#[test]
fn the_reference_agrees_with_transformers() {
    for stem in STEMS {
        let (ids, golden) = transformers(stem);
        let exact =
            Reference::new(&Gguf::open(tiny(stem)).unwrap()).logits(&ids, Halves::default());
        let largest = golden.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
        let off = exact
            .iter()
            .flatten()
            .zip(&golden)
            .map(|(e, &g)| (e.value - f64::from(g)).abs())
            .fold(0.0, f64::max);
        assert!(
            off <= BETWEEN_EXACT * f64::from(largest),
            "{stem}: off by {off}, the largest logit is {largest}"
        );
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for stem in STEMS {
        let (ids, golden) = transformers(stem);
        check(&tiny(stem), &ids, Some(&golden));
    }
}

#[test]
fn logits_of_a_long_text_are_those_of_an_exact_pass() {
    // Beyond 64 rows of a pass, beyond 128 positions of an attention workgroup, to the last
    // position there is.
    for (stem, len) in STEMS.into_iter().zip([256, 140, 75]) {
        let vocab = Gguf::open(tiny(stem)).unwrap().get::<u32>("llama.vocab_size").unwrap();
        let mut random = Random::new(stem.len() as u64);
        let ids: Vec<u32> = (0..len).map(|_| random.below(vocab)).collect();
        check(&tiny(stem), &ids, None);
    }
}

#[test]
fn logits_of_odd_sizes_are_those_of_an_exact_pass() {
    let mut random = Random::new(96);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd_llama.gguf");
    std::fs::write(&path, odd_llama(&mut random).bytes()).unwrap();
    let ids: Vec<u32> = (0..150).map(|_| random.below(41)).collect();
    check(&path, &ids, None);
}
