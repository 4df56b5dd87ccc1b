//! The ids of llama.cpp and `SentencePiece` (tests/golden/tokenizer.py).

use std::collections::HashMap;
use std::time::Instant;

use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
use serde::Deserialize;

use crate::common;

#[derive(Deserialize)]
struct Golden {
    strings: Vec<String>,
    ids: HashMap<String, Ids>,
    spm: Spm,
}

/// Ids of every string, in decimal with spaces between.
#[derive(Deserialize)]
struct Ids {
    plain: Vec<String>,
    #[serde(default)]
    special: Vec<String>,
}

#[derive(Deserialize)]
struct Spm {
    tokens: Vec<String>,
    scores: Vec<f32>,
    token_types: Vec<i32>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/tokenizer.json")).unwrap()
}

/// Compares `tokenizer` with the set `name` of the golden file, string by string.
fn compare(golden: &Golden, name: &str, tokenizer: &Tokenizer) {
    let Ids { plain, special } = &golden.ids[name];
    for (parse_special, expected) in [(false, plain), (true, special)] {
        let options = EncodeOptions { add_bos: Some(false), parse_special, ..Default::default() };
        for (text, expected) in golden.strings.iter().zip(expected) {
            let expected =
                expected.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<u32>>();
            assert_eq!(
                tokenizer.encode(text, options).unwrap(),
                expected,
                "{name} {text:?} special {parse_special}"
            );
        }
    }
}

fn model_spec() -> Option<TokenizerSpec> {
    let file = epiphyte::format::gguf::Gguf::open(common::model_path()?).unwrap();
    Some(TokenizerSpec::from_gguf(&file).unwrap())
}

#[test]
fn every_pre_tokeniser_gives_the_ids_of_llama_cpp() {
    let Some(spec) = model_spec() else { return };
    let golden = golden();
    assert!(
        golden.strings.len() > 250 && golden.ids["smollm"].special.len() == golden.strings.len()
    );
    for pre in ["smollm", "llama-bpe", "qwen2", "gpt-2", "default"] {
        let spec = TokenizerSpec { pre: Some(pre.into()), ..spec.clone() };
        compare(&golden, pre, &Tokenizer::from_spec(spec).unwrap());
    }
}

#[test]
fn sentence_piece_gives_the_ids_of_llama_cpp_and_of_sentence_piece() {
    let golden = golden();
    let Spm { tokens, scores, token_types } = &golden.spm;
    let spec = TokenizerSpec {
        model: "llama".into(),
        tokens: tokens.clone(),
        scores: Some(scores.clone()),
        token_types: Some(token_types.clone()),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..Default::default()
    };
    let tokenizer = Tokenizer::from_spec(spec).unwrap();
    compare(&golden, "spm", &tokenizer);
    compare(&golden, "sentencepiece", &tokenizer);
}

#[test]
fn the_default_model_says_what_its_file_says() {
    let Some(spec) = model_spec() else { return };
    let tokenizer = Tokenizer::from_spec(spec).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert!(!tokenizer.add_bos());
    let ends = (0..49152).filter(|&id| tokenizer.is_end_of_generation(id)).collect::<Vec<_>>();
    assert_eq!(ends, [0, 2], "<|endoftext|> and <|im_end|>");
    assert_eq!(tokenizer.token_text(1), Some("<|im_start|>"));
    assert_eq!(tokenizer.decode(&[1, 26843, 2]), "Hi");
    assert_eq!(tokenizer.token_bytes(49152), None);
}

#[test]
fn the_default_model_decodes_what_it_encodes() {
    let Some(spec) = model_spec() else { return };
    let tokenizer = Tokenizer::from_spec(spec).unwrap();
    // The vocabulary lacks these control characters.
    let lost = ['\x04', '\x06', '\x13', '\x14', '\x16', '\x1d'];
    for text in golden().strings.iter().filter(|text| !text.contains(lost)) {
        let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
        assert_eq!(&tokenizer.decode(&ids), text);
    }
}

/// `cargo test --release --test main -- --ignored --nocapture tokenizer_speed`
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement")]
fn tokenizer_speed() {
    let Some(spec) = model_spec() else { return };
    for _ in 0..5 {
        let spec = spec.clone();
        let start = Instant::now();
        let tokenizer = Tokenizer::from_spec(spec).unwrap();
        let built = start.elapsed();
        let text = golden().strings.join(" ").repeat(50);
        let start = Instant::now();
        let ids = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
        println!(
            "built in {built:?}; {} bytes to {} ids in {:?}",
            text.len(),
            ids.len(),
            start.elapsed()
        );
    }
}
