//! Memory pressure, heat and the background, through the border.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use epiphyte_bindings::{
    EnginePhase, EngineState, EpiphyteError, KvPolicy, MemoryClass, MemoryLevel, States,
    ThermalState, TrainingPace, memory_level_from_memory_warning, memory_level_from_trim_memory,
    thermal_state_from_android,
};
use pollster::block_on;

use super::{PROMPT, engine, expected, greedy, rest, session};

#[test]
fn memory_is_given_back_in_the_middle_of_an_answer() {
    let levels =
        [MemoryLevel::Moderate, MemoryLevel::Low, MemoryLevel::Critical, MemoryLevel::Complete];
    for level in levels {
        let engine = engine();
        let session = session(&engine);
        let answer = session.generate(greedy(12)).unwrap();
        let mut tokens: Vec<_> =
            (0..4).map(|_| block_on(answer.next()).unwrap().unwrap()).collect();
        let report = block_on(engine.memory_pressure(level)).unwrap();
        assert_eq!((report.level, report.device_bytes), (level, engine.device_bytes().unwrap()));
        assert_eq!(report.freed_bytes, report.freed.iter().map(|freed| freed.bytes).sum::<i64>());
        assert_eq!(report.model_left, level != MemoryLevel::Complete);
        let phase = engine.state().unwrap().phase;
        assert_eq!(phase == EnginePhase::Unloaded, level == MemoryLevel::Complete);
        tokens.extend(rest(&answer));
        assert_eq!(tokens, expected(12), "{level:?}");
        let state = engine.state().unwrap();
        assert_eq!((state.phase, state.memory_warnings), (EnginePhase::Ready, 1));
        assert_eq!(state.reloads, i64::from(level == MemoryLevel::Complete));
    }
}

#[test]
fn an_answer_waits_for_the_foreground() {
    let engine = engine();
    let session = session(&engine);
    let answer = session.generate(greedy(12)).unwrap();
    let mut tokens = vec![block_on(answer.next()).unwrap().unwrap()];
    engine.background();
    engine.background();
    assert_eq!(engine.state().unwrap().phase, EnginePhase::Background);
    // Those under way come; then it is refused, as often as one asks.
    let refused = loop {
        match block_on(answer.next()) {
            Ok(token) => tokens.push(token.unwrap()),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, EpiphyteError::Background { .. }), "{refused:?}");
    assert!(!refused.hint().is_empty() && answer.finish_reason().is_none());
    assert!(matches!(block_on(answer.next()), Err(EpiphyteError::Background { .. })));
    let other = super::session(&engine);
    assert!(other.token_count() > 0, "what needs no GPU goes on");
    engine.foreground();
    tokens.extend(rest(&answer));
    assert_eq!(tokens, expected(12));
    assert_eq!(rest(&other.generate(greedy(3)).unwrap()), expected(3));
}

#[test]
fn heat_changes_the_pace_and_nothing_else() {
    let engine = engine();
    for (state, pace) in [
        (ThermalState::Fair, TrainingPace::Slowed),
        (ThermalState::Serious, TrainingPace::Paused),
        (ThermalState::Critical, TrainingPace::Paused),
        (ThermalState::Nominal, TrainingPace::Full),
    ] {
        engine.thermal(state);
        let told = engine.state().unwrap();
        assert_eq!((told.thermal, told.training), (state, pace));
        assert_eq!(rest(&session(&engine).generate(greedy(4)).unwrap()), expected(4));
    }
}

/// A state that another thread waits for.
fn awaited(states: &Arc<States>) -> thread::JoinHandle<Option<EngineState>> {
    let states = Arc::clone(states);
    thread::spawn(move || block_on(states.next()))
}

fn pending(states: &States) -> bool {
    let mut next = Box::pin(states.next());
    next.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Pending
}

#[test]
fn a_change_of_state_is_waited_for() {
    let engine = engine();
    let (states, late) = (Arc::clone(&engine).states(), Arc::clone(&engine).states());
    let before = block_on(states.next()).unwrap();
    assert_eq!(before, engine.state().unwrap());
    assert!(pending(&states));
    let waiting = awaited(&states);
    engine.thermal(ThermalState::Fair);
    let after = waiting.join().unwrap().unwrap();
    assert!(after.changes > before.changes && after.thermal == ThermalState::Fair);
    // One that was missed is there at once; one that has not come is not.
    assert_eq!(block_on(late.next()), Some(after));
    assert!(pending(&late) && pending(&states));
    let waiting = [awaited(&states), awaited(&late)];
    late.cancel();
    let [closed, cancelled] = waiting;
    assert_eq!(cancelled.join().unwrap(), None);
    assert!(!closed.is_finished());
    engine.close();
    assert_eq!(closed.join().unwrap(), None);
    assert_eq!(block_on(Arc::clone(&engine).states().next()), None);
}

#[test]
fn who_waits_for_a_state_keeps_no_engine() {
    let engine = engine();
    let states = Arc::clone(&engine).states();
    block_on(states.next()).unwrap();
    let (waiting, gone) = (awaited(&states), Arc::downgrade(&engine));
    drop(engine);
    assert_eq!(waiting.join().unwrap(), None);
    assert!(gone.upgrade().is_none());
}

#[test]
fn a_closed_engine_minds_nothing() {
    let engine = engine();
    engine.close();
    engine.thermal(ThermalState::Critical);
    engine.background();
    engine.foreground();
    let closed = |error| matches!(error, Some(EpiphyteError::Closed { .. }));
    assert!(closed(engine.state().err()) && closed(engine.class_bytes().err()));
    assert!(closed(block_on(engine.memory_pressure(MemoryLevel::Low)).err()));
}

#[test]
fn levels_are_those_of_the_systems() {
    assert_eq!(memory_level_from_trim_memory(15), MemoryLevel::Critical);
    assert_eq!(memory_level_from_trim_memory(80), MemoryLevel::Complete);
    assert_eq!(memory_level_from_memory_warning(false), MemoryLevel::Critical);
    assert_eq!(memory_level_from_memory_warning(true), MemoryLevel::Complete);
    assert_eq!(thermal_state_from_android(2), ThermalState::Fair);
    let engine = engine();
    let classes = engine.class_bytes().unwrap();
    let weights = classes.iter().find(|class| class.class == MemoryClass::Weights).unwrap();
    assert!(weights.bytes > 0);
    // What needs no GPU is as ever in the background; a change of adapters to the same is none.
    engine.background();
    let session = engine.session().unwrap();
    block_on(session.push_text(PROMPT.into())).unwrap();
    block_on(session.set_adapters(Vec::new(), KvPolicy::Recompute)).unwrap();
    block_on(session.save(super::text(tempfile::tempdir().unwrap().path().join("s")))).unwrap();
}
