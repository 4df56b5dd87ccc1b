//! Tokens that are looked up in the session: the answers are those without, whatever else is asked
//! for, and where it stops it costs nothing.

use std::sync::Arc;
use std::time::Duration;

use epiphyte::engine::{Change, KvPolicy};
use epiphyte::{
    Engine, EngineOptions, Error, FinishReason, GenerateOptions, ResponseFormat, Sampling, Token,
};
use serde_json::json;

use super::adapters::under;
use super::{
    Answer, CONTEXT, SHARED, VOCAB, alone, dispatches, generate, greedy, open, prompt, sampled,
    session,
};
use crate::common::golden;

fn looked_up(most: usize, options: GenerateOptions) -> GenerateOptions {
    GenerateOptions { prompt_lookup_num_tokens: Some(most), ..options }
}

/// Tokens that come again and again, some of them in another order.
fn repetitive(seed: u64, len: usize) -> Vec<u32> {
    let part = prompt(seed, 11);
    (0..len).map(|i| part[if i % 17 == 5 { i % 11 } else { (i * 3 / 2) % 11 }]).collect()
}

/// Drafted and accepted tokens.
type Counts = [usize; 2];

fn counted(engine: &Arc<Engine>, ids: &[u32], options: GenerateOptions) -> (Answer, Counts) {
    let mut session = session(engine, ids);
    let mut generation = session.generate(options).unwrap();
    let mut answer = Answer { ids: Vec::new(), text: String::new(), reason: None };
    for token in generation.by_ref() {
        let token = token.unwrap();
        answer.ids.push(token.id);
        answer.text += &token.text;
    }
    let stats = generation.stats();
    answer.reason = stats.finish_reason;
    assert_eq!(stats.generated_tokens, answer.ids.len());
    drop(generation);
    assert_eq!(session.tokens(), [ids, &answer.ids].concat());
    (answer, [stats.drafted_tokens, stats.accepted_tokens])
}

/// Answers with drafts of any length, against those without, on `engine`; gives the counts of all.
fn same_as_without(engine: &Arc<Engine>, ids: &[u32], options: &GenerateOptions) -> Counts {
    let (expected, none) = counted(engine, ids, looked_up(0, options.clone()));
    assert_eq!(none, [0, 0]);
    let mut all = [0, 0];
    for most in [1, 3, 7] {
        let (answer, counts) = counted(engine, ids, looked_up(most, options.clone()));
        assert_eq!(answer, expected, "{most} of {} and {options:.200?}", ids.len());
        assert!(counts[1] <= counts[0], "{counts:?}");
        all = [all[0] + counts[0], all[1] + counts[1]];
    }
    all
}

#[test]
fn answers_are_those_without() {
    let mild = Sampling { temperature: 0.2, seed: 3, ..Sampling::default() };
    let bias = (0..VOCAB).step_by(5).map(|id| (id, 2.5)).collect();
    let settings = [
        Sampling::default(),
        mild.clone(),
        sampled(1, 5).sampling,
        Sampling { repetition_penalty: 1.3, ..mild.clone() },
        Sampling { logit_bias: bias, ..mild },
    ];
    let (mut drafted, mut accepted) = (0, 0);
    for (i, sampling) in settings.into_iter().enumerate() {
        // Over the bounds of pages and of attention's parts, and to the end of the context.
        for len in [20, 100, CONTEXT - 60] {
            let options = GenerateOptions { sampling: sampling.clone(), ..greedy(90) };
            let counts = same_as_without(&SHARED, &repetitive(700 + i as u64, len), &options);
            drafted += counts[0];
            accepted += counts[1];
        }
    }
    assert!(accepted > 100 && accepted < drafted, "{accepted} of {drafted}");
}

#[test]
fn so_are_those_of_other_families_and_under_adapters() {
    for name in ["gemma3", "qwen2", "qwen3", "smollm3", "granite", "mistral"] {
        let file = golden(&format!("families/{name}.gguf"));
        let engine = Engine::open(file, EngineOptions::default()).unwrap();
        let counts = same_as_without(&engine, &repetitive(720, 90), &greedy(80));
        assert!(counts[1] > 0, "{name}: {counts:?}");
    }
    let engine = super::adapters::adapted(EngineOptions::default());
    for set in [&[("a", 2.0)][..], &[("b", 1.0), ("g", 0.5)]] {
        let ids = repetitive(730, 60);
        let answer = |most| generate(&mut under(&engine, set, &ids), looked_up(most, greedy(80)));
        assert_eq!(answer(5), answer(0), "{set:?}");
    }
}

#[test]
fn so_are_those_that_a_grammar_holds() {
    let item = json!({ "type": "object", "properties": { "kind": { "enum": ["abc", "abd"] } },
        "required": ["kind"], "additionalProperties": false });
    let list = json!({ "type": "array", "items": item, "minItems": 6, "maxItems": 9 });
    let mut accepted = 0;
    for format in [ResponseFormat::JsonSchema(list), ResponseFormat::Regex("(abc,){9,12}".into())] {
        for options in [greedy(150), sampled(150, 2)] {
            let options = GenerateOptions { response_format: Some(format.clone()), ..options };
            accepted += same_as_without(&SHARED, &prompt(740, 9), &options)[1];
            let (whole, _) = counted(&SHARED, &prompt(740, 9), looked_up(7, options));
            assert_eq!(whole.reason, Some(FinishReason::EndOfGeneration), "{}", whole.text);
        }
    }
    assert!(accepted > 50, "{accepted}");
}

#[test]
fn a_draft_that_a_grammar_refuses_leaves_everyone_as_they_were() {
    let engine = open(EngineOptions::default());
    // After `ab` comes what has never followed it.
    let text: String = ('c'..='z').chain('A'..='Z').map(|next| format!("ab{next}")).collect();
    let long = prompt(745, 200);
    let expected = alone(&long, greedy(25)).ids;
    // So that a new page is due at each of the three characters.
    for len in [9, 10, 11] {
        let mut neighbour = session(&engine, &long);
        let mut said = generate(&mut neighbour, greedy(5)).ids;
        let response_format = Some(ResponseFormat::Regex(text.clone()));
        let options = GenerateOptions { response_format, ..looked_up(7, greedy(170)) };
        let mut held = session(&engine, &prompt(746, len));
        assert_eq!(generate(&mut held, options).text, text);
        said.extend(generate(&mut neighbour, greedy(20)).ids);
        assert_eq!(said, expected, "{len}");
    }
}

#[test]
fn an_answer_may_be_left_between_any_two_tokens() {
    let ids = repetitive(750, 40);
    let whole = alone(&ids, looked_up(0, greedy(40))).ids;
    for taken in [1, 2, 3, 5, 8, 13, 21, 34] {
        let mut session = session(&SHARED, &ids);
        let mut generation = session.generate(looked_up(6, greedy(40))).unwrap();
        assert_eq!(generation.by_ref().take(taken).count(), taken);
        drop(generation);
        assert_eq!(session.tokens()[ids.len()..], whole[..taken]);
        let rest = generate(&mut session, looked_up(6, greedy(40 - taken)));
        assert_eq!(rest.ids, whole[taken..], "after {taken}");
    }
    // A stop text, in the middle of what one pass has found out.
    let text = alone(&ids, looked_up(0, greedy(40))).text;
    let stop: String = text.chars().skip(9).take(2).collect();
    let options = GenerateOptions { stop: vec![stop], ..greedy(40) };
    same_as_without(&SHARED, &ids, &options);
}

#[test]
fn adapters_that_change_on_the_way_are_those_of_the_next_token() {
    let engine = super::adapters::adapted(EngineOptions::default());
    let ids = repetitive(760, 50);
    let change = Change { adapters: &[("b", 2.0)], history: KvPolicy::Recompute };
    for before in [5, 6, 7, 8, 9] {
        let run = |most: usize| {
            let mut session = under(&engine, &[("a", 1.0)], &ids);
            let mut generation = session.generate(looked_up(most, greedy(30))).unwrap();
            let next = |token: Result<Token, Error>| token.unwrap().id;
            let mut ids: Vec<u32> = generation.by_ref().take(before).map(next).collect();
            generation.set_adapters(&change).unwrap();
            ids.extend(generation.map(next));
            ids
        };
        assert_eq!(run(7), run(0), "after {before}");
    }
}

#[test]
fn where_it_does_not_pay_it_stops_at_once_and_costs_nothing() {
    let engine = open(EngineOptions::default());
    // Of four tokens any pair has come before, and what followed is a matter of luck.
    let logit_bias = (10..14).map(|id| (id, 1e4)).collect();
    let sampling = Sampling { temperature: 1.0, seed: 1, logit_bias, ..Sampling::default() };
    let options = GenerateOptions { sampling, ..greedy(90) };
    let run = |options: GenerateOptions| {
        let mut session = session(&engine, &prompt(770, 20));
        let mut generation = session.generate(options).unwrap();
        let mut ids: Vec<u32> = generation.by_ref().take(45).map(|t| t.unwrap().id).collect();
        let (early, before) = (generation.stats().drafted_tokens, dispatches(&engine));
        ids.extend(generation.by_ref().map(|token| token.unwrap().id));
        let spent = dispatches(&engine) - before;
        (ids, [early, generation.stats().drafted_tokens], spent)
    };
    let (expected, none, cost) = run(looked_up(0, options.clone()));
    assert_eq!(none, [0, 0]);
    // Where a pass of several rows takes as long as thousands of steps.
    engine.assume_step_time(1, Duration::from_millis(10));
    (2..=4).for_each(|rows| engine.assume_step_time(rows, Duration::from_secs(100)));
    let (ids, [early, all], spent) = run(options.clone());
    assert!((1..=3).contains(&early), "one draft, and not {early} tokens");
    assert_eq!((ids, all, spent), (expected.clone(), early, cost), "then none");
    // And where a step takes as long as thousands of passes.
    engine.assume_step_time(1, Duration::from_secs(1_000_000_000));
    let (ids, [early, all], _) = run(options);
    assert!(ids == expected && early > 3 && all > early, "it goes on: {early}, {all}");
}

#[test]
fn more_than_a_pass_can_judge_is_refused() {
    let mut session = session(&SHARED, &prompt(780, 5));
    let error = session.generate(looked_up(8, greedy(5))).err().unwrap();
    let named = matches!(error, Error::InvalidArgument { name: "prompt_lookup_num_tokens", .. });
    assert!(named, "{error}");
}
