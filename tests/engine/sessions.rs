//! Tokens and cache of sessions: forks, truncation, prefix reuse, growth, interleaving, threads.

use epiphyte::{CancelToken, EngineOptions, Error, FinishReason};

use super::{
    CONTEXT, PAGE, SHARED, VOCAB, alone, dispatches, generate, greedy, open, prefill, prompt,
    session,
};

#[test]
fn a_fork_shares_and_then_goes_its_own_way() {
    let engine = open(EngineOptions::default());
    // In the middle of a page, at its end, and just after.
    for (seed, len) in [(1, 50), (2, 2 * PAGE), (3, 2 * PAGE + 1)] {
        let ids = prompt(seed, len);
        let mut parent = session(&engine, &ids);
        prefill(&mut parent);
        let before = dispatches(&engine);
        let mut fork = parent.fork();
        prefill(&mut fork);
        assert_eq!(dispatches(&engine), before, "nothing is computed again");
        assert_eq!(fork.tokens(), parent.tokens());
        let (left, right) = (prompt(10 + seed, 7), prompt(20 + seed, 7));
        parent.push_tokens(&left).unwrap();
        fork.push_tokens(&right).unwrap();
        let mut grandchild = fork.fork();
        assert_eq!(
            generate(&mut parent, greedy(12)),
            alone(&[ids.clone(), left].concat(), greedy(12))
        );
        assert_eq!(
            generate(&mut fork, greedy(12)),
            alone(&[ids.clone(), right.clone()].concat(), greedy(12))
        );
        drop((parent, fork));
        assert_eq!(
            generate(&mut grandchild, greedy(12)),
            alone(&[ids, right].concat(), greedy(12))
        );
    }
}

#[test]
fn a_truncated_session_goes_on_as_a_fresh_one() {
    let ids = prompt(4, 100);
    let mut session = session(&SHARED, &ids);
    generate(&mut session, greedy(20));
    for keep in [120, 119, 97, 96, 65, 64, 63, 33, 32, 31, 1] {
        session.truncate(keep);
        let kept = session.tokens().to_vec();
        assert_eq!(kept.len(), keep);
        assert_eq!(
            generate(&mut session, greedy(8)),
            alone(&kept, greedy(8)),
            "after {keep} tokens"
        );
    }
    session.truncate(0);
    session.push_tokens(&ids).unwrap();
    assert_eq!(generate(&mut session, greedy(8)), alone(&ids, greedy(8)));
    session.truncate(1000);
    assert_eq!(session.tokens().len(), ids.len() + 8);
}

#[test]
fn after_its_logits_a_session_generates_as_a_fresh_one() {
    for len in [5, PAGE, 70] {
        let ids = prompt(5, len);
        let mut session = session(&SHARED, &ids);
        let mut best = 0;
        let last = |_: usize, logits: &[f32]| {
            best = (0..VOCAB)
                .max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]))
                .unwrap();
        };
        session.logits(len - 1, last).unwrap();
        let answer = generate(&mut session, greedy(6));
        assert_eq!(answer.ids[0], best);
        assert_eq!(answer, alone(&ids, greedy(6)));
    }
}

#[test]
fn a_prompt_that_begins_alike_is_not_computed_again() {
    let engine = open(EngineOptions::default());
    let ids = prompt(6, 3 * PAGE + 10);
    let cost = |ids: &[u32]| {
        let before = dispatches(&engine);
        prefill(&mut session(&engine, ids));
        dispatches(&engine) - before
    };
    let whole = cost(&ids);
    assert_eq!(cost(&ids[..2 * PAGE + 1]), 0, "two whole pages and the token that is fed last");
    let rest = cost(&ids[..3 * PAGE + 4]);
    assert!(0 < rest && rest < whole, "{rest} dispatches for 3 tokens, {whole} for all");
    let mut other = ids.clone();
    other[0] ^= 1;
    assert_eq!(
        cost(&other),
        whole,
        "the later pages hold other keys and values after another beginning"
    );
}

#[test]
fn a_reused_prefix_gives_the_same_logits() {
    let engine = open(EngineOptions::default());
    let ids = prompt(7, 90);
    let all = |prefilled: bool| {
        let mut session = session(&engine, &ids[..80]);
        if prefilled {
            prefill(&mut session);
        }
        session.push_tokens(&ids[80..]).unwrap();
        let mut rows = Vec::new();
        session.logits(80, |_, logits| rows.push(logits.to_vec())).unwrap();
        rows
    };
    let fresh = all(false);
    prefill(&mut session(&engine, &ids)); // publishes
    let reused = all(true);
    let largest = fresh.iter().flatten().fold(0.0_f32, |max, v| max.max(v.abs()));
    assert_eq!((fresh.len(), reused.len()), (10, 10));
    for (a, b) in fresh.iter().flatten().zip(reused.iter().flatten()) {
        // The same numbers, rounded in another order: an f16 key may fall on the other side.
        assert!((a - b).abs() <= 1e-4 * largest, "{a} and {b}");
    }
    assert_eq!(generate(&mut session(&engine, &ids), greedy(10)), alone(&ids, greedy(10)));
}

#[test]
fn messages_and_tokens_replace_only_what_differs() {
    let engine = open(EngineOptions::default());
    let ids = prompt(8, 60);
    let mut session = session(&engine, &ids);
    prefill(&mut session);
    let before = dispatches(&engine);
    session.set_tokens(&ids).unwrap();
    prefill(&mut session);
    assert_eq!(dispatches(&engine), before);
    let changed = [&ids[..40], &prompt(9, 10)].concat();
    session.set_tokens(&changed).unwrap();
    assert_eq!(generate(&mut session, greedy(6)), alone(&changed, greedy(6)));
    session.set_tokens(&ids).unwrap();
    assert!(matches!(
        session.set_tokens(&[1, VOCAB + 3]),
        Err(Error::InvalidArgument { name: "ids", .. })
    ));
    let long = vec![5; CONTEXT + 1];
    assert!(matches!(
        session.set_tokens(&long),
        Err(Error::ContextFull { needed: 257, capacity: 256 })
    ));
    assert_eq!(session.tokens(), ids, "as it was");
    assert_eq!(generate(&mut session, greedy(6)), alone(&ids, greedy(6)));
}

#[test]
fn the_cache_grows_under_running_sessions() {
    let engine = open(EngineOptions::default());
    let prompts: Vec<_> = (0..4).map(|i| prompt(30 + i, 100 + 7 * i as usize)).collect();
    let mut first = session(&engine, &prompts[0]);
    let mut running = first.generate(greedy(120)).unwrap();
    let mut ids: Vec<u32> = running.by_ref().take(10).map(|token| token.unwrap().id).collect();
    let small = engine.gpu().allocated_bytes();
    let mut others: Vec<_> = prompts[1..].iter().map(|ids| session(&engine, ids)).collect();
    let answers: Vec<_> = others.iter_mut().map(|session| generate(session, greedy(100))).collect();
    assert!(engine.gpu().allocated_bytes() > small, "four sessions need more than the first pages");
    ids.extend(running.map(|token| token.unwrap().id));
    assert_eq!(ids, alone(&prompts[0], greedy(120)).ids);
    for (ids, answer) in prompts[1..].iter().zip(answers) {
        assert_eq!(answer, alone(ids, greedy(100)));
    }
}

#[test]
fn a_full_cache_is_refused_and_harms_no_one() {
    let engine = open(EngineOptions { context: Some(PAGE), ..EngineOptions::default() });
    let mut sessions = Vec::new();
    let refusal = loop {
        let mut session = session(&engine, &prompt(sessions.len() as u64, PAGE - 4));
        match session.prefill(&CancelToken::default()) {
            Ok(()) => sessions.push(session),
            Err(refusal) => break refusal,
        }
        assert!(sessions.len() < 10_000);
    };
    assert!(
        matches!(refusal, Error::ContextFull { needed, capacity } if needed > capacity),
        "{refusal}"
    );
    let last = sessions.len() - 1;
    for i in [0, last] {
        let ids = prompt(i as u64, PAGE - 4);
        assert_eq!(generate(&mut sessions[i], greedy(3)).ids, alone(&ids, greedy(3)).ids);
    }
    sessions.pop();
    let mut next = session(&engine, &prompt(99, PAGE - 4));
    assert_eq!(
        generate(&mut next, greedy(3)),
        alone(&prompt(99, PAGE - 4), greedy(3)),
        "a page was given back"
    );
}

#[test]
fn generations_interleave_token_by_token() {
    let (a, b) = (prompt(40, 20), prompt(41, 45));
    let (mut left, mut right) = (session(&SHARED, &a), session(&SHARED, &b));
    let (mut to_left, mut to_right) = (Vec::new(), Vec::new());
    {
        let (mut left, mut right) =
            (left.generate(greedy(25)).unwrap(), right.generate(greedy(25)).unwrap());
        for turn in 0..25 {
            to_left.push(left.next().unwrap().unwrap().id);
            // Now and then someone reads logits in between.
            if turn % 7 == 0 {
                session(&SHARED, &prompt(42, 3)).logits(0, |_, _| {}).unwrap();
            }
            to_right.push(right.next().unwrap().unwrap().id);
        }
        assert!(left.next().is_none() && right.next().is_none());
    }
    assert_eq!(to_left, alone(&a, greedy(25)).ids);
    assert_eq!(to_right, alone(&b, greedy(25)).ids);
}

#[test]
fn sessions_run_on_several_threads() {
    let work = |i: u64| (prompt(50 + i, 10 + 9 * i as usize), greedy(30));
    let answers = std::thread::scope(|scope| {
        let spawn = |i| scope.spawn(move || generate(&mut session(&SHARED, &work(i).0), work(i).1));
        (0..4)
            .map(spawn)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    for (i, answer) in (0..).zip(answers) {
        assert_eq!(answer, alone(&work(i).0, work(i).1), "thread {i}");
    }
}

#[test]
fn a_generation_dropped_midway_leaves_a_session_that_goes_on() {
    let ids = prompt(60, 30);
    let whole = alone(&ids, greedy(40)).ids;
    let mut session = session(&SHARED, &ids);
    for taken in [0, 1, 3, 10] {
        let before = session.tokens().len() - ids.len();
        let some: Vec<u32> = session
            .generate(greedy(40))
            .unwrap()
            .take(taken)
            .map(|token| token.unwrap().id)
            .collect();
        assert_eq!(some, whole[before..before + taken]);
        assert_eq!(session.tokens(), [&ids, &whole[..before + taken]].concat());
    }
    assert_eq!(generate(&mut session, greedy(26)).ids, whole[14..]);
}

#[test]
fn a_full_context_ends_the_answer_and_loses_nothing() {
    let ids = prompt(61, CONTEXT - 20);
    let mut full = session(&SHARED, &ids);
    let answer = generate(&mut full, greedy(100));
    assert_eq!((answer.ids.len(), answer.reason), (20, Some(FinishReason::ContextFull)));
    assert_eq!(answer.ids, alone(&ids, greedy(20)).ids);
    // Nothing more fits, and that too changes nothing.
    let again = generate(&mut full, greedy(5));
    assert_eq!((again.ids.len(), again.reason), (0, Some(FinishReason::ContextFull)));
    assert!(matches!(
        full.push_tokens(&[7]),
        Err(Error::ContextFull { needed: 257, capacity: 256 })
    ));
    full.push_tokens(&[]).unwrap();
    assert_eq!(full.tokens().len(), CONTEXT);
    let mut fork = full.fork();
    fork.truncate(CONTEXT - 5);
    assert_eq!(generate(&mut fork, greedy(5)).ids, answer.ids[15..]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let mut session = SHARED.session();
    let refusal = session.push_tokens(&vec![9; CONTEXT + 1]).unwrap_err();
    assert!(matches!(refusal, Error::ContextFull { needed: 257, capacity: 256 }), "{refusal}");
    assert!(matches!(session.push_text(&"word ".repeat(500)), Err(Error::ContextFull { .. })));
    assert!(session.tokens().is_empty());
    assert!(matches!(
        session.push_tokens(&[3, u32::MAX]),
        Err(Error::InvalidArgument { name: "ids", .. })
    ));
    assert!(session.tokens().is_empty());
}
