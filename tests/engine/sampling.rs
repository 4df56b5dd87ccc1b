//! Sampling settings as a session's caller meets them; the kernels have their own tests.

use epiphyte::{Error, GenerateOptions, Sampling};

use super::{SHARED, VOCAB, alone, greedy, prompt, sampled, session};

fn with(sampling: Sampling) -> GenerateOptions {
    GenerateOptions { sampling, ..greedy(30) }
}

#[test]
fn a_seed_gives_the_same_answer_again_and_another_seed_another() {
    let ids = prompt(80, 10);
    let first = alone(&ids, sampled(30, 1));
    assert_eq!(first, alone(&ids, sampled(30, 1)));
    assert_ne!(first.ids, alone(&ids, sampled(30, 2)).ids);
    assert_ne!(first.ids, alone(&ids, sampled(30, 1 << 32 | 1)).ids, "all 64 bits count");
    assert_ne!(first.ids, alone(&ids, greedy(30)).ids);
}

#[test]
fn settings_that_leave_one_token_are_greedy() {
    let ids = prompt(81, 10);
    let best = alone(&ids, greedy(30));
    let hot = || Sampling { temperature: 2.0, seed: 5, ..Sampling::default() };
    assert_ne!(alone(&ids, with(hot())), best);
    assert_eq!(alone(&ids, with(Sampling { top_k: 1, ..hot() })), best);
    assert_eq!(alone(&ids, with(Sampling { top_p: 1e-6, ..hot() })), best);
    assert_eq!(alone(&ids, with(Sampling { min_p: 1.0, ..hot() })), best);
    // Without a temperature the others do not matter.
    assert_eq!(
        alone(&ids, with(Sampling { top_k: 50, top_p: 0.5, seed: 9, ..Sampling::default() })),
        best
    );
}

#[test]
fn a_bias_forces_or_forbids_a_token() {
    let ids = prompt(82, 10);
    let biased = |token, bias| {
        alone(&ids, with(Sampling { logit_bias: vec![(token, bias)], ..Sampling::default() }))
    };
    assert_eq!(biased(VOCAB - 1, 1e6).ids, [VOCAB - 1; 30]);
    let best = alone(&ids, greedy(30)).ids;
    assert!(!biased(best[0], -1e6).ids.contains(&best[0]));
    // Biases of one token add up.
    let twice = vec![(7, -1e6), (7, 2e6)];
    assert_eq!(
        alone(&ids, with(Sampling { logit_bias: twice, ..Sampling::default() })).ids,
        [7; 30]
    );
}

#[test]
fn a_strong_repetition_penalty_leaves_no_token_twice() {
    let ids = prompt(83, 10);
    let free = alone(&ids, greedy(30)).ids;
    let penalised =
        alone(&ids, with(Sampling { repetition_penalty: 1e9, ..Sampling::default() })).ids;
    assert_ne!(free, penalised);
    for (i, id) in penalised.iter().enumerate() {
        assert!(!ids.contains(id) && !penalised[..i].contains(id), "token {i} was there before");
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let mut session = session(&SHARED, &prompt(84, 3));
    let default = Sampling::default;
    let cases = [
        ("temperature", Sampling { temperature: -0.1, ..default() }),
        ("temperature", Sampling { temperature: f32::NAN, ..default() }),
        ("temperature", Sampling { temperature: f32::INFINITY, ..default() }),
        ("top_p", Sampling { top_p: 0.0, ..default() }),
        ("top_p", Sampling { top_p: 1.01, ..default() }),
        ("top_p", Sampling { top_p: f32::NAN, ..default() }),
        ("min_p", Sampling { min_p: -0.5, ..default() }),
        ("min_p", Sampling { min_p: 1.5, ..default() }),
        ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..default() }),
        ("repetition_penalty", Sampling { repetition_penalty: f32::INFINITY, ..default() }),
        ("logit_bias", Sampling { logit_bias: vec![(VOCAB, 1.0)], ..default() }),
        ("logit_bias", Sampling { logit_bias: vec![(1, f32::NAN)], ..default() }),
        ("logit_bias", Sampling { logit_bias: vec![(1, 0.0); 5000], ..default() }),
    ];
    for (expected, sampling) in cases {
        let said = format!("{sampling:.40?}");
        match session.generate(with(sampling)).err() {
            Some(Error::InvalidArgument { name, .. }) => assert_eq!(name, expected, "{said}"),
            other => panic!("{said}: {other:?}"),
        }
    }
    assert_eq!(session.tokens().len(), 3);
    let empty = SHARED.session().generate(greedy(1)).err();
    assert!(matches!(empty, Some(Error::InvalidArgument { name: "session", .. })), "{empty:?}");
}
