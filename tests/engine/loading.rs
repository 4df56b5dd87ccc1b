//! What opening a model tells of itself.

use std::sync::atomic::Ordering;

use epiphyte::gpu::GpuOptions;
use epiphyte::{Engine, EngineOptions, LoadPhase, LoadProgress};

use super::{greedy, prompt, session};
use crate::common::golden;

fn heard(options: EngineOptions) -> (std::sync::Arc<Engine>, Vec<LoadProgress>) {
    let mut heard = Vec::new();
    let engine = Engine::open_with(golden("tiny_llama.gguf"), options, &mut |progress| heard.push(progress)).unwrap();
    (engine, heard)
}

/// The phases in their order; each runs from nothing to all of it.
fn phases(heard: &[LoadProgress]) -> Vec<LoadPhase> {
    let runs = heard.chunk_by(|a, b| a.phase == b.phase);
    runs.map(|run| {
        let total = run[0].total;
        assert_eq!((run[0].done, run[run.len() - 1].done), (0, total), "{:?}", run[0].phase);
        assert!(total > 0 && run.iter().all(|progress| progress.total == total));
        assert!(run.is_sorted_by_key(|progress| progress.done));
        run[0].phase
    })
    .collect()
}

#[test]
fn each_phase_of_opening_is_heard_of() {
    let dir = tempfile::tempdir().unwrap();
    let gpu = GpuOptions { cache_dir: Some(dir.path().into()), ..GpuOptions::default() };
    let options = EngineOptions { gpu, ..EngineOptions::default() };
    let (engine, first) = heard(options.clone());
    assert_eq!(phases(&first), [LoadPhase::SelfTest, LoadPhase::Weights, LoadPhase::Shaders]);
    let bytes = first.iter().find(|progress| progress.phase == LoadPhase::Weights).unwrap().total;
    assert_eq!(bytes, engine.base().file_bytes);
    // The verdicts of the self-test were kept.
    assert_eq!(phases(&heard(options).1), [LoadPhase::Weights, LoadPhase::Shaders]);
}

#[test]
fn what_decoding_needs_is_compiled_when_the_engine_is_open() {
    let (engine, heard) = heard(EngineOptions { skip_self_test: true, ..EngineOptions::default() });
    let compiled = || engine.gpu().counters.pipelines.load(Ordering::Relaxed);
    let before = compiled();
    assert_eq!(before, heard.last().unwrap().total, "binding compiles nothing that was not told of");
    super::generate(&mut session(&engine, &prompt(500, 1)), greedy(3));
    assert_eq!(compiled(), before);
}
