//! Sessions under adapters: mixed batches, swaps, what is shared and what is not, growth, threads.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use epiphyte::adapter::{Adapter, BaseShape};
use epiphyte::engine::{Change, KvPolicy};
use epiphyte::{
    Batch, Engine, EngineOptions, Error, GenerateOptions, GpuOptions, Sequence, Session,
    generate_batch,
};
use safetensors::SafeTensors;

use super::{PAGE, dispatches, generate, greedy, open, prefill, prompt, session};
use crate::model::adapted::random_adapter;

/// A set of adapters.
pub(super) type Set<'a> = &'a [(&'a str, f32)];

pub(super) const IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

pub(super) fn shape() -> BaseShape {
    super::SHARED.base().adapter_shape()
}

/// Adapter number `i`: on all modules, or on some.
pub(super) fn numbered(i: usize) -> Adapter {
    random_adapter(&shape(), 70 + i as u64, |path| {
        i.is_multiple_of(2) || !(path.target as usize + i).is_multiple_of(3)
    })
}

/// What a session says alone; for tests that do not mind what others have left in the cache.
static ALONE: LazyLock<Arc<Engine>> = LazyLock::new(|| adapted(EngineOptions::default()));

/// An engine of its own with the eight adapters; tested devices are not tested again.
pub(super) fn adapted(options: EngineOptions) -> Arc<Engine> {
    let engine = open(EngineOptions { skip_self_test: true, ..options });
    for (i, id) in IDS.iter().enumerate() {
        engine.add_adapter(id, &numbered(i)).unwrap();
    }
    engine
}

pub(super) fn set(session: &mut Session, adapters: Set<'_>, history: KvPolicy) {
    session.set_adapters(&Change { adapters, history }).unwrap();
}

/// A session with `ids` under adapters.
pub(super) fn under(engine: &Arc<Engine>, adapters: Set<'_>, ids: &[u32]) -> Session {
    let mut session = session(engine, ids);
    set(&mut session, adapters, KvPolicy::Recompute);
    session
}

/// Sequence `i` of a mixed batch: one without adapters, one with two, the others with one each.
fn mixed(i: usize) -> (Vec<(&'static str, f32)>, Vec<u32>) {
    let set = match i % 8 {
        3 => vec![],
        5 => vec![("f", 0.5), ("a", -0.75)],
        other => vec![(IDS[other], 1.0 - 0.25 * (i / 8) as f32)],
    };
    (set, prompt(300 + i as u64, 1 + 11 * i))
}

/// Keys and values of a session, bit for bit.
pub(super) fn cache(session: &Session) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    session.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

fn logits(session: &mut Session) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    session.logits(0, |_, logits| rows.push(logits.to_vec())).unwrap();
    rows
}

/// A batch of `k` against `k` runs alone on another engine.
fn batch_is_as_alone(batched: &Arc<Engine>, single: &Arc<Engine>, k: usize, bit_for_bit: bool) {
    let mut sessions: Vec<Session> =
        (0..k).map(mixed).map(|(set, ids)| under(batched, &set, &ids)).collect();
    let mut ids = vec![Vec::new(); k];
    generate_batch(
        sessions.iter_mut().map(|session| Sequence { session, options: greedy(9) }).collect(),
        |i, token| {
            ids[i].push(token.id);
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    for (i, session) in sessions.iter().enumerate() {
        let (set, prompt) = mixed(i);
        let mut alone = under(single, &set, &prompt);
        assert_eq!(ids[i], generate(&mut alone, greedy(9)).ids, "sequence {i} of {k}");
        // They follow from all hidden states before the last layer. The base alone folds its
        // kernels otherwise, so that a row without adapters is rounded otherwise beside rows that
        // have some.
        let same = !bit_for_bit || set.is_empty() || cache(session) == cache(&alone);
        assert!(same, "keys and values of sequence {i} of {k}");
    }
    // Prompts that take turns, logits too.
    let each = |engine, order: &mut dyn Iterator<Item = usize>| {
        let of = |i| (i, mixed(i)).clone();
        let mut all: Vec<_> = order
            .map(of)
            .map(|(i, (set, ids))| (i, logits(&mut under(engine, &set, &ids))))
            .collect();
        all.sort_by_key(|(i, _)| *i);
        all
    };
    assert_eq!(each(batched, &mut (0..k)), each(single, &mut (0..k).rev()), "{k} prompts");
}

#[test]
fn a_mixed_batch_is_bit_for_bit_what_each_adapter_gives_alone() {
    let gpu = GpuOptions { subgroups: false, immediates: false, ..GpuOptions::default() };
    let open =
        || adapted(EngineOptions { gpu: gpu.clone(), kv_f32: true, ..EngineOptions::default() });
    batch_is_as_alone(&open(), &open(), 8, true);
}

#[test]
fn mixed_batches_of_any_size_give_what_each_adapter_gives_alone() {
    let engine = adapted(EngineOptions::default());
    for k in [2, 5, 11] {
        batch_is_as_alone(&engine, &ALONE, k, false);
    }
}

#[test]
fn a_swap_between_tokens_costs_a_write() {
    for immediates in [true, false] {
        let gpu = GpuOptions { immediates, ..GpuOptions::default() };
        let engine = adapted(EngineOptions { gpu, ..EngineOptions::default() });
        let sets: [Set<'_>; 4] = [&[("a", 1.0)], &[("b", 0.5)], &[], &[("b", 1.0), ("c", -0.5)]];
        let mut session = session(&engine, &prompt(310, 20));
        let cost = || {
            let counters = &engine.gpu().counters;
            let made = [&counters.pipelines, &counters.bind_groups]
                .map(|counter| counter.load(Ordering::Relaxed));
            (made, engine.gpu().allocated_bytes())
        };
        let mut generation = session.generate(greedy(100)).unwrap();
        let turn = |generation: &mut epiphyte::Generation<'_>, i: usize| {
            let change = Change { adapters: sets[i % 4], history: KvPolicy::Keep };
            generation.set_adapters(&change).unwrap();
            generation.next().unwrap().unwrap();
        };
        // With and without adapters: each kernel is compiled on first use.
        (0..4).for_each(|i| turn(&mut generation, i));
        let before = cost();
        for i in 0..16 {
            turn(&mut generation, i);
            assert_eq!(cost(), before, "after {i} swaps");
        }
        drop(generation);
        let options = greedy(1);
        let mut batch = Batch::new(vec![Sequence { session: &mut session, options }]).unwrap();
        let nowhere = batch.set_adapters(1, &Change::default());
        assert!(
            matches!(nowhere, Err(Error::InvalidArgument { name: "index", .. })),
            "{nowhere:?}"
        );
        drop(batch);
        let before = cost();
        for i in 0..8 {
            set(&mut session, sets[i % 4], KvPolicy::Keep);
        }
        assert_eq!(cost(), before);
    }
}

#[test]
fn history_is_recomputed_or_kept() {
    let engine = adapted(EngineOptions::default());
    let (a, b): (Set<'_>, Set<'_>) = (&[("a", 1.0)], &[("b", 1.0)]);
    let run = |history: KvPolicy, in_flight: bool| {
        let mut session = under(&engine, a, &prompt(311, 50));
        if in_flight {
            let mut generation = session.generate(greedy(16)).unwrap();
            (0..6).for_each(|_| drop(generation.next().unwrap().unwrap()));
            generation.set_adapters(&Change { adapters: b, history }).unwrap();
            generation.by_ref().for_each(|token| drop(token.unwrap()));
        } else {
            generate(&mut session, greedy(6));
            set(&mut session, b, history);
            generate(&mut session, greedy(10));
        }
        session
    };
    let fresh = |ids: &[u32], adapters: Set<'_>| {
        generate(&mut under(&ALONE, adapters, ids), greedy(10)).ids
    };
    for in_flight in [false, true] {
        let recomputed = run(KvPolicy::Recompute, in_flight);
        assert_eq!(recomputed.tokens()[56..], fresh(&recomputed.tokens()[..56], b));
        let (kept, again) = (run(KvPolicy::Keep, in_flight), run(KvPolicy::Keep, in_flight));
        assert_eq!(kept.tokens(), again.tokens(), "what is kept is the same every time");
        assert_eq!(cache(&kept), cache(&again));
        assert_ne!(cache(&kept), cache(&recomputed), "the old adapter's keys are still there");
    }
    // The same set again, but as if it had been there from the start.
    let mut kept = run(KvPolicy::Keep, false);
    set(&mut kept, b, KvPolicy::Recompute);
    let ids = kept.tokens().to_vec();
    assert_eq!(generate(&mut kept, greedy(10)).ids, fresh(&ids, b));
}

#[test]
fn pages_are_shared_under_the_same_adapters_only() {
    let engine = adapted(EngineOptions::default());
    let ids = prompt(312, PAGE + 1);
    let sets: [Set<'_>; 5] =
        [&[], &[("a", 1.0)], &[("a", 0.5)], &[("b", 1.0)], &[("a", 1.0), ("b", 1.0)]];
    let cost = |adapters: Set<'_>| {
        let before = dispatches(&engine);
        prefill(&mut under(&engine, adapters, &ids));
        dispatches(&engine) - before
    };
    for adapters in sets {
        assert!(cost(adapters) > 0, "{adapters:?} finds nothing of the others'");
    }
    for adapters in sets {
        assert_eq!(cost(adapters), 0, "{adapters:?} finds its own");
    }
    // What two sets have made serves no one, and is not completed by others' pages.
    let mut kept = under(&engine, &[("c", 1.0)], &prompt(313, PAGE));
    prefill(&mut kept);
    set(&mut kept, &[("d", 1.0)], KvPolicy::Keep);
    kept.push_tokens(&prompt(314, 2 * PAGE)).unwrap();
    prefill(&mut kept);
    let all = kept.tokens().to_vec();
    let before = dispatches(&engine);
    prefill(&mut under(&engine, &[("d", 1.0)], &all));
    assert!(dispatches(&engine) > before);
    let expected = generate(&mut under(&ALONE, &[("d", 1.0)], &all), greedy(8));
    assert_eq!(generate(&mut under(&engine, &[("d", 1.0)], &all), greedy(8)), expected);
    // Another adapter under the same id is another adapter.
    drop(kept);
    assert_eq!(cost(&[("h", 1.0)]).min(1) + cost(&[("h", 1.0)]), 1);
    engine.add_adapter("h", &numbered(1)).unwrap();
    assert!(cost(&[("h", 1.0)]) > 0);
}

#[test]
fn forks_and_saved_sessions_keep_their_adapters() {
    let engine = adapted(EngineOptions::default());
    let adapters: Set<'_> = &[("a", 1.0), ("g", 0.3)];
    let mut parent = under(&engine, adapters, &prompt(315, 40));
    prefill(&mut parent);
    let mut fork = parent.fork();
    let expected = generate(&mut parent, greedy(8));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    fork.save(&path).unwrap();
    drop(parent);
    let pinned = || {
        engine
            .adapters()
            .into_iter()
            .filter(|state| state.pinned)
            .map(|state| state.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(pinned(), ["a", "g"], "the fork holds them");
    assert!(matches!(engine.unload_adapter("g"), Err(Error::AdapterInUse { id }) if id == "g"));
    assert_eq!(generate(&mut fork, greedy(8)), expected);
    drop(fork);
    assert_eq!(pinned(), [""; 0]);
    let before = dispatches(&engine);
    let mut restored = engine.restore(&path).unwrap();
    prefill(&mut restored);
    assert_eq!(dispatches(&engine), before, "its keys and values are those of its adapters");
    assert_eq!(restored.adapters(), [("a".to_string(), 1.0), ("g".to_string(), 0.3)]);
    assert_eq!(generate(&mut restored, greedy(8)), expected);
    drop(restored);
    // Under other factors of the same id the keys and values are not those.
    engine.add_adapter("g", &numbered(3)).unwrap();
    assert!(
        matches!(engine.restore(&path).err(), Some(Error::AdapterMismatch { id, .. }) if id == "g")
    );
    engine.unload_adapter("g").unwrap();
    assert!(
        matches!(engine.restore(&path).err(), Some(Error::AdapterNotLoaded { id }) if id == "g")
    );
    assert_eq!(pinned(), [""; 0]);
}

#[test]
fn the_cache_and_the_arena_grow_under_an_adapted_generation() {
    let options = || GenerateOptions { ..greedy(120) };
    let whole = generate(&mut under(&ALONE, &[("a", 1.0)], &prompt(316, 90)), options()).ids;
    let engine = open(EngineOptions { skip_self_test: true, ..EngineOptions::default() });
    engine.add_adapter("a", &numbered(0)).unwrap();
    let mut first = under(&engine, &[("a", 1.0)], &prompt(316, 90));
    let mut running = first.generate(options()).unwrap();
    let mut ids: Vec<u32> = running.by_ref().take(10).map(|token| token.unwrap().id).collect();
    let (mut others, mut grown) = (Vec::new(), 0);
    for (i, id) in IDS.iter().enumerate().skip(1) {
        let before = engine.gpu().allocated_bytes();
        engine.add_adapter(id, &numbered(i)).unwrap();
        grown += u32::from(engine.gpu().allocated_bytes() > before);
        let mut other = under(&engine, &[(id, 1.0)], &prompt(320 + i as u64, 60));
        prefill(&mut other);
        others.push(other);
        ids.extend(running.by_ref().take(5).map(|token| token.unwrap().id));
    }
    ids.extend(running.map(|token| token.unwrap().id));
    assert_eq!((ids, grown), (whole, 2), "the buffers of the adapters double");
    for (i, mut other) in (1..).zip(others) {
        let mut alone = under(&ALONE, &[(IDS[i], 1.0)], other.tokens());
        assert_eq!(generate(&mut other, greedy(5)), generate(&mut alone, greedy(5)), "{}", IDS[i]);
    }
}

#[test]
fn threads_with_adapters_of_their_own_share_an_engine() {
    let engine = adapted(EngineOptions::default());
    let work = |engine: &Arc<Engine>, i: usize| {
        let (set, ids) = mixed(i);
        generate(&mut under(engine, &set, &ids), greedy(20))
    };
    let answers = std::thread::scope(|scope| {
        let threads: Vec<_> = (2..6)
            .map(|i| {
                (
                    i,
                    scope.spawn({
                        let engine = &engine;
                        move || work(engine, i)
                    }),
                )
            })
            .collect();
        threads.into_iter().map(|(i, thread)| (i, thread.join().unwrap())).collect::<Vec<_>>()
    });
    for (i, answer) in answers {
        assert_eq!(answer, work(&ALONE, i), "thread {i}");
    }
}
