//! Several sessions in one go.

use std::sync::Arc;

use epiphyte_bindings::{BatchSequence, EpiphyteError, FinishReason, Session, Token};
use pollster::block_on;

use super::{SHARED, expected, greedy, session};

fn sequence(session: &Arc<Session>, tokens: i32) -> BatchSequence {
    BatchSequence { session: Arc::clone(session), options: greedy(tokens) }
}

#[test]
fn three_answers_are_those_that_each_gives_alone() {
    let sessions = [session(&SHARED), session(&SHARED), session(&SHARED)];
    let lengths = [2, 8, 5];
    let sequences = sessions.iter().zip(lengths).map(|(s, n)| sequence(s, n)).collect();
    let batch = SHARED.batch(sequences).unwrap();
    let mut tokens: [Vec<Token>; 3] = Default::default();
    while let Some(next) = block_on(batch.next()).unwrap() {
        tokens[next.index as usize].push(next.token);
    }
    for ((tokens, length), index) in tokens.iter().zip(lengths).zip(0..) {
        assert_eq!(*tokens, expected(length as usize));
        let stats = batch.stats(index).unwrap();
        assert_eq!(stats.generated_tokens, length);
        assert_eq!(stats.finish_reason, Some(FinishReason::MaxTokens));
    }
    assert!(batch.stats(3).is_none() && batch.stats(-1).is_none());
}

#[test]
fn answers_that_end_in_the_same_step_are_whole() {
    let sessions = [session(&SHARED), session(&SHARED), session(&SHARED)];
    let batch = SHARED.batch(sessions.iter().map(|s| sequence(s, 6)).collect()).unwrap();
    let mut tokens: [Vec<Token>; 3] = Default::default();
    while let Some(next) = block_on(batch.next()).unwrap() {
        tokens[next.index as usize].push(next.token);
    }
    assert!(tokens.iter().all(|tokens| *tokens == expected(6)));
}

#[test]
fn one_is_cancelled_and_the_others_go_on() {
    let sessions = [session(&SHARED), session(&SHARED)];
    let before = sessions[0].token_count();
    let batch = SHARED.batch(sessions.iter().map(|s| sequence(s, 12)).collect()).unwrap();
    let mut taken = [0, 0];
    for _ in 0..4 {
        taken[block_on(batch.next()).unwrap().unwrap().index as usize] += 1;
    }
    batch.cancel_sequence(0).unwrap();
    let held = taken[0];
    while let Some(next) = block_on(batch.next()).unwrap() {
        taken[next.index as usize] += 1;
    }
    assert_eq!(taken, [held, 12]);
    assert_eq!(batch.stats(0).unwrap().finish_reason, Some(FinishReason::Cancelled));
    let counts = sessions.map(|session| block_on(session.tokens()).unwrap().len() as i32);
    assert_eq!(counts, taken.map(|taken| before + taken));
    let error = batch.cancel_sequence(-1);
    assert!(matches!(error, Err(EpiphyteError::InvalidArgument { .. })), "{error:?}");
}

#[test]
fn sessions_hold_what_was_handed_out_of_a_batch_that_is_dropped() {
    let sessions = [session(&SHARED), session(&SHARED)];
    let before = sessions[0].token_count();
    let batch = SHARED.batch(sessions.iter().map(|s| sequence(s, 12)).collect()).unwrap();
    let mut taken = [0, 0];
    for _ in 0..3 {
        taken[block_on(batch.next()).unwrap().unwrap().index as usize] += 1;
    }
    drop(batch);
    let counts = sessions.map(|session| block_on(session.tokens()).unwrap().len() as i32);
    assert_eq!(counts, taken.map(|taken| before + taken));
}

#[test]
fn a_session_has_one_answer_at_a_time() {
    let session = session(&SHARED);
    let twice = vec![sequence(&session, 2), sequence(&session, 2)];
    assert!(matches!(SHARED.batch(twice).err(), Some(EpiphyteError::Busy { .. })));
    let error = block_on(SHARED.batch(Vec::new()).unwrap().next());
    assert!(matches!(error, Err(EpiphyteError::InvalidArgument { .. })), "{error:?}");
    let batch = SHARED.batch(vec![sequence(&session, 2)]).unwrap();
    assert_eq!(block_on(batch.next()).unwrap().unwrap().token, expected(1)[0]);
}
