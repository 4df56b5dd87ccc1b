//! Several sessions decoded together, a step a token for all.

use std::ops::ControlFlow;

use epiphyte::{
    CancelToken, EngineOptions, Error, FinishReason, GenerateOptions, Sequence, Session,
    generate_batch,
};

use super::{Answer, CONTEXT, SHARED, alone, greedy, open, prompt, sampled, session};

fn sequence(session: &mut Session, max_tokens: usize) -> Sequence<'_> {
    Sequence { session, options: greedy(max_tokens) }
}

/// Answers of `options[i]` to `prompts[i]`, in one batch.
fn together(prompts: &[Vec<u32>], options: &[GenerateOptions]) -> Vec<Answer> {
    let mut sessions: Vec<Session> = prompts.iter().map(|ids| session(&SHARED, ids)).collect();
    let sequence = |(session, options)| Sequence { session, options };
    let sequences = sessions.iter_mut().zip(options.iter().cloned()).map(sequence).collect();
    let mut answers: Vec<Answer> = prompts
        .iter()
        .map(|_| Answer { ids: Vec::new(), text: String::new(), reason: None })
        .collect();
    let reasons = generate_batch(sequences, |i, token| {
        answers[i].ids.push(token.id);
        answers[i].text += &token.text;
        ControlFlow::Continue(())
    });
    for ((answer, reason), (session, ids)) in
        answers.iter_mut().zip(reasons.unwrap()).zip(sessions.iter().zip(prompts))
    {
        answer.reason = reason;
        assert_eq!(session.tokens(), [&ids[..], &answer.ids].concat());
    }
    answers
}

fn check(prompts: &[Vec<u32>], options: &[GenerateOptions]) {
    for (i, answer) in together(prompts, options).into_iter().enumerate() {
        assert_eq!(
            answer,
            alone(&prompts[i], options[i].clone()),
            "sequence {i} of {}",
            prompts.len()
        );
    }
}

#[test]
fn a_batch_gives_what_each_session_gives_alone() {
    // 1, 2 and 4 columns, some left over, two passes of them, and more than one group of 8.
    for k in [1, 2, 3, 5, 8, 11] {
        let prompts: Vec<_> = (0..k).map(|i| prompt(100 + i, 1 + 17 * i as usize)).collect();
        check(&prompts, &vec![greedy(15); k as usize]);
    }
}

#[test]
fn a_sampled_batch_gives_what_each_seed_gives_alone() {
    let prompts: Vec<_> = (0..6).map(|i| prompt(120 + i, 40 - 5 * i as usize)).collect();
    let options: Vec<_> =
        (0..6).map(|seed| if seed == 3 { greedy(15) } else { sampled(15, seed) }).collect();
    check(&prompts, &options);
}

#[test]
fn sequences_end_one_by_one() {
    let prompts: Vec<_> = (0..5).map(|i| prompt(130 + i, 10 + i as usize)).collect();
    let mut options: Vec<_> = [3, 0, 20, 1, 12].map(greedy).into();
    options[4].stop_tokens = vec![alone(&prompts[4], greedy(12)).ids[6]];
    let mut prompts = prompts;
    prompts[2] = prompt(135, CONTEXT - 7);
    check(&prompts, &options);
    let cancel = CancelToken::default();
    cancel.cancel();
    options[0].cancel = cancel;
    let answers = together(&prompts, &options);
    assert_eq!((answers[0].ids.len(), answers[0].reason), (0, Some(FinishReason::Cancelled)));
    assert_eq!(answers[2].reason, Some(FinishReason::ContextFull));
    for i in 1..5 {
        assert_eq!(answers[i], alone(&prompts[i], options[i].clone()), "sequence {i} goes on");
    }
}

#[test]
fn the_caller_may_end_a_batch() {
    let prompts = [prompt(140, 9), prompt(141, 14)];
    let mut sessions = prompts.each_ref().map(|ids| session(&SHARED, ids));
    let mut seen = 0;
    let sequences = sessions.iter_mut().map(|s| sequence(s, 20)).collect();
    let reasons = generate_batch(sequences, |_, _| {
        seen += 1;
        if seen == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(reasons.unwrap(), [None, None]);
    let mut all = 0;
    for (session, ids) in sessions.iter_mut().zip(&prompts) {
        let made = session.tokens().len() - ids.len();
        all += made;
        assert!((3..=4).contains(&made), "{made} of 7 tokens");
        let whole = alone(ids, greedy(20)).ids;
        assert_eq!(session.tokens()[ids.len()..], whole[..made]);
        assert_eq!(super::generate(session, greedy(20 - made)).ids, whole[made..]);
    }
    assert_eq!(all, 7);
}

/// The argument that is refused, and why.
fn name(sequences: Vec<Sequence<'_>>) -> (&'static str, String) {
    match generate_batch(sequences, |_, _| ControlFlow::Continue(())) {
        Err(Error::InvalidArgument { name, reason }) => (name, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn batches_that_cannot_be_are_refused() {
    assert_eq!(name(vec![]).0, "sequences");
    let other = open(EngineOptions::default());
    let (mut a, mut b) = (session(&SHARED, &[5]), session(&other, &[5]));
    let (argument, reason) = name(vec![sequence(&mut a, 1), sequence(&mut b, 1)]);
    assert_eq!(argument, "sequences");
    assert!(reason.contains("two engines"), "{reason}");
    let mut many: Vec<_> = (0..65).map(|_| session(&SHARED, &[5])).collect();
    assert!(name(many.iter_mut().map(|s| sequence(s, 1)).collect()).1.contains("65"));
    let mut empty = SHARED.session();
    assert_eq!(name(vec![sequence(&mut a, 1), sequence(&mut empty, 1)]).0, "session");
    assert_eq!(super::generate(&mut a, greedy(4)), alone(&[5], greedy(4)));
}

#[test]
fn as_many_sequences_as_fit_run_together() {
    let prompts: Vec<_> = (0..64).map(|i| prompt(200 + i, 1 + i as usize % 40)).collect();
    check(&prompts, &vec![greedy(4); 64]);
}
