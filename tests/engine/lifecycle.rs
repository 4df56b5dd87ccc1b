//! The table of `docs/lifecycle.md`: memory pressure at each level, heat, background, a lost device,
//! at rest, in mid-answer and in mid-prompt. What is said never changes by it.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use epiphyte::engine::plan::Class;
use epiphyte::engine::{
    Change, EnginePhase, EngineState, KvPolicy, MemoryLevel, MemoryReport, ThermalState,
    TrainingPace,
};
use epiphyte::format::gguf::Gguf;
use epiphyte::gpu::Gpu;
use epiphyte::{
    CancelToken, DType, Engine, EngineOptions, Error, GenerateOptions, GpuOptions, Session,
};

use super::adapters::{cache, set, shape, under};
use super::registry::sized;
use super::{Answer, PAGE, generate, greedy, open, prefill, prompt, sampled, session};
use crate::common::golden;

pub(crate) const LEVELS: [MemoryLevel; 4] =
    [MemoryLevel::Moderate, MemoryLevel::Low, MemoryLevel::Critical, MemoryLevel::Complete];

fn options() -> EngineOptions {
    EngineOptions { skip_self_test: true, ..EngineOptions::default() }
}

/// All abilities of the device unused: what is computed twice is the same bit for bit.
fn reference() -> EngineOptions {
    let gpu = GpuOptions {
        subgroups: false,
        f16: false,
        cooperative_matrix: false,
        immediates: false,
        large_bindings: false,
        ..GpuOptions::default()
    };
    EngineOptions { gpu, kv_f32: true, ..options() }
}

pub(crate) fn bytes(engine: &Engine, class: Class) -> u64 {
    engine.class_bytes().iter().find(|of| of.class == class).unwrap().bytes
}

/// The logits after the last of `ids` more tokens, as bits.
fn logits(session: &mut Session, ids: &[u32]) -> Vec<u32> {
    session.push_tokens(ids).unwrap();
    let (last, mut bits) = (session.tokens().len() - 1, Vec::new());
    session.logits(last, |_, logits| bits = logits.iter().map(|l| l.to_bits()).collect()).unwrap();
    bits
}

/// An engine with something of everything: a prompt that nobody uses, sessions with and without an
/// adapter, adapters from a file and from memory, in use and not.
struct Phone {
    engine: Arc<Engine>,
    plain: Session,
    adapted: Session,
    dir: tempfile::TempDir,
}

impl Phone {
    fn new(options: EngineOptions) -> Self {
        let (engine, dir) = (open(options), tempfile::tempdir().unwrap());
        sized(1, 8).save_peft(dir.path().join("a"), DType::F32, &shape()).unwrap();
        engine.load_adapter("a", dir.path().join("a")).unwrap();
        engine.add_adapter("b", &sized(2, 8)).unwrap();
        engine.add_adapter("c", &sized(3, 8)).unwrap();
        prefill(&mut session(&engine, &prompt(1, 6 * PAGE)));
        let mut plain = session(&engine, &prompt(2, 2 * PAGE + 5));
        let mut adapted = under(&engine, &[("a", 1.0), ("b", -0.5)], &prompt(3, PAGE + 9));
        generate(&mut plain, greedy(4));
        generate(&mut adapted, greedy(4));
        Self { engine, plain, adapted, dir }
    }

    /// What both sessions say next, and what they are then.
    fn says(&mut self) -> [(Answer, Vec<u32>); 2] {
        [&mut self.plain, &mut self.adapted]
            .map(|session| (generate(session, greedy(5)), logits(session, &[7, 8, 9])))
    }
}

#[test]
fn each_level_frees_what_it_names_and_the_next_call_works() {
    let undisturbed = Phone::new(reference()).says();
    for level in LEVELS {
        let mut phone = Phone::new(reference());
        let engine = Arc::clone(&phone.engine);
        let before = Class::ALL.map(|class| bytes(&engine, class));
        let said = [phone.plain.tokens().to_vec(), phone.adapted.tokens().to_vec()];
        let report = engine.memory_pressure(level);
        assert_eq!(report.level, level);
        for (class, before) in Class::ALL.into_iter().zip(before) {
            let freed = before - bytes(&engine, class);
            assert_eq!(report.freed_of(class), freed, "{level:?}: {class:?}");
        }
        assert_eq!(report.device_bytes, engine.device_bytes());
        assert_freed(&report, &before);
        assert_eq!([phone.plain.tokens(), phone.adapted.tokens()], [&said[0][..], &said[1][..]]);
        assert!(phone.says() == undisturbed, "what is said after {level:?}");
        assert_eq!(engine.state().reloads, u64::from(level == MemoryLevel::Complete));
        let resident = |id: &str| engine.adapters().iter().any(|a| a.id == id && a.resident);
        assert!(resident("a") && resident("b"), "{level:?}: those in use are back");
        assert_eq!(bytes(&engine, Class::Weights), before[Class::Weights as usize]);
        let mut third = under(&engine, &[("c", 1.0)], &prompt(4, 9));
        generate(&mut third, greedy(2));
    }
}

fn assert_freed(report: &MemoryReport, before: &[u64; 7]) {
    let level = report.level;
    let (freed, before) = (|class| report.freed_of(class), |class: Class| before[class as usize]);
    // Of 16 pages six hold a prompt that nobody uses.
    assert!(freed(Class::KvCache) > 0, "{level:?}");
    let adapters = if level >= MemoryLevel::Low { before(Class::Adapter) } else { 0 };
    assert_eq!(freed(Class::Adapter), adapters, "{level:?}");
    assert_eq!(report.adapters_left, if level >= MemoryLevel::Low { 0 } else { 3 });
    let unloaded = level == MemoryLevel::Complete;
    let weights = if unloaded { before(Class::Weights) } else { 0 };
    assert_eq!(freed(Class::Weights), weights, "{level:?}");
    assert_eq!(report.model_left, !unloaded);
    if level == MemoryLevel::Critical {
        // A page is left to begin with.
        assert!(before(Class::KvCache) - freed(Class::KvCache) <= before(Class::KvCache) / 8);
    }
    if unloaded {
        assert_eq!(freed(Class::KvCache), before(Class::KvCache));
        assert_eq!(
            report.device_bytes,
            report.device_bytes.min(before(Class::Overhead) + (1 << 19))
        );
    }
}

#[test]
fn each_level_takes_more_than_the_one_before() {
    let phone = Phone::new(options());
    let freed = LEVELS.map(|level| phone.engine.memory_pressure(level).freed_bytes());
    assert!(freed.iter().all(|freed| *freed > 0), "{freed:?}");
    let again = LEVELS.map(|level| phone.engine.memory_pressure(level).freed_bytes());
    assert_eq!(again, [0; 4], "there is nothing left");
    assert_eq!(phone.engine.state().memory_warnings, 8);
    assert_eq!(phone.engine.state().phase, EnginePhase::Unloaded);
}

/// Tokens of an answer, with something done before each.
fn answer_with(
    session: &mut Session,
    options: GenerateOptions,
    mut before: impl FnMut(usize),
) -> Vec<u32> {
    let mut generation = session.generate(options).unwrap();
    let mut ids = Vec::new();
    loop {
        before(ids.len());
        match generation.next() {
            Some(token) => ids.push(token.unwrap().id),
            None => return ids,
        }
    }
}

#[test]
fn pressure_between_any_two_tokens_changes_no_answer() {
    let mut undisturbed = Phone::new(reference());
    let expected = [
        answer_with(&mut undisturbed.plain, sampled(7, 1), |_| {}),
        answer_with(&mut undisturbed.adapted, sampled(7, 1), |_| {}),
    ];
    let next = [logits(&mut undisturbed.plain, &[5]), logits(&mut undisturbed.adapted, &[5])];
    for level in LEVELS {
        let mut phone = Phone::new(reference());
        let engine = Arc::clone(&phone.engine);
        for (session, (expected, next)) in
            [&mut phone.plain, &mut phone.adapted].into_iter().zip(expected.iter().zip(&next))
        {
            let ids = answer_with(session, sampled(7, 1), |_| {
                engine.memory_pressure(level);
            });
            assert_eq!(ids, *expected, "{level:?} before each token");
            assert!(logits(session, &[5]) == *next, "{level:?}: bits afterwards");
        }
    }
}

/// The tiny model, a submission for each part of a pass.
fn in_small_turns() -> Arc<Engine> {
    let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let mut gpu = Gpu::open(reference().gpu).unwrap();
    gpu.submit_after(1);
    Engine::from_gguf(gpu, &gguf, &reference(), &mut |_| {}).unwrap()
}

/// Calls `disturb` with 0, 1 and so on from another thread as long as `work` goes on; gives how
/// often.
pub(crate) fn disturbed<T>(disturb: impl Fn(usize) + Send, work: impl FnOnce() -> T) -> (usize, T) {
    std::thread::scope(|scope| {
        // Dropped, also by a panic, it ends the thread.
        let (working, over) = mpsc::channel::<()>();
        let disturbing = scope.spawn(move || {
            let mut times = 0;
            while over.recv_timeout(Duration::from_millis(4)) == Err(RecvTimeoutError::Timeout) {
                disturb(times);
                times += 1;
            }
            times
        });
        let done = work();
        drop(working);
        (disturbing.join().unwrap(), done)
    })
}

#[test]
fn pressure_from_another_thread_changes_no_prompt_and_no_answer() {
    let ids = prompt(5, 200);
    let engine = in_small_turns();
    engine.add_adapter("a", &sized(1, 8)).unwrap();
    let adapters = [&[][..], &[("a", 1.0)]];
    let expected =
        adapters.map(|adapters| generate(&mut under(&engine, adapters, &ids), greedy(20)));
    let (times, ()) = disturbed(
        |time| drop(engine.memory_pressure(LEVELS[time % 4])),
        || {
            std::thread::scope(|scope| {
                for (adapters, expected) in adapters.into_iter().zip(&expected) {
                    let (engine, ids) = (&engine, &ids);
                    scope.spawn(move || {
                        for _ in 0..4 {
                            let mut session = under(engine, adapters, ids);
                            let fork = session.fork();
                            assert_eq!(generate(&mut session, greedy(20)), *expected);
                            drop(session);
                            let mut fork = fork;
                            assert_eq!(generate(&mut fork, greedy(20)), *expected);
                        }
                    });
                }
            });
        },
    );
    println!("memory was asked for {times} times");
    assert!(times > 8, "{times}");
}

/// Positions of the f32 cache that differ anywhere.
fn differing(one: &[(String, Vec<u8>)], other: &[(String, Vec<u8>)]) -> Vec<usize> {
    // A page of the tiny model: two heads, then positions of 32 elements.
    let (position, page) = (4 * 32, 2 * PAGE * 4 * 32);
    let pairs = one.iter().zip(other).filter(|((name, _), _)| name.starts_with("layers"));
    let at = pairs.flat_map(|((_, one), (_, other))| {
        assert_eq!(one.len(), other.len());
        let differs = one.iter().zip(other).enumerate().filter(|(_, (a, b))| a != b);
        differs.map(|(at, _)| at / page * PAGE + at % page / position % PAGE)
    });
    let at: std::collections::BTreeSet<usize> = at.collect();
    at.into_iter().collect()
}

/// Keys and values of a prompt, of an answer and of a prompt after it, over several pages and parts
/// of attention, are made again as they were.
#[test]
fn what_is_computed_again_is_the_same_bit_for_bit() {
    let hardware = || {
        let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
        let mut gpu = Gpu::open(reference().gpu).unwrap();
        gpu.treat_as_hardware();
        Engine::from_gguf(gpu, &gguf, &reference(), &mut |_| {}).unwrap()
    };
    for (engine, tier) in [(open(reference()), "reference"), (hardware(), "as on hardware")] {
        engine.add_adapter("a", &sized(1, 8)).unwrap();
        for adapters in [&[][..], &[("a", 1.0)]] {
            let mut session = under(&engine, adapters, &prompt(12, 100));
            generate(&mut session, sampled(50, 4));
            session.push_tokens(&prompt(13, 23)).unwrap();
            generate(&mut session, sampled(30, 5));
            session.push_tokens(&prompt(14, 5)).unwrap();
            prefill(&mut session);
            let before = cache(&session);
            assert_eq!(session.tokens().len(), 208);
            for level in [MemoryLevel::Moderate, MemoryLevel::Critical, MemoryLevel::Complete] {
                engine.memory_pressure(level);
                prefill(&mut session);
                let mut differing = differing(&before, &cache(&session));
                // The rest of the last page is whatever was there.
                differing.retain(|position| *position < session.tokens().len() - 1);
                assert_eq!(differing, [0_usize; 0], "{tier}, {adapters:?}: {level:?}");
            }
        }
    }
}

#[test]
fn a_saved_session_is_whole_whatever_had_to_make_room() {
    let (phone, dir) = (Phone::new(reference()), tempfile::tempdir().unwrap());
    let path = dir.path().join("session");
    let expected = Phone::new(reference()).says();
    for level in LEVELS {
        phone.engine.memory_pressure(level);
        phone.adapted.save(&path).unwrap();
        phone.engine.memory_pressure(level);
        let mut restored = phone.engine.restore(&path).unwrap();
        let said = (generate(&mut restored, greedy(5)), logits(&mut restored, &[7, 8, 9]));
        assert!(said == expected[1], "{level:?}");
    }
}

#[test]
fn a_session_that_kept_its_history_goes_on_as_if_it_had_not() {
    let mut phone = Phone::new(reference());
    set(&mut phone.plain, &[("a", 1.0)], KvPolicy::Keep);
    let tokens = phone.plain.tokens().to_vec();
    phone.engine.memory_pressure(MemoryLevel::Critical);
    let mut fresh = under(&phone.engine, &[("a", 1.0)], &tokens);
    assert!(logits(&mut phone.plain, &[4]) == logits(&mut fresh, &[4]));
}

#[test]
fn an_adapter_that_could_not_be_read_again_stays() {
    let mut phone = Phone::new(reference());
    let expected = Phone::new(reference()).says();
    std::fs::remove_dir_all(phone.dir.path().join("a")).unwrap();
    for level in LEVELS {
        let report = phone.engine.memory_pressure(level);
        assert_eq!(report.adapters_left, if level == MemoryLevel::Moderate { 3 } else { 1 });
    }
    assert!(phone.says() == expected, "it is used as before");
    // A new session gets it as well, as it is there.
    generate(&mut under(&phone.engine, &[("a", 1.0)], &prompt(6, 5)), greedy(1));
}

#[test]
fn an_adapter_that_went_away_meanwhile_is_refused_by_name() {
    let mut phone = Phone::new(options());
    phone.engine.memory_pressure(MemoryLevel::Low);
    let folder = phone.dir.path().join("a");
    std::fs::rename(&folder, phone.dir.path().join("elsewhere")).unwrap();
    let tokens = phone.adapted.tokens().to_vec();
    let refused = phone.adapted.generate(greedy(3)).unwrap().next().unwrap();
    assert!(matches!(&refused, Err(Error::Io { path, .. }) if path.starts_with(&folder)));
    assert_eq!(phone.adapted.tokens(), tokens);
    // Sessions without it go on.
    generate(&mut phone.plain, greedy(3));
    // Another one in its place is not taken for it.
    sized(9, 8).save_peft(&folder, DType::F32, &shape()).unwrap();
    let changed = phone.adapted.prefill(&CancelToken::default());
    let named = |what: &str| what == "a";
    assert!(
        matches!(&changed, Err(Error::InvalidAdapter { what, .. }) if named(what)),
        "{changed:?}"
    );
    // Back where it was it works.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(phone.dir.path().join("elsewhere"), &folder).unwrap();
    generate(&mut phone.adapted, greedy(3));
}

#[test]
fn a_model_file_that_went_away_or_is_another_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::copy(golden("tiny_llama.gguf"), &path).unwrap();
    let engine = Engine::open(&path, options()).unwrap();
    let mut session = session(&engine, &prompt(7, 40));
    let expected = generate(&mut session.fork(), greedy(4));
    engine.memory_pressure(MemoryLevel::Complete);
    std::fs::remove_file(&path).unwrap();
    let gone = session.prefill(&CancelToken::default());
    assert!(matches!(&gone, Err(Error::Io { path: named, .. }) if *named == path), "{gone:?}");
    assert_eq!(engine.state().phase, EnginePhase::Unloaded);
    std::fs::copy(golden("tiny_llama_llama3.gguf"), &path).unwrap();
    let other = session.prefill(&CancelToken::default());
    assert!(matches!(other, Err(Error::BaseMismatch { .. })), "{other:?}");
    std::fs::copy(golden("tiny_llama.gguf"), &path).unwrap();
    assert_eq!(generate(&mut session, greedy(4)), expected);
}

#[test]
fn a_model_without_a_name_is_kept_open_or_stays() {
    let bytes = || std::fs::read(golden("tiny_llama.gguf")).unwrap();
    let kept = Gguf::from_bytes(bytes()).unwrap();
    let kept = Engine::open_gguf(kept, options(), &mut |_| {}).unwrap();
    assert!(!kept.memory_pressure(MemoryLevel::Complete).model_left);
    generate(&mut session(&kept, &[5, 6]), greedy(2));
    let gguf = Gguf::from_bytes(bytes()).unwrap();
    let gpu = Gpu::open(GpuOptions::default()).unwrap();
    let borrowed = Engine::from_gguf(gpu, &gguf, &options(), &mut |_| {}).unwrap();
    drop(gguf);
    let mut session = session(&borrowed, &prompt(8, 40));
    let expected = generate(&mut session.fork(), greedy(4));
    let report = borrowed.memory_pressure(MemoryLevel::Complete);
    assert!(report.model_left && report.freed_of(Class::KvCache) > 0);
    assert_eq!(generate(&mut session, greedy(4)), expected);
}

#[test]
fn levels_are_those_of_the_platforms() {
    for (level, of) in [(5, 0), (10, 1), (15, 2), (20, 0), (40, 2), (60, 3), (80, 3), (-1, 0)] {
        assert_eq!(MemoryLevel::from_trim_memory(level), LEVELS[of], "{level}");
    }
    assert_eq!(MemoryLevel::from_memory_warning(false), MemoryLevel::Critical);
    assert_eq!(MemoryLevel::from_memory_warning(true), MemoryLevel::Complete);
    let thermal = [0, 1, 2, 3, 4, 6].map(ThermalState::from_android);
    use ThermalState::{Critical, Fair, Nominal, Serious};
    assert_eq!(thermal, [Nominal, Nominal, Fair, Serious, Critical, Critical]);
}

fn is_refused<T>(done: Result<T, Error>) -> bool {
    matches!(done, Err(Error::Background))
}

#[test]
fn the_background_refuses_what_needs_the_gpu_and_nothing_else() {
    let mut phone = Phone::new(reference());
    let engine = Arc::clone(&phone.engine);
    let expected = Phone::new(reference()).says();
    let saved = phone.dir.path().join("session");
    engine.background();
    engine.background();
    assert_eq!(engine.state().phase, EnginePhase::Background);
    assert_eq!(engine.state().training, TrainingPace::Paused);
    let submits = || engine.gpu().counters.submits.load(Ordering::Relaxed);
    let before = submits();
    // What needs no GPU.
    let mut fork = phone.plain.fork();
    fork.push_tokens(&[5, 6]).unwrap();
    fork.push_text("hello").unwrap();
    fork.truncate(3);
    assert_eq!(fork.adapters(), []);
    assert_eq!(engine.adapters().len(), 3);
    engine.unload_adapter("c").unwrap();
    phone.plain.save(&saved).unwrap();
    drop(fork);
    // What does.
    let mut fork = phone.plain.fork();
    fork.push_tokens(&[5, 6]).unwrap();
    assert!(is_refused(fork.prefill(&CancelToken::default())));
    assert!(is_refused(fork.logits(0, |_, _| {})));
    assert!(is_refused(fork.generate(greedy(3)).unwrap().next().unwrap()));
    assert!(is_refused(engine.add_adapter("d", &sized(4, 8))));
    assert!(is_refused(engine.load_adapter("a", phone.dir.path().join("a"))));
    let change = Change { adapters: &[("b", 1.0)], ..Change::default() };
    assert!(is_refused(fork.set_adapters(&change)));
    let restored = engine.restore(&saved).unwrap();
    assert_eq!(restored.tokens(), phone.plain.tokens());
    // Memory is asked for when an app is in the background.
    for level in LEVELS {
        engine.memory_pressure(level);
    }
    assert_eq!(submits(), before, "nothing is submitted");
    engine.foreground();
    assert_eq!(engine.state().phase, EnginePhase::Unloaded);
    assert!(phone.says() == expected);
    let mut restored = restored;
    assert_eq!(generate(&mut restored, greedy(5)), expected[0].0);
}

#[test]
fn an_answer_goes_on_in_the_foreground() {
    let mut phone = Phone::new(reference());
    let expected = answer_with(&mut Phone::new(reference()).plain, sampled(9, 2), |_| {});
    let engine = Arc::clone(&phone.engine);
    let mut generation = phone.plain.generate(sampled(9, 2)).unwrap();
    let (mut ids, mut refused) = (Vec::new(), 0);
    for round in 0.. {
        engine.background();
        if round % 2 == 0 {
            engine.memory_pressure(LEVELS[round / 2 % 4]);
        }
        match generation.next() {
            None => break,
            Some(Err(Error::Background)) => refused += 1,
            // The last ones were computed before.
            Some(token) => ids.push(token.unwrap().id),
        }
        engine.foreground();
        ids.extend(generation.next().map(|token| token.unwrap().id));
    }
    assert_eq!(ids, expected);
    assert!(refused >= ids.len() / 2, "{refused}");
}

#[test]
fn a_prompt_that_is_refused_in_the_middle_goes_on() {
    let engine = in_small_turns();
    let ids = prompt(9, 220);
    let expected = generate(&mut session(&engine, &ids), greedy(3));
    let mut refused = 0;
    for wait in 0..12 {
        let mut session = session(&engine, &ids);
        engine.memory_pressure(MemoryLevel::Critical);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(wait * 4));
                engine.background();
                let submits = || engine.gpu().counters.submits.load(Ordering::Relaxed);
                let before = submits();
                std::thread::sleep(Duration::from_millis(10));
                assert_eq!(submits(), before, "nothing is submitted in the background");
            });
            session.prefill(&CancelToken::default())
        });
        refused += usize::from(is_refused(done));
        engine.foreground();
        assert_eq!(generate(&mut session, greedy(3)), expected);
    }
    println!("{refused} of 12 were refused");
    assert!(refused > 0);
}

#[test]
fn heat_costs_time_and_changes_no_token() {
    let engine = open(options());
    let ids = prompt(10, 30);
    // Step by step; the least of three, since a machine may have other work.
    let stepwise = || GenerateOptions { prompt_lookup_num_tokens: Some(0), ..greedy(40) };
    generate(&mut session(&engine, &ids), stepwise());
    let timed = |thermal| {
        engine.thermal(thermal);
        let mut least = Duration::MAX;
        let answers = [(); 3].map(|()| {
            let began = Instant::now();
            let answer = generate(&mut session(&engine, &ids), stepwise());
            least = least.min(began.elapsed());
            answer
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        let [answer, ..] = answers;
        (answer, least)
    };
    let (expected, cool) = timed(ThermalState::Nominal);
    for thermal in [ThermalState::Fair, ThermalState::Serious] {
        assert_eq!(timed(thermal).0, expected);
    }
    let (said, hot) = timed(ThermalState::Critical);
    assert_eq!(said, expected);
    assert!(hot > cool, "{hot:?} for {cool:?}");
    assert_eq!(engine.state().thermal, ThermalState::Critical);
    assert_eq!(engine.state().training, TrainingPace::Paused);
}

#[test]
fn a_lost_device_is_opened_again_once() {
    let mut phone = Phone::new(reference());
    let engine = Arc::clone(&phone.engine);
    let expected = Phone::new(reference()).says();
    engine.gpu().lose();
    assert!(phone.says() == expected, "at rest");
    let state = engine.state();
    assert_eq!((state.phase, state.device_losses, state.reloads), (EnginePhase::Ready, 1, 1));
    engine.gpu().lose();
    phone.plain.push_tokens(&[5, 6, 7]).unwrap();
    let tokens = phone.plain.tokens().to_vec();
    let lost =
        |done: Result<(), Error>| assert!(matches!(done, Err(Error::DeviceLost(_))), "{done:?}");
    lost(phone.plain.prefill(&CancelToken::default()));
    lost(phone.plain.logits(0, |_, _| {}));
    lost(phone.plain.generate(greedy(2)).unwrap().next().unwrap().map(drop));
    lost(engine.add_adapter("d", &sized(4, 8)).map(drop));
    lost(phone.plain.set_adapters(&Change { adapters: &[("b", 0.5)], ..Change::default() }));
    assert_eq!(phone.plain.tokens(), tokens);
    let state = engine.state();
    assert_eq!((state.phase, state.device_losses), (EnginePhase::Lost, 2));
    engine.memory_pressure(MemoryLevel::Complete);
    engine.background();
    engine.foreground();
    assert_eq!(engine.state().phase, EnginePhase::Lost);
    // What was said is not lost.
    let path = phone.dir.path().join("session");
    phone.plain.save(&path).unwrap();
    let again = open(reference());
    generate(&mut again.restore(&path).unwrap(), greedy(2));
}

#[test]
fn a_device_that_is_lost_in_mid_answer_changes_none() {
    let expected = answer_with(&mut Phone::new(reference()).adapted, sampled(9, 3), |_| {});
    for at in [0, 1, 4, 8] {
        let mut phone = Phone::new(reference());
        let engine = Arc::clone(&phone.engine);
        let ids = answer_with(&mut phone.adapted, sampled(9, 3), |token| {
            if token == at {
                engine.gpu().lose();
            }
        });
        assert_eq!(ids, expected, "lost before token {at}");
        assert_eq!(engine.state().device_losses, 1);
    }
}

#[test]
fn a_device_that_is_lost_in_mid_prompt_changes_no_answer() {
    let ids = prompt(11, 200);
    let expected = generate(&mut session(&open(reference()), &ids), greedy(8));
    for wait in [0, 3, 10, 25] {
        let engine = open(reference());
        let said = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(wait));
                engine.gpu().lose();
            });
            let others =
                [(); 2].map(|()| scope.spawn(|| generate(&mut session(&engine, &ids), greedy(8))));
            others.map(|other| other.join().unwrap())
        });
        assert!(said.iter().all(|said| *said == expected), "after {wait} ms");
    }
}

#[test]
fn changes_are_told_of_in_order() {
    let engine = open(options());
    let told: Arc<Mutex<Vec<EngineState>>> = Arc::default();
    let watch = {
        let told = Arc::clone(&told);
        engine.watch_state(move |state| told.lock().unwrap().push(state))
    };
    engine.thermal(ThermalState::Serious);
    engine.thermal(ThermalState::Serious);
    engine.thermal(ThermalState::Nominal);
    engine.background();
    engine.foreground();
    engine.memory_pressure(MemoryLevel::Complete);
    generate(&mut session(&engine, &[5, 6]), greedy(1));
    engine.gpu().lose();
    generate(&mut session(&engine, &[5, 6]), greedy(1));
    drop(watch);
    engine.thermal(ThermalState::Fair);
    let told = told.lock().unwrap();
    let mut phases: Vec<EnginePhase> = told.iter().map(|state| state.phase).collect();
    phases.dedup();
    use EnginePhase::{Background, Loading, Ready, Unloaded};
    let lost = [Unloaded, Loading, Ready];
    assert_eq!(phases, [&[Ready, Background, Ready], &lost[..], &lost[..]].concat());
    assert!(told.is_sorted_by_key(|state| state.changes));
    assert_eq!(told[0].training, TrainingPace::Paused);
    assert_eq!(told[1].training, TrainingPace::Full);
    let last = told.last().unwrap();
    assert_eq!((last.reloads, last.device_losses, last.memory_warnings), (2, 1, 1));
}
