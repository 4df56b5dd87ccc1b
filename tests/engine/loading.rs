//! What opening a model tells of itself.

use std::sync::atomic::Ordering;

use epiphyte::format::gguf::Gguf;
use epiphyte::gpu::{Caps, Gpu, GpuOptions};
use epiphyte::{CancelToken, Engine, EngineOptions, Error, LoadPhase, LoadProgress};

use super::registry::sized;
use super::{greedy, prompt, session};
use crate::common::golden;

fn heard(options: EngineOptions) -> (std::sync::Arc<Engine>, Vec<LoadProgress>) {
    let mut heard = Vec::new();
    let engine =
        Engine::open_with(golden("tiny_llama.gguf"), options, &mut |progress| heard.push(progress))
            .unwrap();
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
fn a_load_that_is_cancelled_stops_where_it_is() {
    for phase in [LoadPhase::SelfTest, LoadPhase::Weights, LoadPhase::Shaders] {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelToken::default();
        let options = EngineOptions {
            gpu: GpuOptions { cache_dir: Some(dir.path().into()), ..GpuOptions::default() },
            skip_self_test: phase != LoadPhase::SelfTest,
            cancel: cancel.clone(),
            ..EngineOptions::default()
        };
        let mut last = None;
        let opened = Engine::open_with(golden("tiny_llama.gguf"), options, &mut |progress| {
            last = Some(progress);
            if progress.phase == phase && progress.done > 0 {
                cancel.cancel();
            }
        });
        assert!(matches!(opened.err(), Some(Error::Cancelled)), "{phase:?}");
        let last = last.unwrap();
        assert!(last.phase == phase && last.done < last.total, "went on to {last:?}");
        // Half a self-test is no verdict.
        let kept = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
        let verdicts: Vec<_> =
            kept.filter(|name| name.to_string_lossy().ends_with("selftest.json")).collect();
        assert!(verdicts.is_empty(), "{verdicts:?}");
    }
}

#[test]
fn a_load_that_was_cancelled_before_begins_nothing() {
    let cancel = CancelToken::default();
    cancel.cancel();
    let options = EngineOptions { cancel, ..EngineOptions::default() };
    let opened = Engine::open_with(golden("tiny_llama.gguf"), options, &mut |progress| {
        panic!("{progress:?}")
    });
    assert!(matches!(opened.err(), Some(Error::Cancelled)));
}

#[test]
fn a_second_start_tests_and_compiles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let gpu = GpuOptions { cache_dir: Some(dir.path().into()), ..GpuOptions::default() };
        let (engine, _) = heard(EngineOptions { gpu, ..EngineOptions::default() });
        engine.add_adapter("a", &sized(1, 8)).unwrap();
        super::generate(&mut session(&engine, &prompt(500, 40)), greedy(3));
        let work = engine.device_work();
        // As an app that is killed: what was compiled is kept all the same.
        std::mem::forget(engine);
        (work.tested_kernels, work.compiled_kernels)
    };
    let (tested, compiled) = start();
    assert!(tested > 0 && compiled > 0);
    assert_eq!(start(), (0, 0));
    // Without the driver's own cache all are compiled again.
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pipelines") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (tested, again) = start();
    assert_eq!(tested, 0);
    assert!(again > 0 && again <= compiled);
}

#[test]
fn what_decoding_needs_is_compiled_when_the_engine_is_open() {
    let (engine, heard) = heard(EngineOptions { skip_self_test: true, ..EngineOptions::default() });
    let compiled = || engine.gpu().counters.pipelines.load(Ordering::Relaxed);
    let before = compiled();
    assert_eq!(
        before,
        heard.last().unwrap().total,
        "binding compiles nothing that was not told of"
    );
    super::generate(&mut session(&engine, &prompt(500, 1)), greedy(3));
    assert_eq!(compiled(), before);
}

#[test]
fn small_bindings_split_the_weights_and_change_no_answer() {
    let limited = |max_binding_bytes: u64| {
        let mut gpu = Gpu::open(GpuOptions::default()).unwrap();
        gpu.restrict(&Caps { max_binding_bytes, ..gpu.caps().clone() });
        let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
        let options = EngineOptions { adapter_budget: u64::MAX, ..EngineOptions::default() };
        Engine::from_gguf(gpu, &gguf, &options, &mut |_| {}).unwrap()
    };
    let logits = |engine: &std::sync::Arc<Engine>| {
        let mut all = Vec::new();
        session(engine, &prompt(501, 20))
            .logits(0, |_, logits| all.extend_from_slice(logits))
            .unwrap();
        all
    };
    let (small, large) = (limited(8 << 10), limited(u64::MAX));
    let parts = |engine: &Engine| engine.gpu().counters.bind_groups.load(Ordering::Relaxed);
    assert!(parts(&small) > parts(&large), "nothing was split");
    let (split, whole) = (logits(&small), logits(&large));
    let size = whole.iter().fold(0_f32, |size, logit| size.max(logit.abs()));
    assert!(split.iter().zip(&whole).all(|(a, b)| (a - b).abs() <= 1e-4 * size));
    // What a binding does not hold is refused with the limit that the device sets.
    let refused = small.add_adapter("large", &sized(1, 64));
    assert!(
        matches!(refused, Err(Error::AdapterBudget { budget_bytes, .. }) if budget_bytes < 48 << 10),
        "{refused:?}"
    );
    large.add_adapter("large", &sized(1, 64)).unwrap();
}

#[test]
fn bindings_are_as_large_as_the_device_allows() {
    let caps = |large_bindings: bool| {
        let gpu = Gpu::open(GpuOptions { large_bindings, ..GpuOptions::default() }).unwrap();
        (gpu.caps().max_binding_bytes, gpu.limits().max_storage_buffer_binding_size)
    };
    let (largest, limit) = caps(true);
    assert_eq!(largest, limit.min(2 << 30));
    assert_eq!(caps(false).0, limit.min(128 << 20));
}
