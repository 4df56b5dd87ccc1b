//! Who waits for whom: turns are of one submission, and what comes between two of them changes no
//! answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use epiphyte::adapter::Adapter;
use epiphyte::engine::Change;
use epiphyte::engine::plan::Class;
use epiphyte::format::gguf::Gguf;
use epiphyte::gpu::Gpu;
use epiphyte::{CancelToken, DType, Engine, EngineOptions, Error, GpuOptions, Session};

use super::adapters::{Set, cache, shape, under};
use super::registry::sized;
use super::{Answer, CONTEXT, generate, greedy, prompt, session};
use crate::common::{Random, golden, model_path};

/// The tiny model; every part of a pass is a submission.
fn in_small_turns(options: EngineOptions) -> Arc<Engine> {
    let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let mut gpu = Gpu::open(GpuOptions::default()).unwrap();
    gpu.submit_after(1);
    Engine::from_gguf(gpu, &gguf, &options, &mut |_| {}).unwrap()
}

/// Turns that `work` takes.
fn turns<T>(engine: &Engine, work: impl FnOnce() -> T) -> (u64, T) {
    let turns = || engine.gpu().counters.turns.load(Ordering::Relaxed);
    let before = turns();
    let done = work();
    (turns() - before, done)
}

fn submits(engine: &Engine) -> u64 {
    engine.gpu().counters.submits.load(Ordering::Relaxed)
}

fn change(session: &mut Session, adapters: Set<'_>) {
    session.set_adapters(&Change { adapters, ..Change::default() }).unwrap();
}

#[test]
fn a_long_prompt_keeps_no_one_from_their_turn() {
    let Some(path) = model_path() else { return };
    let options = EngineOptions { context: Some(640), ..EngineOptions::default() };
    let engine = Engine::open(path, options).unwrap();
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/adapters/pirate");
    engine.load_adapter("pirate", adapter).unwrap();
    // Of two passes.
    let ids = prompt(3, 20);
    let (mut reader, mut other) = (session(&engine, &prompt(1, 513)), session(&engine, &ids));
    // What is used first is compiled first.
    generate(&mut session(&engine, &ids[1..]), greedy(1));
    let most_waited = || engine.gpu().counters.most_waited.swap(0, Ordering::Relaxed);
    let (cancel, before) = (CancelToken::default(), submits(&engine));
    most_waited();
    let (refused, first) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| reader.prefill(&cancel));
        while submits(&engine) < before + 3 && !reading.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let waited = |what: &str, work: &mut dyn FnMut()| {
            let before = submits(&engine);
            work();
            let (most, all) = (most_waited(), submits(&engine) - before);
            println!("{what}: waited for {most}, {all} submissions meanwhile");
            assert!(most <= 1, "{what} waited for {most} submissions");
        };
        let mut fork = None;
        waited("fork", &mut || fork = Some(other.fork()));
        let mut fork = fork.unwrap();
        waited("tokens", &mut || assert_eq!(fork.tokens(), ids));
        waited("set_adapters", &mut || change(&mut fork, &[("pirate", 1.0)]));
        let mut fork = Some(fork);
        waited("drop", &mut || drop(fork.take()));
        let mut first = None;
        waited("first token", &mut || first = Some(generate(&mut other, greedy(1))));
        assert!(!reading.is_finished(), "the first token came before the prompt was read");
        cancel.cancel();
        (reading.join().unwrap(), first)
    });
    assert!(matches!(refused, Err(Error::Cancelled)), "{refused:?}");
    println!("{} submissions in all", submits(&engine) - before);
    other.truncate(0);
    other.push_tokens(&ids).unwrap();
    assert_eq!(first, Some(generate(&mut other, greedy(1))), "what it says without others");
}

/// Beside long passes a short one has to wait before each of its turns, so it takes few: each may
/// hold as much as the largest part of a long pass.
#[test]
fn a_short_prompt_takes_few_turns_beside_a_long_one() {
    let Some(path) = model_path() else { return };
    let options = EngineOptions { context: Some(640), ..EngineOptions::default() };
    let engine = Engine::open(path, options).unwrap();
    let submissions_of = |seed: u64, count: usize| {
        let mut session = session(&engine, &prompt(seed, count));
        let before = submits(&engine);
        super::prefill(&mut session);
        submits(&engine) - before
    };
    let (alone, long) = (submissions_of(1, 15), submissions_of(2, 129));
    let beside = submissions_of(3, 15);
    println!("15 tokens: {alone} submissions, after 129 in {long}: {beside}");
    // A part of 15 rows is no larger than the same one of a long pass, and at least two of them
    // fill a turn.
    assert!(2 * beside <= alone, "{beside} of {alone}");
}

#[test]
fn what_needs_no_device_takes_a_turn_or_none() {
    let engine = in_small_turns(EngineOptions::default());
    engine.add_adapter("a", &sized(1, 8)).unwrap();
    let mut parent = session(&engine, &prompt(2, 100));
    super::prefill(&mut parent);
    let (taken, mut fork) = turns(&engine, || parent.fork());
    assert_eq!(taken, 1, "fork");
    assert_eq!(turns(&engine, || fork.tokens().len()), (0, 100));
    assert_eq!(turns(&engine, || change(&mut fork, &[("a", 1.0)])).0, 1, "set_adapters");
    assert_eq!(turns(&engine, || fork.truncate(40)).0, 0, "truncate");
    assert!(engine.adapters()[0].pinned);
    assert_eq!(turns(&engine, || drop(fork)).0, 0, "drop");
    assert!(!engine.adapters()[0].pinned, "the next turn begins with what was given back");
    let before = submits(&engine);
    let (taken, _) = turns(&engine, || generate(&mut parent, greedy(1)));
    assert!(taken > submits(&engine) - before, "{taken} turns, none of two submissions");
    let mut generation = parent.generate(greedy(9)).unwrap();
    generation.next().unwrap().unwrap();
    assert_eq!(turns(&engine, || drop(generation)).0, 0, "a generation");
}

#[test]
fn an_adapter_is_read_again_between_two_turns() {
    let dir = tempfile::tempdir().unwrap();
    sized(1, 8).save_peft(dir.path().join("a"), DType::F32, &shape()).unwrap();
    let bytes = {
        let engine = in_small_turns(EngineOptions::default());
        engine.load_adapter("a", dir.path().join("a")).unwrap();
        engine.adapters()[0].n_bytes
    };
    let engine =
        in_small_turns(EngineOptions { adapter_budget: bytes, ..EngineOptions::default() });
    engine.load_adapter("a", dir.path().join("a")).unwrap();
    engine.add_adapter("b", &sized(2, 8)).unwrap();
    assert!(!engine.adapters()[0].resident, "a made room");
    let mut session = session(&engine, &prompt(4, 5));
    // One to find that it is absent, one to send it.
    assert_eq!(turns(&engine, || change(&mut session, &[("a", 1.0)])).0, 2);
    assert_eq!(turns(&engine, || change(&mut session, &[])).0, 1);
    assert_eq!(turns(&engine, || change(&mut session, &[("a", 1.0)])).0, 1, "it is there");
}

/// Pages are all given back, also those of sessions that were dropped while others computed.
#[test]
fn pages_that_were_given_back_serve_others() {
    let engine = in_small_turns(EngineOptions::default());
    let fill = |seed: u64| {
        let mut session = session(&engine, &prompt(seed, CONTEXT));
        super::prefill(&mut session);
    };
    fill(1);
    let bytes = engine.gpu().allocated_bytes();
    (2..20).for_each(fill);
    assert_eq!(engine.gpu().allocated_bytes(), bytes);
}

const SETS: [Set<'static>; 4] = [&[], &[("a", 1.0)], &[("b", -0.5)], &[("a", 0.5), ("b", 1.0)]];

/// What a thread of [`many_threads_give_what_each_gives_alone`] does.
struct Caller<'a> {
    engine: &'a Arc<Engine>,
    alone: &'a Arc<Engine>,
    random: Random,
    dir: &'a std::path::Path,
}

impl Caller<'_> {
    fn expected(&self, adapters: Set<'_>, ids: &[u32]) -> Answer {
        generate(&mut under(self.alone, adapters, ids), greedy(6))
    }

    fn round(&mut self, name: &str) {
        let seed = u64::from(self.random.below(6));
        // Some begin alike.
        let ids = prompt(seed, 1 + self.random.below(CONTEXT as u32 - 20) as usize);
        let adapters = SETS[self.random.below(4) as usize];
        let mut session = under(self.engine, adapters, &ids);
        match self.random.below(5) {
            0 => self.cancelled(&mut session),
            1 => {
                session.push_tokens(&prompt(9, 7)).unwrap();
                super::prefill(&mut session);
                let fork = session.fork();
                session.truncate(ids.len());
                drop(fork);
            }
            2 => {
                super::prefill(&mut session);
                let path = self.dir.join(name);
                session.save(&path).unwrap();
                session = self.engine.restore(&path).unwrap();
            }
            3 => {
                let other = SETS[self.random.below(4) as usize];
                change(&mut session, other);
                super::prefill(&mut session);
                change(&mut session, adapters);
            }
            _ => {}
        }
        let expected = self.expected(adapters, &ids);
        assert_eq!(generate(&mut session, greedy(6)), expected, "{} under {adapters:?}", ids.len());
    }

    /// Its prompt is cancelled at any moment; what was computed stays.
    fn cancelled(&mut self, session: &mut Session) {
        let (cancel, wait) = (CancelToken::default(), u64::from(self.random.below(3000)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(wait));
                cancel.cancel();
            });
            match session.prefill(&cancel) {
                Ok(()) | Err(Error::Cancelled) => {}
                Err(error) => panic!("{error:?}"),
            }
        });
    }
}

/// Two adapters that no session of the others uses, of changing size: the others' move, and one
/// that is too large is refused.
fn replace(engine: &Arc<Engine>, dir: &std::path::Path, round: usize) {
    let id = ["c", "d"][round % 2];
    match round % 5 {
        0 => engine.add_adapter(id, &sized(3, 8 + 8 * (round % 3))).map(drop).unwrap(),
        1 => engine.load_adapter(id, dir.join("d")).map(drop).unwrap(),
        2 => {
            let mut user = engine.session();
            change(
                &mut user,
                if engine.adapters().iter().any(|s| s.id == "c") { &[("c", 1.0)] } else { &[] },
            );
        }
        3 => {
            let refused = engine.add_adapter("large", &sized(4, 250));
            assert!(matches!(refused, Err(Error::AdapterBudget { .. })), "{refused:?}");
        }
        _ => engine.unload_adapter(id).unwrap(),
    }
}

/// Forks, cancelled prompts, swaps, files, a growing cache and moving adapters, in threads: each
/// answer is that of a session alone, to the token.
#[test]
fn many_threads_give_what_each_gives_alone() {
    const ROUNDS: usize = 30;
    let dir = tempfile::tempdir().unwrap();
    let adapters: [(&str, Adapter); 3] =
        [("a", sized(1, 8)), ("b", sized(2, 16)), ("d", sized(5, 24))];
    let alone = super::open(EngineOptions { skip_self_test: true, ..EngineOptions::default() });
    let bytes = {
        for (id, adapter) in &adapters {
            adapter.save_peft(dir.path().join(id), DType::F32, &shape()).unwrap();
            alone.load_adapter(id, dir.path().join(id)).unwrap();
        }
        alone.adapters().iter().map(|state| state.n_bytes).sum::<u64>()
    };
    let options = || EngineOptions { adapter_budget: 2 * bytes, ..EngineOptions::default() };
    let engine = in_small_turns(options());
    for (id, _) in &adapters[..2] {
        engine.load_adapter(id, dir.path().join(id)).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|thread: u64| {
                let (engine, alone, dir) = (&engine, &alone, dir.path());
                scope.spawn(move || {
                    let random = Random::new(700 + thread);
                    let mut caller = Caller { engine, alone, random, dir };
                    (0..ROUNDS).for_each(|_| caller.round(&format!("session.{thread}")));
                })
            })
            .collect();
        scope.spawn(|| {
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                replace(&engine, dir.path(), round);
            }
        });
        let ended: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|caller| caller.unwrap());
    });
    let moves = engine.gpu().counters.bind_groups.load(Ordering::Relaxed);
    println!("{moves} bind groups, {} submissions", submits(&engine));
    assert!(engine.adapters().iter().filter(|state| state.pinned).count() == 0);
}

/// Between any two turns of an answer the adapters' buffers move, its own adapter in them, and the
/// cache grows.
/// Bytes of adapters and of keys and values.
fn held(engine: &Engine) -> u64 {
    let of = |class| matches!(class, Class::Adapter | Class::KvCache);
    engine.class_bytes().iter().filter(|bytes| of(bytes.class)).map(|bytes| bytes.bytes).sum()
}

#[test]
fn adapters_and_cache_move_under_a_running_answer() {
    let (ids, said) = (prompt(11, 30), || greedy(120));
    let alone = super::open(EngineOptions { skip_self_test: true, ..EngineOptions::default() });
    alone.add_adapter("a", &sized(1, 8)).unwrap();
    let mut undisturbed = under(&alone, &[("a", 1.0)], &ids);
    let expected = generate(&mut undisturbed, said());
    for round in 0..6 {
        let engine = in_small_turns(EngineOptions::default());
        let before = ["p", "q", "r", "s"];
        before.iter().for_each(|id| drop(engine.add_adapter(id, &sized(2, 8)).unwrap()));
        engine.add_adapter("a", &sized(1, 8)).unwrap();
        let mut session = under(&engine, &[("a", 1.0)], &ids);
        let (start, bytes) = (submits(&engine), held(&engine));
        let others = std::thread::scope(|scope| {
            let answering = scope.spawn(|| generate(&mut session, said()));
            while submits(&engine) < start + 20 + round && !answering.is_finished() {
                std::thread::yield_now();
            }
            let mut others = Vec::new();
            for (i, id) in before.iter().enumerate() {
                // Each takes more than there is, so that what stays moves together.
                engine.unload_adapter(id).unwrap();
                engine
                    .add_adapter(&format!("large {i}"), &sized(3, [32, 64, 128, 250][i]))
                    .unwrap();
                let mut other = self::session(&engine, &prompt(50 + i as u64, 40));
                super::prefill(&mut other);
                others.push(other);
            }
            assert!(!answering.is_finished(), "it is still answering");
            assert_eq!(answering.join().unwrap(), expected, "round {round}");
            others
        });
        let grown = held(&engine);
        assert!(cache(&session) == cache(&undisturbed), "keys and values in round {round}");
        assert!(others.len() == 4 && grown > 2 * bytes, "{bytes} bytes, then {grown}");
    }
}
