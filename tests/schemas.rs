//! The default model under other people's schemas: `tests/structured/schemas.py` says how to get
//! them, and judges the answers.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use epiphyte::tokenizer::EncodeOptions;
use epiphyte::{
    Engine, EngineOptions, FinishReason, GenerateOptions, ResponseFormat, Sampling, Sequence,
    Session, generate_batch,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::common::model_path;
use crate::common::skip::skip;

/// Answered together.
const BATCH: usize = 8;
const MAX_TOKENS: usize = 24;

#[test]
fn answers_under_schemas_of_a_public_suite() {
    let Some(path) = std::env::var_os("EPIPHYTE_SCHEMAS").map(PathBuf::from) else {
        return skip(
            "others' schemas: EPIPHYTE_SCHEMAS names what tests/structured/schemas.py makes",
        );
    };
    let Some(model) = model_path() else { return };
    let options = EngineOptions { context: Some(1024), ..EngineOptions::default() };
    let engine = Engine::open(model, options).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let cases: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut answers: Vec<Value> = cases.iter().map(|case| refusal(&case["schema"])).collect();
    let accepted: Vec<usize> = (0..cases.len()).filter(|&i| answers[i].is_null()).collect();
    for batch in accepted.chunks(BATCH) {
        let schemas: Vec<(usize, &Value)> =
            batch.iter().map(|&i| (i, &cases[i]["schema"])).collect();
        for (i, answer) in batch.iter().zip(answer(&engine, &schemas)) {
            answers[*i] = answer;
        }
        let lines = answers.iter().fold(String::new(), |mut lines, answer| {
            writeln!(lines, "{answer}").unwrap();
            lines
        });
        std::fs::write(path.with_extension("answers.jsonl"), lines).unwrap();
    }
    // Whether they are valid is said by the script; that they are JSON can be seen here.
    for (case, answer) in cases.iter().zip(&answers) {
        let came_whole = answer["finish_reason"] == "end_of_generation";
        // A number may be larger than any that Rust has.
        let text = answer["text"].as_str().unwrap_or_default();
        let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
        assert!(!came_whole || is_json, "{case}: {answer}");
    }
}

/// Why a schema is refused; null if it is not.
fn refusal(schema: &Value) -> Value {
    let error = ResponseFormat::JsonSchema(schema.clone()).check().err();
    error.map_or(Value::Null, |error| json!({ "refused": error.to_string() }))
}

/// What the model says under each of numbered schemas.
fn answer(engine: &Arc<Engine>, schemas: &[(usize, &Value)]) -> Vec<Value> {
    let mut sessions: Vec<Session> = schemas.iter().map(|_| engine.session()).collect();
    let mut sequences = Vec::new();
    // So that more of them come to their end.
    let ends = engine.base().tokenizer.encode("\"]}", EncodeOptions::default()).unwrap();
    let ends = ends.into_iter().chain(engine.base().tokenizer.eos());
    let logit_bias: Vec<(u32, f32)> = ends.map(|id| (id, 6.0)).collect();
    for ((number, schema), session) in schemas.iter().zip(&mut sessions) {
        session.push_text("An example of JSON:\n").unwrap();
        let seed = *number as u64;
        let options = GenerateOptions {
            max_tokens: MAX_TOKENS,
            sampling: Sampling {
                temperature: 1.0,
                seed,
                logit_bias: logit_bias.clone(),
                ..Sampling::default()
            },
            response_format: Some(ResponseFormat::JsonSchema((*schema).clone())),
            ..GenerateOptions::default()
        };
        sequences.push(Sequence { session, options });
    }
    let mut texts = vec![String::new(); schemas.len()];
    let reasons = generate_batch(sequences, |i, token| {
        texts[i] += &token.text;
        ControlFlow::Continue(())
    });
    let reasons = reasons.unwrap();
    let cut_or_whole = [FinishReason::EndOfGeneration, FinishReason::MaxTokens].map(Some);
    assert!(reasons.iter().all(|reason| cut_or_whole.contains(reason)), "{reasons:?}");
    let answer = |(text, reason)| json!({ "text": text, "finish_reason": reason });
    texts.into_iter().zip(reasons).map(answer).collect()
}
