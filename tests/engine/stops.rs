//! When a generation ends, and the text it gives until then.

use epiphyte::tokenizer::DecodeOptions;
use epiphyte::{CancelToken, Error, FinishReason, GenerateOptions, Sampling};

use super::{Answer, EOS, SHARED, VOCAB, alone, generate, greedy, prompt, sampled, session};

fn decode(ids: &[u32]) -> String {
    SHARED
        .base()
        .tokenizer
        .decode_with(ids, DecodeOptions { continuation: true, ..DecodeOptions::default() })
}

/// Only these tokens are ever chosen, by chance.
fn only(tokens: &[u32], max_tokens: usize) -> GenerateOptions {
    let logit_bias = tokens.iter().map(|&token| (token, 1e4)).collect();
    let sampling = Sampling { temperature: 1.0, seed: 3, logit_bias, ..Sampling::default() };
    GenerateOptions { sampling, ..greedy(max_tokens) }
}

/// The token of one byte.
fn byte(byte: u8) -> u32 {
    (0..VOCAB).find(|&id| SHARED.base().tokenizer.token_bytes(id) == Some(&[byte])).unwrap()
}

#[test]
fn the_texts_of_the_tokens_make_the_whole_text() {
    for seed in 0..3 {
        let answer = alone(&prompt(70, 12), sampled(60, seed));
        assert_eq!(answer.text, decode(&answer.ids));
        assert_eq!((answer.ids.len(), answer.reason), (60, Some(FinishReason::MaxTokens)));
    }
}

#[test]
fn a_stop_text_ends_the_answer_wherever_tokens_cut_it() {
    let ids = prompt(71, 12);
    // Letters only, so that every position of the text is a character.
    let letters: Vec<u32> = (b'a'..=b'e').map(byte).collect();
    let free = alone(&ids, only(&letters, 60));
    assert_eq!(free.text.len(), 60);
    for (from, to) in [(20, 21), (20, 24), (33, 41), (0, 3), (55, 60)] {
        let stop = free.text[from..to].to_string();
        let at = free.text.find(&stop).unwrap();
        let options =
            GenerateOptions { stop: vec!["absent".into(), stop.clone()], ..only(&letters, 60) };
        let answer = alone(&ids, options);
        assert_eq!(answer.reason, Some(FinishReason::Stop), "{stop}");
        assert_eq!(answer.text, free.text[..at], "the text before `{stop}`");
        assert_eq!(answer.ids, free.ids[..at + stop.len()], "the tokens up to `{stop}`");
    }
    // What could have begun a stop text comes out in the end.
    let stop = format!("{}!", &free.text[58..]);
    assert_eq!(
        alone(&ids, GenerateOptions { stop: vec![stop, String::new()], ..only(&letters, 60) }),
        free
    );
}

#[test]
fn a_stop_text_may_be_one_character_of_several_tokens() {
    let ids = prompt(72, 12);
    // C3 A9 is é, C3 C3 and A9 A9 are nothing.
    let options = only(&[byte(0xc3), byte(0xa9)], 40);
    let free = alone(&ids, options.clone());
    assert_eq!(free.text, decode(&free.ids));
    assert!(free.text.contains('é') && free.text.contains('\u{fffd}'), "{}", free.text);
    let answer = alone(&ids, GenerateOptions { stop: vec!["é".into()], ..options });
    let before = free.text.split('é').next().unwrap();
    assert_eq!((answer.text.as_str(), answer.reason), (before, Some(FinishReason::Stop)));
    assert_eq!(answer.ids.last(), Some(&byte(0xa9)));
}

#[test]
fn stop_tokens_end_the_answer_and_are_not_shown() {
    let ids = prompt(73, 12);
    let free = alone(&ids, sampled(40, 1));
    let stop = free.ids[17];
    let at = free.ids.iter().position(|&id| id == stop).unwrap();
    let answer = alone(&ids, GenerateOptions { stop_tokens: vec![stop], ..sampled(40, 1) });
    assert_eq!(answer.ids, free.ids[..=at]);
    assert_eq!((answer.text, answer.reason), (decode(&free.ids[..at]), Some(FinishReason::Stop)));
}

#[test]
fn the_end_of_generation_token_ends_it_unless_ignored() {
    let ids = prompt(74, 12);
    let ended = alone(&ids, GenerateOptions { ignore_eos: false, ..only(&[EOS], 5) });
    assert_eq!(
        ended,
        Answer { ids: vec![EOS], text: String::new(), reason: Some(FinishReason::EndOfGeneration) }
    );
    let ignored = alone(&ids, only(&[EOS], 5));
    assert_eq!(
        ignored,
        Answer { ids: vec![EOS; 5], text: String::new(), reason: Some(FinishReason::MaxTokens) }
    );
}

#[test]
fn as_many_tokens_as_were_asked_for() {
    let ids = prompt(75, 12);
    let long = alone(&ids, greedy(9)).ids;
    for n in [0, 1, 2, 3, 4] {
        let answer = alone(&ids, greedy(n));
        assert_eq!((&answer.ids[..], answer.reason), (&long[..n], Some(FinishReason::MaxTokens)));
    }
}

#[test]
fn a_generation_is_cancelled_before_and_during() {
    let ids = prompt(76, 100);
    let cancel = CancelToken::default();
    let options = || GenerateOptions { cancel: cancel.clone(), ..greedy(50) };
    let mut session = session(&SHARED, &ids);
    {
        let mut generation = session.generate(options()).unwrap();
        for _ in 0..5 {
            generation.next().unwrap().unwrap();
        }
        cancel.cancel();
        let after = generation.by_ref().count();
        assert!(after <= 1, "{after} tokens after the call");
        assert_eq!(generation.finish_reason(), Some(FinishReason::Cancelled));
    }
    let kept = session.tokens().to_vec();
    let answer = generate(&mut session, options());
    assert_eq!(
        answer,
        Answer { ids: vec![], text: String::new(), reason: Some(FinishReason::Cancelled) }
    );
    session.push_tokens(&prompt(77, 80)).unwrap();
    let cancelled = CancelToken::default();
    cancelled.cancel();
    let refusal = session.prefill(&cancelled).unwrap_err();
    assert!(matches!(refusal, Error::Cancelled));
    session.truncate(kept.len());
    assert_eq!(generate(&mut session, greedy(10)), alone(&kept, greedy(10)));
}

#[test]
fn a_generation_is_cancelled_from_another_thread() {
    let cancel = CancelToken::default();
    let mut session = session(&SHARED, &prompt(78, 5));
    let mut generation =
        session.generate(GenerateOptions { cancel: cancel.clone(), ..greedy(100_000) }).unwrap();
    let first = generation.next().unwrap().unwrap();
    assert!(first.id < VOCAB);
    std::thread::spawn(move || cancel.cancel()).join().unwrap();
    assert!(generation.by_ref().count() <= 1);
    assert_eq!(generation.finish_reason(), Some(FinishReason::Cancelled));
}
