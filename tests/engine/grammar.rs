//! Answers that must look like something: a random model, which of itself says nothing valid.

use std::sync::Arc;

use epiphyte::chat::ChatTemplate;
use epiphyte::engine::BatchToken;
use epiphyte::{
    Batch, Engine, EngineOptions, Error, FinishReason, GenerateOptions, ResponseFormat, Sampling,
    Sequence, Session, generate_batch,
};
use regex::Regex;
use serde_json::{Value, json};

use super::adapters::under;
use super::{
    Answer, EOS, SHARED, VOCAB, alone, dispatches, generate, greedy, open, prompt, sampled, session,
};

fn held(format: ResponseFormat, options: GenerateOptions) -> GenerateOptions {
    GenerateOptions { response_format: Some(format), ..options }
}

fn regex(pattern: &str) -> ResponseFormat {
    ResponseFormat::Regex(pattern.into())
}

/// A person, as a program would ask for one: every part of it has an end.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 8 },
            "age": { "type": "integer", "minimum": 18, "maximum": 99 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 2 },
            "ok": { "$ref": "#/$defs/flag" },
        },
        "required": ["name", "age", "tags", "ok"],
        "additionalProperties": false,
        "$defs": { "flag": { "type": "boolean" } },
    })
}

fn assert_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    let keys = value.as_object().unwrap();
    assert_eq!(keys.len(), 4, "{text}");
    assert!((1..=8).contains(&keys["name"].as_str().unwrap().chars().count()), "{text}");
    assert!((18..=99).contains(&keys["age"].as_i64().unwrap()), "{text}");
    let tags = keys["tags"].as_array().unwrap();
    assert!(tags.len() <= 2 && tags.iter().all(|tag| *tag == "a" || *tag == "b"), "{text}");
    assert!(keys["ok"].is_boolean(), "{text}");
}

#[test]
fn an_answer_is_what_its_schema_asks_for() {
    for seed in 0..8 {
        let format = ResponseFormat::JsonSchema(schema());
        let answer = alone(&prompt(seed, 9), held(format, sampled(200, seed)));
        assert_eq!(answer.reason, Some(FinishReason::EndOfGeneration), "{}", answer.text);
        assert_person(&answer.text);
    }
}

#[test]
fn an_answer_is_what_its_expression_or_grammar_matches() {
    let lark =
        "start: \"<\" word (\",\" word)* \">\"\nword: /[a-c]{1,3}/ | \"\\\"\" start \"\\\"\"";
    let balanced = Regex::new(r#"^<["<>,a-c]*>$"#).unwrap();
    for seed in 0..6 {
        for pattern in ["(yes|no)", "[0-9]{2,5}-[a-f]+x", "\u{e9}{3}|\u{1f980}", "(ab){3}"] {
            let answer = alone(&prompt(seed, 5), held(regex(pattern), sampled(100, seed)));
            let whole = Regex::new(&format!("^(?:{pattern})$")).unwrap();
            let came_whole = answer.reason == Some(FinishReason::EndOfGeneration);
            assert!(came_whole, "{pattern}: {:?}", answer.reason);
            assert!(whole.is_match(&answer.text), "{pattern}: {:?}", answer.text);
        }
        let grammar = ResponseFormat::Lark(lark.into());
        let answer = alone(&prompt(seed, 5), held(grammar, sampled(200, seed)));
        if answer.reason == Some(FinishReason::EndOfGeneration) {
            assert!(balanced.is_match(&answer.text), "{:?}", answer.text);
            assert_eq!(answer.text.matches('<').count(), answer.text.matches('>').count());
        } else {
            assert_eq!(answer.reason, Some(FinishReason::MaxTokens));
        }
    }
}

#[test]
fn an_answer_that_is_cut_says_so_and_one_ends_where_its_format_does() {
    let cut = alone(&prompt(1, 5), held(regex("[a-z]{40}"), greedy(7)));
    assert_eq!((cut.reason, cut.ids.len()), (Some(FinishReason::MaxTokens), 7));
    assert!(cut.text.chars().all(|c| c.is_ascii_lowercase()), "{:?}", cut.text);
    // At the end already.
    let nothing = alone(&prompt(1, 5), held(regex(""), greedy(7)));
    assert_eq!(nothing.text, "");
    assert_eq!(nothing.reason, Some(FinishReason::EndOfGeneration));
    // Where more may come, the model ends it.
    let bias = vec![(EOS, 1e6)];
    let ends = Sampling { logit_bias: bias, ..Sampling::default() };
    let options = GenerateOptions { sampling: ends, max_tokens: 50, ..GenerateOptions::default() };
    let answer = alone(&prompt(1, 5), held(regex("[a-z]{3,}"), options));
    let (len, reason) = (answer.text.len(), answer.reason);
    assert!((3..9).contains(&len) && reason == Some(FinishReason::EndOfGeneration), "{len}");
    assert_eq!(answer.ids.last(), Some(&EOS), "not before, however likely it is");
}

#[test]
fn no_setting_makes_an_answer_invalid() {
    let letters = |sampling| {
        let options = GenerateOptions { sampling, ..greedy(20) };
        alone(&prompt(3, 5), held(regex("[ab]{12}"), options)).text
    };
    // Every token that may come is forbidden, every other one wanted.
    let unlikely = (0..VOCAB).map(|id| (id, -3e38)).collect();
    for sampling in [
        Sampling { logit_bias: unlikely, ..Sampling::default() },
        Sampling { logit_bias: vec![(VOCAB - 1, 1e9)], temperature: 2.0, ..Sampling::default() },
        Sampling { repetition_penalty: 1e9, ..Sampling::default() },
        Sampling { temperature: 1e9, seed: 3, ..Sampling::default() },
        Sampling { temperature: 0.01, top_k: 200, seed: 4, ..Sampling::default() },
        Sampling { temperature: 1.0, top_p: 1e-6, seed: 5, ..Sampling::default() },
        Sampling { temperature: 1.0, min_p: 1.0, seed: 6, ..Sampling::default() },
    ] {
        let said = format!("{sampling:.60?}");
        let text = letters(sampling);
        assert!(text.len() == 12 && text.chars().all(|c| "ab".contains(c)), "{said}: {text:?}");
    }
}

#[test]
fn each_sequence_of_a_batch_has_its_own() {
    let formats = [None, Some(regex("[0-9]{9}")), None, Some(ResponseFormat::JsonSchema(schema()))];
    let options = |i: usize| GenerateOptions {
        response_format: formats[i].clone(),
        ..sampled(if i == 0 { 150 } else { 40 }, i as u64)
    };
    let prompts: Vec<_> = (0..formats.len()).map(|i| prompt(50 + i as u64, 4 + i)).collect();
    let mut sessions: Vec<Session> = prompts.iter().map(|ids| session(&SHARED, ids)).collect();
    let sequence = |(i, session)| Sequence { session, options: options(i) };
    let mut ids = vec![Vec::new(); formats.len()];
    let sequences = sessions.iter_mut().enumerate().map(sequence).collect();
    let reasons = generate_batch(sequences, |i, token| {
        ids[i].push(token.id);
        std::ops::ControlFlow::Continue(())
    });
    let reasons = reasons.unwrap();
    for (i, ids) in ids.into_iter().enumerate() {
        let Answer { ids: expected, reason, .. } = alone(&prompts[i], options(i));
        assert_eq!((ids, reasons[i]), (expected, reason), "sequence {i}");
    }
}

/// Three letters, and then more ways to go on than are followed at a time.
fn too_many_ways() -> ResponseFormat {
    let ways: Vec<String> = (0..2500).map(|i| format!("\"{i}\" /[x-z]/")).collect();
    ResponseFormat::Lark(format!("start: /[a-c]/ /[a-c]/ /[a-c]/ ways\nways: {}", ways.join(" | ")))
}

#[test]
fn a_grammar_that_fails_ends_its_own_sequence_alone() {
    let formats = [None, Some(too_many_ways()), Some(regex("[0-9]{30}"))];
    let options =
        |i: usize| GenerateOptions { response_format: formats[i].clone(), ..sampled(40, i as u64) };
    let prompts: Vec<_> = (0..formats.len()).map(|i| prompt(80 + i as u64, 6)).collect();
    let mut sessions: Vec<Session> = prompts.iter().map(|ids| session(&SHARED, ids)).collect();
    let sequences = sessions.iter_mut().enumerate();
    let sequences = sequences.map(|(i, session)| Sequence { session, options: options(i) });
    let mut batch = Batch::new(sequences.collect()).unwrap();
    let mut ids = vec![Vec::new(); formats.len()];
    for next in batch.by_ref() {
        let BatchToken { index, token } = next.unwrap();
        ids[index].push(token.id);
    }
    assert_eq!(batch.finish_reason(1), Some(FinishReason::Failed));
    let error = batch.error(1).unwrap();
    let named = matches!(error, Error::InvalidArgument { name: "response_format", .. });
    assert!(!ids[1].is_empty(), "it compiled, and began");
    assert!(named && batch.error(0).is_none() && batch.error(2).is_none(), "{error}");
    let reasons = batch.finish_reasons();
    drop(batch);
    for i in [0, 2] {
        let Answer { ids: expected, reason, .. } = alone(&prompts[i], options(i));
        assert_eq!((&ids[i], reasons[i]), (&expected, reason), "sequence {i}");
    }
    assert_eq!(sessions[1].tokens(), [&prompts[1][..], &ids[1]].concat());
    // Alone, it is the answer's error, and its session goes on.
    let mut single = session(&SHARED, &prompts[1]);
    let mut answer = single.generate(options(1)).unwrap();
    let came: Vec<u32> = answer.by_ref().map_while(Result::ok).map(|token| token.id).collect();
    assert!(answer.next().is_none() && came == ids[1]);
    drop(answer);
    assert_eq!(generate(&mut single, greedy(3)).ids.len(), 3);
}

#[test]
fn answers_under_adapters_are_valid_too() {
    let engine = super::adapters::adapted(EngineOptions::default());
    let format = || ResponseFormat::JsonSchema(schema());
    let mut texts = Vec::new();
    for id in ["a", "b"] {
        let mut session = under(&engine, &[(id, 2.0)], &prompt(60, 8));
        let answer = generate(&mut session, held(format(), sampled(200, 1)));
        assert_eq!(answer.reason, Some(FinishReason::EndOfGeneration));
        assert_person(&answer.text);
        texts.push(answer.text);
    }
    assert_ne!(texts[0], texts[1], "the adapters count");
}

#[test]
fn a_grammar_costs_one_dispatch_a_token_and_nothing_without_one() {
    let engine = open(EngineOptions::default());
    let cost = |engine: &Arc<Engine>, options: GenerateOptions| {
        let mut session = session(engine, &prompt(2, 9));
        // Compiled, and the prompt's passes.
        generate(&mut session, options.clone());
        session.truncate(9);
        let before = dispatches(engine);
        let answer = generate(&mut session, options);
        assert_eq!(answer.ids.len(), 10);
        dispatches(engine) - before
    };
    let free = cost(&engine, greedy(10));
    assert_eq!(cost(&engine, held(regex("[a-z]{99}"), greedy(10))), free + 10);
    assert_eq!(cost(&engine, greedy(10)), free);
}

#[test]
fn a_format_that_cant_be_held_is_refused_by_what_is_wrong_with_it() {
    let mut session = session(&SHARED, &prompt(4, 3));
    let schema = |schema| ResponseFormat::JsonSchema(schema);
    let lark = |text: &str| ResponseFormat::Lark(text.into());
    let mut wrong = Vec::new();
    for (format, says) in [
        (schema(json!({ "type": "wish" })), "wish"),
        (schema(json!({ "not": { "type": "string" } })), "not"),
        (schema(json!({ "$ref": "#/$defs/absent" })), "absent"),
        (schema(json!({ "type": "string", "pattern": "(" })), "("),
        (schema(json!({ "type": "integer", "minimum": 3, "maximum": 2 })), ""),
        (schema(json!(7)), "schema"),
        (regex("a("), "a("),
        (regex("(?=a)"), "look"),
        (lark("beginning: \"a\""), ""),
        (lark("start: nowhere"), "nowhere"),
        (lark("start: \"a"), ""),
    ] {
        let refused = session.generate(held(format.clone(), greedy(3))).err();
        for error in [refused, format.check().err()] {
            let named = match &error {
                Some(Error::InvalidArgument { name: "response_format", reason }) => {
                    reason.contains(says) && !reason.contains('\n') && reason.len() < 400
                }
                _ => false,
            };
            if !named {
                wrong.push(format!("{says}: {error:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let no_json = ResponseFormat::json_schema("{ \"type\": ").unwrap_err().to_string();
    assert!(no_json.contains("no JSON"), "{no_json}");
    assert_eq!(session.tokens().len(), 3);
}

#[test]
fn a_required_call_is_always_one_of_the_tools() {
    let template = "{% if tools %}\n<tool_call>\n{{ messages }}{% endif %}";
    let template = ChatTemplate::new(Some(template), "", "").unwrap();
    let format = template.tool_format().unwrap();
    let level = json!({ "type": "integer", "minimum": 1, "maximum": 3 });
    let parameters = json!({
        "type": "object", "properties": { "level": level }, "required": ["level"],
        "additionalProperties": false,
    });
    let tools = [json!({ "name": "now" }), json!({ "name": "dim", "parameters": parameters })];
    for seed in 0..6 {
        let required = format.required(&tools).unwrap();
        let answer = alone(&prompt(seed, 9), held(required, sampled(200, seed)));
        assert_eq!(answer.reason, Some(FinishReason::EndOfGeneration), "{}", answer.text);
        let [call] = &format.parse(&answer.text).unwrap().calls[..] else { panic!("one call") };
        match call.name.as_str() {
            "now" => assert!(call.arguments.is_empty()),
            "dim" => assert!((1..=3).contains(&call.arguments["level"].as_i64().unwrap())),
            other => panic!("{other}"),
        }
    }
}
