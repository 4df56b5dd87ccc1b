//! A model whose layers see the last 40 positions only, but for every third one: what is kept of
//! them, and that every way through a session makes what a fresh one makes.

use std::sync::Arc;

use epiphyte::engine::MemoryLevel;
use epiphyte::{Engine, EngineOptions, Session};

use super::{Answer, PAGE, generate, greedy, prefill, prompt, session};
use crate::common::{Random, golden};

const WINDOW: usize = 40;

fn open() -> Arc<Engine> {
    Engine::open(golden("families/gemma3.gguf"), EngineOptions::default()).unwrap()
}

/// Pages that a window may touch.
const MOST: usize = WINDOW.div_ceil(PAGE) + 1;

fn in_window(session: &Session) -> usize {
    session.held_positions()[1] / PAGE
}

fn fresh(ids: &[u32], tokens: usize) -> Answer {
    generate(&mut session(&open(), ids), greedy(tokens))
}

#[test]
fn pages_behind_the_window_are_given_back() {
    let engine = open();
    let mut session = session(&engine, &prompt(1, 200));
    prefill(&mut session);
    assert_eq!(session.held_positions()[0], 224);
    // Position 199 sees 160 and on.
    assert_eq!(in_window(&session), 2);
    generate(&mut session, greedy(50));
    assert_eq!(session.held_positions()[0], 256);
    assert!(in_window(&session) <= MOST, "{:?}", session.held_positions());
    let fork = session.fork();
    assert_eq!(fork.held_positions(), session.held_positions());
}

#[test]
fn what_a_window_forgot_is_computed_again() {
    let (engine, ids) = (open(), prompt(2, 200));
    let mut session = session(&engine, &ids);
    prefill(&mut session);
    // A little back, and far back.
    for len in [198, 150, 60, 33, 1] {
        session.truncate(len);
        assert_eq!(generate(&mut session, greedy(20)), fresh(&ids[..len], 20), "{len}");
        session.set_tokens(&ids).unwrap();
        prefill(&mut session);
    }
}

#[test]
fn forks_and_prompts_that_begin_alike_make_what_fresh_sessions_make() {
    let (engine, ids) = (open(), prompt(3, 180));
    let mut first = session(&engine, &ids);
    prefill(&mut first);
    let mut fork = first.fork();
    let expected = fresh(&ids, 30);
    assert_eq!(generate(&mut first, greedy(30)), expected);
    assert_eq!(generate(&mut fork, greedy(30)), expected);
    for common in [170, 128, 100, 64, 40] {
        let other = [&ids[..common], &prompt(4, 40)[..]].concat();
        let mut second = session(&engine, &other);
        assert_eq!(generate(&mut second, greedy(20)), fresh(&other, 20), "{common}");
    }
}

#[test]
fn a_saved_session_goes_on_as_it_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, ids) = (open(), prompt(5, 150));
    let mut session = session(&engine, &ids);
    prefill(&mut session);
    let path = dir.path().join("session");
    session.save(&path).unwrap();
    let mut restored = open().restore(&path).unwrap();
    assert_eq!(in_window(&restored), in_window(&session));
    // Once more from where an answer ended, whose pages are not given back at once.
    for _ in 0..2 {
        assert_eq!(generate(&mut restored, greedy(40)), generate(&mut session, greedy(40)));
        session.save(&path).unwrap();
        restored = open().restore(&path).unwrap();
    }
    restored.truncate(20);
    assert_eq!(generate(&mut restored, greedy(20)), fresh(&ids[..20], 20));
}

#[test]
fn sessions_at_random_are_as_fresh_ones_and_leave_nothing_behind() {
    let (engine, mut random) = (open(), Random::new(8));
    let all = prompt(6, 250);
    let mut sessions: Vec<Session> = vec![engine.session()];
    for step in 0..60 {
        let i = random.below(sessions.len() as u32) as usize;
        match random.below(5) {
            0 if sessions.len() < 6 => sessions.push(sessions[i].fork()),
            1 => drop(sessions.swap_remove(i)),
            2 => sessions[i].truncate(random.below(220) as usize),
            _ => {
                let len = 1 + random.below(220) as usize;
                sessions[i].set_tokens(&all[..len]).unwrap();
                let answer = generate(&mut sessions[i], greedy(8));
                assert_eq!(answer, fresh(&all[..len], 8), "step {step}");
                assert!(in_window(&sessions[i]) <= MOST);
            }
        }
        if sessions.is_empty() {
            sessions.push(engine.session());
        }
    }
}

#[test]
fn what_made_room_is_computed_again_in_both_reaches() {
    for level in [MemoryLevel::Moderate, MemoryLevel::Critical, MemoryLevel::Complete] {
        let (engine, ids) = (open(), prompt(7, 150));
        let mut session = session(&engine, &ids);
        let before = generate(&mut session, greedy(30));
        let mut fork = session.fork();
        engine.memory_pressure(level);
        let expected = {
            let mut calm = super::session(&open(), &ids);
            assert_eq!(generate(&mut calm, greedy(30)), before, "{level:?}");
            generate(&mut calm, greedy(40))
        };
        assert_eq!(generate(&mut session, greedy(40)), expected, "{level:?}");
        assert!(in_window(&session) <= MOST, "{level:?}");
        engine.memory_pressure(level);
        assert_eq!(generate(&mut fork, greedy(40)), expected, "{level:?}");
    }
}
