//! Metadata that lies: one typed error each.

use epiphyte::Error;
use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::{Tokenizer, TokenizerSpec};

use super::{byte_level, sentence_piece};
use crate::common::writer::{Meta, llama};

/// The key that `change` makes unusable in a byte-level or `SentencePiece` vocabulary.
fn refused(sentence: bool, change: impl FnOnce(&mut TokenizerSpec)) -> String {
    let mut spec = if sentence {
        sentence_piece(&["a", "b"])
    } else {
        byte_level("smollm", &[("a", "b")], &["<|x|>"])
    };
    change(&mut spec);
    match Tokenizer::from_spec(spec) {
        Err(Error::InvalidMetadata { key, .. }) => {
            key.strip_prefix("tokenizer.ggml.").unwrap().to_owned()
        }
        Err(Error::Unsupported { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lengths_and_ids_must_fit() {
    assert_eq!(refused(false, |s| s.tokens.clear()), "tokens");
    assert_eq!(refused(false, |s| s.token_types.as_mut().unwrap().truncate(9)), "token_type");
    assert_eq!(refused(true, |s| s.scores.as_mut().unwrap().push(0.0)), "scores");
    assert_eq!(refused(true, |s| s.tokens.push("c".into())), "scores");
    assert_eq!(refused(false, |s| s.bos = Some(258)), "bos_token_id");
    assert_eq!(refused(false, |s| s.eos = Some(u32::MAX)), "eos_token_id");
    assert_eq!(refused(true, |s| s.unk = Some(1 << 20)), "unknown_token_id");
    assert_eq!(refused(false, |s| s.add_bos = Some(true)), "add_bos_token");
}

#[test]
fn contents_must_make_sense() {
    assert_eq!(refused(false, |s| s.tokens[1] = s.tokens[0].clone()), "tokens");
    assert_eq!(refused(true, |s| s.tokens[260] = "a".into()), "tokens");
    assert_eq!(refused(true, |s| s.tokens[4] = "<0x00>".into()), "tokens");
    assert_eq!(refused(false, |s| s.token_types.as_mut().unwrap()[3] = 7), "token_type");
    assert_eq!(refused(false, |s| s.token_types.as_mut().unwrap()[3] = i32::MIN), "token_type");
    assert_eq!(refused(true, |s| s.scores.as_mut().unwrap()[259] = f32::NAN), "scores");
    assert_eq!(refused(true, |s| s.scores = None), "scores");
    for merge in ["", "a", " ", "a ", "  ", "ab", "nowhere b", "b a", "é", "é é"] {
        assert_eq!(refused(false, |s| s.merges.push(merge.into())), "merges", "{merge:?}");
    }
}

#[test]
fn other_kinds_are_named() {
    assert_eq!(refused(false, |s| s.model = "bert".into()), "tokenizer model `bert`");
    assert_eq!(refused(false, |s| s.pre = Some("poro-chat".into())), "pre-tokeniser `poro-chat`");
}

#[test]
fn gaps_in_a_vocabulary_are_harmless() {
    let mut spec = byte_level("smollm", &[], &["", "", "<|x|>"]);
    spec.tokens[0].clear();
    let tokenizer = Tokenizer::from_spec(spec).unwrap();
    assert_eq!(tokenizer.vocab_size(), 259);
    let ids = tokenizer.encode("a\0b", Default::default()).unwrap();
    assert_eq!(ids, [97, 98], "what can't be spelt is lost");
    assert_eq!(tokenizer.token_bytes(256), Some(&b""[..]));
}

#[test]
fn long_runs_end_in_time() {
    let tokenizer =
        Tokenizer::from_spec(byte_level("llama-bpe", &[(" ", " "), ("a", "a")], &[])).unwrap();
    let sentence = Tokenizer::from_spec(sentence_piece(&["a", "aa", "▁", "▁▁"])).unwrap();
    for text in [" ".repeat(1 << 17), "a".repeat(1 << 17), "\n ".repeat(1 << 16)] {
        for tokenizer in [&tokenizer, &sentence] {
            assert_eq!(
                tokenizer.decode(&tokenizer.encode(&text, Default::default()).unwrap()),
                text
            );
        }
    }
}

/// The spec in a file of the small llama with one more key, or why there is none.
fn in_file(model: &'static str, key: &str, value: Meta) -> Result<TokenizerSpec, String> {
    let writer = llama()
        .key("tokenizer.ggml.model", Meta::Text(model))
        .key(&format!("tokenizer.{key}"), value);
    TokenizerSpec::from_gguf(&Gguf::from_bytes(writer.bytes()).unwrap()).map_err(|e| e.to_string())
}

#[test]
fn keys_that_ask_for_other_ids_are_refused_by_name() {
    for (key, value) in [
        ("ggml.remove_extra_whitespaces", Meta::Bool(true)),
        ("ggml.escape_whitespaces", Meta::Bool(false)),
        ("ggml.treat_whitespace_as_suffix", Meta::Bool(true)),
        ("ggml.add_sep_token", Meta::Bool(true)),
        ("ggml.precompiled_charsmap", Meta::I32s(vec![1])),
        ("ggml.precompiled_charsmap", Meta::Text("x")),
        ("ggml.add_space_prefix", Meta::Text("yes")),
        ("ggml.scores", Meta::Text("high")),
        ("ggml.eom_token_id", Meta::Text("x")),
    ] {
        let error = in_file("llama", key, value).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    for (key, value) in [
        ("ggml.remove_extra_whitespaces", Meta::Bool(false)),
        ("ggml.escape_whitespaces", Meta::Bool(true)),
        ("ggml.precompiled_charsmap", Meta::I32s(Vec::new())),
    ] {
        in_file("llama", key, value).unwrap();
    }
}

#[test]
fn what_a_vocabulary_has_no_use_for_may_be_anything() {
    for (model, key, value) in [
        ("gpt2", "ggml.scores", Meta::Text("high")),
        ("gpt2", "ggml.unknown_token_id", Meta::F32(0.5)),
        ("gpt2", "ggml.add_space_prefix", Meta::U32(3)),
        ("gpt2", "ggml.remove_extra_whitespaces", Meta::Bool(true)),
        ("llama", "ggml.merges", Meta::U32(3)),
        ("llama", "ggml.pre", Meta::U32(3)),
        ("llama", "ggml.padding_token_id", Meta::Raw(5, (-1_i32).to_le_bytes().into())),
        ("llama", "chat_template", Meta::U32(3)),
        ("llama", "huggingface.json", Meta::U32(3)),
    ] {
        in_file(model, key, value).unwrap();
    }
    let mut spec = byte_level("smollm", &[], &[]);
    spec.pad = Some(u32::MAX);
    Tokenizer::from_spec(spec.clone()).unwrap();
    spec.token_types = None;
    Tokenizer::from_spec(spec).unwrap();
}
