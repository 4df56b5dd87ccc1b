//! A token at a time: the same as in the runtime, and the session holds what was handed out.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread;

use epiphyte_bindings::{EpiphyteError, FinishReason, GenerateOptions, ResponseFormat, Sampling};
use pollster::block_on;

use super::{PROMPT, SHARED, expected, greedy, ids, rest, session};

#[test]
fn a_model_answers_as_in_the_runtime() {
    let session = session(&SHARED);
    let before = session.token_count();
    let answer = session.generate(greedy(8)).unwrap();
    assert_eq!((answer.finish_reason(), answer.stats().generated_tokens), (None, 0));
    assert_eq!(rest(&answer), expected(8));
    assert_eq!(session.token_count(), before + 8);
    let stats = answer.stats();
    assert_eq!((stats.generated_tokens, stats.prompt_tokens), (8, before));
    assert_eq!(answer.finish_reason(), Some(FinishReason::MaxTokens));
    assert!(stats.first_token_seconds > Some(0.0) && stats.decode_tokens_per_second > Some(0.0));
    // Over is over.
    assert_eq!(block_on(answer.next()), Ok(None));
    answer.cancel();
    assert_eq!(answer.finish_reason(), Some(FinishReason::MaxTokens));
}

#[test]
fn the_session_holds_what_was_handed_out() {
    let session = session(&SHARED);
    let prompt = block_on(session.tokens()).unwrap();
    for taken in [0, 1, 3] {
        let answer = session.generate(greedy(8)).unwrap();
        let tokens: Vec<_> =
            (0..taken).map(|_| block_on(answer.next()).unwrap().unwrap()).collect();
        answer.cancel();
        assert_eq!(block_on(answer.next()), Ok(None));
        assert_eq!(answer.finish_reason(), Some(FinishReason::Cancelled));
        assert_eq!(answer.stats().generated_tokens, taken);
        assert_eq!(session.token_count() as usize, prompt.len() + tokens.len());
        let held = block_on(session.tokens()).unwrap();
        assert_eq!(held, [prompt.clone(), ids(&tokens)].concat());
        assert_eq!(tokens, expected(taken as usize));
        block_on(session.truncate(prompt.len() as i32)).unwrap();
    }
}

#[test]
fn a_cancel_before_the_first_token_is_not_lost() {
    let session = session(&SHARED);
    let answer = session.generate(greedy(8)).unwrap();
    answer.cancel();
    assert_eq!(block_on(answer.next()), Ok(None));
    assert_eq!(answer.finish_reason(), Some(FinishReason::Cancelled));
    // And the session is free.
    assert_eq!(rest(&session.generate(greedy(4)).unwrap()), expected(4));
}

#[test]
fn a_handle_that_is_freed_cancels() {
    let session = session(&SHARED);
    let answer = session.generate(greedy(200)).unwrap();
    block_on(answer.next()).unwrap().unwrap();
    drop(answer);
    assert_eq!(block_on(session.tokens()).unwrap().last(), Some(&expected(1)[0].id));
}

#[test]
fn a_wait_that_is_given_up_loses_no_token() {
    let session = session(&SHARED);
    let answer = session.generate(greedy(8)).unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < 8 {
        let mut given_up = Box::pin(answer.next());
        let polled = given_up.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(given_up);
        if let std::task::Poll::Ready(token) = polled {
            tokens.push(token.unwrap().unwrap());
            continue;
        }
        tokens.push(block_on(answer.next()).unwrap().unwrap());
    }
    assert_eq!(tokens, expected(8));
}

#[test]
fn no_token_comes_once_a_cancel_has_returned() {
    for delay in 0..20 {
        let session = session(&SHARED);
        let answer = session.generate(greedy(200)).unwrap();
        let before = session.token_count();
        let taker = {
            let answer = Arc::clone(&answer);
            thread::spawn(move || rest(&answer).len())
        };
        thread::sleep(std::time::Duration::from_millis(delay));
        answer.cancel();
        let held = session.token_count();
        let taken = taker.join().unwrap();
        assert_eq!(session.token_count(), held, "none was handed out since");
        assert_eq!((held - before) as usize, taken);
        assert_eq!(block_on(session.tokens()).unwrap().len(), held as usize);
    }
}

#[test]
fn a_session_that_answers_is_busy() {
    let session = session(&SHARED);
    let answer = session.generate(greedy(8)).unwrap();
    block_on(answer.next()).unwrap().unwrap();
    let busy = |error| matches!(error, Some(EpiphyteError::Busy { .. }));
    assert!(busy(block_on(session.push_text(PROMPT.into())).err()));
    assert!(busy(session.generate(greedy(1)).err()));
    assert!(busy(block_on(session.fork()).err()));
    rest(&answer);
    block_on(session.push_text(PROMPT.into())).unwrap();
}

#[test]
fn two_sessions_answer_at_once() {
    let expected = expected(16);
    let answers = (0..2).map(|_| session(&SHARED).generate(greedy(16)).unwrap());
    let threads: Vec<_> = answers.map(|answer| thread::spawn(move || rest(&answer))).collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), expected);
    }
}

#[test]
fn what_is_wrong_with_settings_is_said_by_the_first_token() {
    let session = session(&SHARED);
    let wrong = |change: fn(&mut GenerateOptions)| {
        let mut options = greedy(4);
        change(&mut options);
        let answer = session.generate(options)?;
        let first = block_on(answer.next()).map(drop);
        assert_eq!(block_on(answer.next()), Ok(None), "said once");
        first
    };
    let name = |result: Result<(), EpiphyteError>| match result.unwrap_err() {
        EpiphyteError::InvalidArgument { name, .. } => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(name(wrong(|o| o.sampling.temperature = f32::NAN)), "temperature");
    assert_eq!(name(wrong(|o| o.sampling.top_p = 0.0)), "top_p");
    assert_eq!(name(wrong(|o| o.sampling.top_k = -1)), "top_k");
    assert_eq!(name(wrong(|o| o.max_tokens = -1)), "max_tokens");
    assert_eq!(name(wrong(|o| o.stop_tokens = vec![-5])), "stop_tokens");
    assert_eq!(rest(&session.generate(greedy(2)).unwrap()), expected(2));
}

#[test]
fn defaults_and_seeds_are_the_runtimes() {
    let defaults = epiphyte::GenerateOptions::try_from(GenerateOptions::default()).unwrap();
    let of_runtime = epiphyte::GenerateOptions::default();
    assert_eq!(defaults.sampling, of_runtime.sampling);
    assert_eq!(format!("{defaults:?}"), format!("{of_runtime:?}"));
    let sampled = |seed| {
        let sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        let options = GenerateOptions { sampling, ..greedy(12) };
        rest(&session(&SHARED).generate(options).unwrap())
    };
    assert_eq!(sampled(-3), sampled(-3));
    assert_ne!(sampled(-3), sampled(4));
}

#[test]
fn an_answer_is_what_its_format_asks_for() {
    let answer = |format| {
        let session = session(&SHARED);
        let options = GenerateOptions { response_format: Some(format), ..greedy(60) };
        let answer = session.generate(options)?;
        let mut text = String::new();
        while let Some(token) = block_on(answer.next())? {
            text += &token.text;
        }
        assert_eq!(answer.finish_reason(), Some(FinishReason::EndOfGeneration));
        Ok::<_, EpiphyteError>(text)
    };
    let schema = r#"{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}"#;
    let text = answer(ResponseFormat::JsonSchema { schema: schema.into() }).unwrap();
    assert_eq!(serde_json::from_str::<Vec<bool>>(&text).unwrap().len(), 2, "{text}");
    let text = answer(ResponseFormat::Regex { pattern: "[0-9]{7}".into() }).unwrap();
    assert!(text.len() == 7 && text.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    let lark = "start: \"(\" start? \")\"";
    let lark = ResponseFormat::Lark { grammar: lark.into() };
    match answer(ResponseFormat::JsonSchema { schema: "{\"type\": 3}".into() }) {
        Err(EpiphyteError::InvalidArgument { name, .. }) => assert_eq!(name, "response_format"),
        other => panic!("{other:?}"),
    }
    // Compiles; how deep it goes is the model's.
    let options = GenerateOptions { response_format: Some(lark), ..greedy(9) };
    assert!(rest(&session(&SHARED).generate(options).unwrap())[0].text.starts_with('('));
}
