//! Adapters on the device: the budget, who makes room, who stays, what is refused and leaves
//! everything as it was.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use epiphyte::adapter::{Adapter, LoraConfig, LoraModule, ModulePath, Modules, Target};
use epiphyte::engine::{Change, KvPolicy};
use epiphyte::{DType, Engine, EngineOptions, Error, Session};

use super::adapters::{Set, set, shape, under};
use super::{generate, greedy, open, prompt, session};
use crate::common::Random;

/// An adapter of one rank on q and down of every layer.
pub(super) fn sized(seed: u64, rank: usize) -> Adapter {
    let (shape, mut random) = (shape(), Random::new(seed));
    let wanted =
        shape.modules().filter(|path| matches!(path.target, Target::QProj | Target::DownProj));
    let module = |path: ModulePath| {
        let [n, k] = shape.shape(path.target);
        let a = (0..rank * k).map(|_| random.signed(0.3)).collect();
        let b = (0..n * rank).map(|_| random.signed(1.0 / rank as f32)).collect();
        LoraModule { path, rank, a, b, scaling: 1.0 }
    };
    let target_modules = Modules::Names(vec!["q_proj".into(), "down_proj".into()]);
    let config =
        LoraConfig { r: rank, lora_alpha: rank as f64, target_modules, ..LoraConfig::default() };
    Adapter::new(config, wanted.map(module).collect(), None, &shape).unwrap()
}

/// Bytes of [`sized`] with a rank of 8.
fn unit() -> u64 {
    let engine = with_budget(1 << 20);
    engine.add_adapter("a", &sized(1, 8)).unwrap();
    engine.adapters()[0].n_bytes
}

fn with_budget(adapter_budget: u64) -> Arc<Engine> {
    open(EngineOptions { adapter_budget, skip_self_test: true, ..EngineOptions::default() })
}

fn resident(engine: &Engine) -> Vec<String> {
    engine.adapters().into_iter().filter(|state| state.resident).map(|state| state.id).collect()
}

fn change(session: &mut Session, adapters: Set<'_>) -> Result<(), Error> {
    session.set_adapters(&Change { adapters, history: KvPolicy::Recompute })
}

/// What a session under an adapter says, on an engine with room for all.
fn alone(adapter: &Adapter, weight: f32, ids: &[u32]) -> Vec<u32> {
    static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(|| with_budget(16 << 20));
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    ENGINE.add_adapter(&id, adapter).unwrap();
    generate(&mut under(&ENGINE, &[(&id, weight)], ids), greedy(8)).ids
}

/// Adapters of these ids and ranks in folders, loaded one after the other.
fn on_disk(engine: &Engine, dir: &Path, adapters: &[(&str, usize)]) {
    for (seed, (id, rank)) in (1..).zip(adapters) {
        sized(seed, *rank).save_peft(dir.join(id), DType::F32, &shape()).unwrap();
        engine.load_adapter(id, dir.join(id)).unwrap();
    }
}

#[test]
fn an_adapter_beyond_the_budget_is_refused_and_no_one_makes_room() {
    let unit = unit();
    let engine = with_budget(2 * unit);
    let ids = prompt(400, 20);
    for (seed, id) in [(1, "a"), (2, "b")] {
        engine.add_adapter(id, &sized(seed, 8)).unwrap();
    }
    let mut session = under(&engine, &[("a", 1.0)], &ids);
    let mut generation = session.generate(greedy(8)).unwrap();
    let mut said: Vec<u32> = generation.by_ref().take(3).map(|token| token.unwrap().id).collect();
    for (id, rank) in [("large", 20), ("b", 20), ("c", 12)] {
        match engine.add_adapter(id, &sized(9, rank)) {
            Err(Error::AdapterBudget { id: named, needed_bytes, budget_bytes }) => {
                assert_eq!((named.as_str(), budget_bytes), (id, 2 * unit));
                assert!(needed_bytes > unit);
            }
            other => panic!("{other:?}"),
        }
        let states = engine.adapters();
        assert_eq!(states.iter().map(|state| state.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }
    said.extend(generation.map(|token| token.unwrap().id));
    assert_eq!(said, alone(&sized(1, 8), 1.0, &ids));
    // The one that was to be replaced is still itself.
    assert_eq!(
        generate(&mut under(&engine, &[("b", 1.0)], &ids), greedy(8)).ids,
        alone(&sized(2, 8), 1.0, &ids)
    );
    drop(session);
    engine.add_adapter("c", &sized(9, 12)).unwrap();
    assert_eq!(resident(&engine), ["c"]);
}

#[test]
fn the_least_recently_used_makes_room_and_comes_back() {
    let (engine, dir) = (with_budget(3 * unit()), tempfile::tempdir().unwrap());
    on_disk(&engine, dir.path(), &[("a", 8), ("b", 8), ("c", 8)]);
    engine.add_adapter("memory", &sized(7, 8)).unwrap();
    assert_eq!(resident(&engine), ["b", "c", "memory"]);
    let ids = prompt(401, 12);
    let held = under(&engine, &[("b", 1.0)], &ids);
    for (id, seed, left) in [
        ("a", 1, ["a", "b", "memory"]),
        ("c", 3, ["a", "b", "c"]),
        ("memory", 7, ["b", "c", "memory"]),
        ("a", 1, ["a", "b", "memory"]),
    ] {
        let said = generate(&mut under(&engine, &[(id, 0.5)], &ids), greedy(8)).ids;
        assert_eq!(said, alone(&sized(seed, 8), 0.5, &ids), "{id}");
        assert_eq!(resident(&engine), left, "b is in use");
    }
    // Three at once, then one more: no one may go.
    let mut three = under(&engine, &[("a", 1.0), ("b", 1.0), ("memory", 1.0)], &ids);
    let refused = change(&mut session(&engine, &ids), &[("c", 1.0)]);
    assert!(matches!(&refused, Err(Error::AdapterBudget { id, .. }) if id == "c"), "{refused:?}");
    assert_eq!(resident(&engine), ["a", "b", "memory"]);
    generate(&mut three, greedy(2));
    drop((three, held));
    change(&mut session(&engine, &ids), &[("c", 1.0)]).unwrap();
}

#[test]
fn files_that_change_or_vanish_while_off_the_device_are_refused() {
    let (engine, dir) = (with_budget(2 * unit()), tempfile::tempdir().unwrap());
    on_disk(&engine, dir.path(), &[("changed", 8), ("gone", 8), ("cut", 8), ("b", 8), ("c", 8)]);
    assert_eq!(resident(&engine), ["b", "c"]);
    sized(55, 8).save_peft(dir.path().join("changed"), DType::F32, &shape()).unwrap();
    std::fs::remove_dir_all(dir.path().join("gone")).unwrap();
    let tensors = dir.path().join("cut").join("adapter_model.safetensors");
    let bytes = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &bytes[..bytes.len() - 4]).unwrap();
    let ids = prompt(402, 15);
    let mut session = under(&engine, &[("b", 1.0)], &ids);
    let fits = |id: &str, error: &Error| match id {
        "changed" => {
            matches!(error, Error::InvalidAdapter { reason, .. } if reason.contains("changed"))
        }
        "gone" => matches!(error, Error::Io { .. }),
        _ => matches!(error, Error::InvalidFile { .. }),
    };
    for id in ["changed", "gone", "cut"] {
        let refused = change(&mut session, &[(id, 1.0)]).unwrap_err();
        assert!(fits(id, &refused), "{id}: {refused:?}");
        assert_eq!(session.adapters(), [("b".to_string(), 1.0)]);
    }
    assert_eq!(generate(&mut session, greedy(8)).ids, alone(&sized(4, 8), 1.0, &ids));
}

#[test]
fn a_set_that_fails_halfway_leaves_the_others_running() {
    let (engine, dir) = (with_budget(3 * unit()), tempfile::tempdir().unwrap());
    // In the end p, q and r fill the buffers in this order.
    on_disk(&engine, dir.path(), &[("more", 8), ("big", 16), ("p", 8), ("q", 8), ("r", 8)]);
    assert_eq!(resident(&engine), ["p", "q", "r"]);
    let ids = prompt(403, 15);
    let mut running = under(&engine, &[("q", 1.0)], &ids);
    let mut later = under(&engine, &[("q", 2.0)], &ids);
    let mut generation = running.generate(greedy(8)).unwrap();
    let mut said: Vec<u32> = generation.by_ref().take(3).map(|token| token.unwrap().id).collect();
    // `big` fits only where p and r were, on either side of q: q has to move. Then there is no room
    // for `more`.
    let refused = change(&mut session(&engine, &ids), &[("big", 1.0), ("more", 1.0)]);
    assert!(matches!(refused, Err(Error::AdapterBudget { .. })), "{refused:?}");
    assert_eq!(resident(&engine), ["big", "q"]);
    assert_eq!(generate(&mut later, greedy(8)).ids, alone(&sized(4, 8), 2.0, &ids));
    said.extend(generation.map(|token| token.unwrap().id));
    assert_eq!(said, alone(&sized(4, 8), 1.0, &ids));
}

/// Ids with whether they are in use and whether another one has the id now.
fn states(engine: &Engine) -> Vec<(String, bool, bool)> {
    engine.adapters().into_iter().map(|state| (state.id, state.pinned, state.replaced)).collect()
}

#[test]
fn one_in_use_is_replaced_under_its_id_and_goes_with_its_last_user() {
    let engine = with_budget(2 * unit());
    let (old, new) = (sized(1, 8), sized(2, 8));
    engine.add_adapter("a", &old).unwrap();
    let ids = prompt(405, 40);
    let (said_by_old, said_by_new) = (alone(&old, 1.0, &ids), alone(&new, 1.0, &ids));
    assert_ne!(said_by_old, said_by_new);
    let mut user = under(&engine, &[("a", 1.0)], &ids);
    let mut generation = user.generate(greedy(8)).unwrap();
    let mut said: Vec<u32> = generation.by_ref().take(3).map(|token| token.unwrap().id).collect();
    engine.add_adapter("a", &new).unwrap();
    said.extend(generation.map(|token| token.unwrap().id));
    assert_eq!(said, said_by_old, "an answer goes on as it began");
    assert_eq!(states(&engine), [("a".into(), true, true), ("a".into(), false, false)]);
    // Whoever asks now gets the new one; keys of the same prompt under the old are not taken over.
    assert_eq!(generate(&mut under(&engine, &[("a", 1.0)], &ids), greedy(8)).ids, said_by_new);
    let mut fork = user.fork();
    fork.set_tokens(&ids).unwrap();
    assert_eq!(generate(&mut fork, greedy(8)).ids, said_by_old);
    // No room for a third beside two that are in use; all stays as it is.
    let held = under(&engine, &[("a", 1.0)], &ids);
    assert!(matches!(engine.add_adapter("a", &sized(3, 8)), Err(Error::AdapterBudget { .. })));
    drop(held);
    // Set again under the same id and weight, it is the new one.
    for session in [&mut user, &mut fork] {
        change(session, &[("a", 1.0)]).unwrap();
        session.set_tokens(&ids).unwrap();
        assert_eq!(generate(session, greedy(8)).ids, said_by_new);
    }
    assert_eq!(states(&engine), [("a".into(), true, false)]);
}

#[test]
fn a_session_saved_under_a_replaced_adapter_names_the_one_it_had() {
    let (engine, dir) = (with_budget(1 << 20), tempfile::tempdir().unwrap());
    let (old, file) = (sized(1, 8), dir.path().join("session"));
    engine.add_adapter("a", &old).unwrap();
    let mut user = under(&engine, &[("a", 1.0)], &prompt(406, 20));
    super::prefill(&mut user);
    engine.add_adapter("a", &sized(2, 8)).unwrap();
    user.save(&file).unwrap();
    assert!(matches!(engine.restore(&file), Err(Error::AdapterMismatch { id, .. }) if id == "a"));
    engine.add_adapter("a", &old).unwrap();
    assert_eq!(
        generate(&mut engine.restore(&file).unwrap(), greedy(8)),
        generate(&mut user, greedy(8))
    );
}

#[test]
fn what_is_in_use_is_not_unloaded() {
    let engine = with_budget(1 << 20);
    engine.add_adapter("a", &sized(1, 8)).unwrap();
    let ids = prompt(404, 15);
    let mut user = under(&engine, &[("a", 1.0)], &ids);
    let refused = engine.unload_adapter("a");
    assert!(matches!(&refused, Err(Error::AdapterInUse { id }) if id == "a"), "{refused:?}");
    assert_eq!(generate(&mut user, greedy(8)).ids, alone(&sized(1, 8), 1.0, &ids));
    set(&mut user, &[], KvPolicy::Recompute);
    engine.add_adapter("a", &sized(2, 4)).unwrap();
    assert_eq!(
        generate(&mut under(&engine, &[("a", 1.0)], &ids), greedy(8)).ids,
        alone(&sized(2, 4), 1.0, &ids)
    );
    engine.unload_adapter("a").unwrap();
    assert!(engine.adapters().is_empty());
}

#[test]
fn sets_that_cannot_run_are_refused() {
    let engine = with_budget(8 << 20);
    let names: Vec<String> = (0..9).map(|i| format!("n{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        engine.add_adapter(name, &sized(i as u64, 1 + i)).unwrap();
    }
    (0..3).for_each(|i| {
        drop(engine.add_adapter(["x", "y", "z"][i], &sized(9, [126, 127, 4][i])).unwrap())
    });
    let wide = engine.add_adapter("wide", &sized(9, 257)).unwrap_err();
    assert!(
        matches!(&wide, Error::InvalidAdapter { what, reason } if what == "wide" && reason.contains("rank 257; at most 256")),
        "{wide:?}"
    );
    let nine: Vec<(&str, f32)> = names.iter().map(|name| (name.as_str(), 1.0)).collect();
    let ids = prompt(405, 9);
    let mut session = under(&engine, &[("n0", 1.0)], &ids);
    let unknown = change(&mut session, &[("n1", 1.0), ("unknown", 1.0)]);
    assert!(
        matches!(&unknown, Err(Error::AdapterNotLoaded { id }) if id == "unknown"),
        "{unknown:?}"
    );
    let cases: [(Set<'_>, &str); 5] = [
        (&nine, "at most 8"),
        (&[("n1", f32::NAN)], "`n1`"),
        (&[("n1", f32::INFINITY)], "`n1`"),
        (&[("n1", 1.0), ("n2", 1.0), ("n1", 0.5)], "twice"),
        (&[("x", 1.0), ("y", 1.0), ("z", 1.0)], "256"),
    ];
    for (adapters, part) in cases {
        match change(&mut session, adapters) {
            Err(Error::InvalidArgument { name: "adapters", reason }) => {
                assert!(reason.contains(part), "{reason}")
            }
            other => panic!("{part}: {other:?}"),
        }
        assert_eq!(session.adapters(), [("n0".to_string(), 1.0)]);
    }
    // Ranks of 256 together, and eight at once, do run.
    set(&mut session, &[("x", 1.0), ("y", 1.0)], KvPolicy::Recompute);
    set(&mut session, &nine[1..], KvPolicy::Recompute);
    generate(&mut session, greedy(2));
    assert!(engine.adapters().iter().filter(|state| state.pinned).all(|state| state.id != "n0"));
}

#[test]
fn as_many_sets_as_there_is_room_for() {
    let engine = with_budget(1 << 20);
    engine.add_adapter("a", &sized(1, 8)).unwrap();
    let ids = prompt(406, 9);
    let weight = |i: usize| 0.25 + i as f32 / 32.0;
    let mut sessions: Vec<Session> =
        (0..63).map(|i| under(&engine, &[("a", weight(i))], &ids)).collect();
    let mut more = session(&engine, &ids);
    let refused = change(&mut more, &[("a", 9.0)]);
    assert!(matches!(refused, Err(Error::AdapterSets { most: 63 })), "{refused:?}");
    set(&mut more, &[("a", weight(5))], KvPolicy::Recompute);
    for i in [0, 31, 62] {
        assert_eq!(
            generate(&mut sessions[i], greedy(8)).ids,
            alone(&sized(1, 8), weight(i), &ids),
            "set {i}"
        );
    }
    sessions.swap_remove(7);
    set(&mut more, &[("a", 9.0)], KvPolicy::Recompute);
    assert_eq!(generate(&mut more, greedy(8)).ids, alone(&sized(1, 8), 9.0, &ids));
    assert_eq!(generate(&mut sessions[20], greedy(8)).ids, alone(&sized(1, 8), weight(20), &ids));
}

#[test]
fn adapters_come_and_go_in_any_order_without_a_leak() {
    let unit = unit();
    let engine = with_budget(10 * unit);
    engine.add_adapter("first", &sized(0, 1)).unwrap();
    engine.unload_adapter("first").unwrap();
    let before = engine.gpu().allocated_bytes();
    let mut random = Random::new(407);
    let mut cycle = || {
        let mut there: Vec<String> = Vec::new();
        for i in 0..25 {
            if there.len() > 3 || (random.below(3) == 0 && !there.is_empty()) {
                let id = there.swap_remove(random.below(there.len() as u32) as usize);
                engine.unload_adapter(&id).unwrap();
            }
            there.push(format!("n{i}"));
            engine
                .add_adapter(&there[there.len() - 1], &sized(i, 1 + random.below(16) as usize))
                .unwrap();
            let states = engine.adapters();
            assert!(states.iter().all(|state| state.resident), "there is room for all");
            assert!(engine.gpu().allocated_bytes() - before <= 10 * unit, "within the budget");
        }
        there.iter().for_each(|id| engine.unload_adapter(id).unwrap());
    };
    (0..4).for_each(|_| cycle());
    assert!(engine.adapters().is_empty());
    // All of the budget is one range again.
    engine.add_adapter("all", &sized(1, 80)).unwrap();
    let (ids, all) = (prompt(407, 9), sized(1, 80));
    assert_eq!(
        generate(&mut under(&engine, &[("all", 0.5)], &ids), greedy(8)).ids,
        alone(&all, 0.5, &ids)
    );
}
