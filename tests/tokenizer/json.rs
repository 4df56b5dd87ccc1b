//! `tokenizer.json` against the same vocabulary as GGUF metadata, and files that lie.

use epiphyte::Error;
use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{byte_level, sentence_piece};

const MERGES: [(&str, &str); 6] =
    [("a", "b"), ("ab", "c"), (" ", "a"), ("1", "2"), (" ", " "), ("\n", "\n")];

/// The file that Hugging Face's converters would write for `spec`.
fn file(spec: &TokenizerSpec, pre_tokenizer: &Value, decoder: &Value, normalizer: &Value) -> Value {
    let vocab = spec.tokens.iter().zip(0..).map(|(text, id)| (text.clone(), json!(id)));
    let special = |id: usize| {
        json!({
            "id": id, "content": spec.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let types = spec.token_types.as_deref().unwrap();
    let added = (0..types.len())
        .filter(|&id| types[id] == 3 || types[id] == 2)
        .map(special)
        .collect::<Vec<_>>();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": spec.unk.map(|id| &spec.tokens[id as usize]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": spec.model == "llama", "vocab": Value::Object(vocab.collect()), "merges": spec.merges,
        },
    })
}

fn smollm() -> (TokenizerSpec, Value) {
    let spec = byte_level("smollm", &MERGES, &["<|im_start|>", "<|im_end|>"]);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let pre = json!({"type": "Sequence", "pretokenizers": [digits, byte_level]});
    let file = file(&spec, &pre, &byte_level, &Value::Null);
    (spec, file)
}

fn load(file: &Value) -> Result<Tokenizer, Error> {
    Tokenizer::from_tokenizer_json(file.to_string().as_bytes())
}

proptest! {
    #[test]
    fn both_files_make_one_tokenizer(text in "([abc 12\n'é!]|<\\|im_end\\|>){0,30}", parse_special: bool) {
        let (spec, file) = smollm();
        let (gguf, json) = (Tokenizer::from_spec(spec).unwrap(), load(&file).unwrap());
        let options = EncodeOptions { parse_special, ..Default::default() };
        let ids = gguf.encode(&text, options).unwrap();
        prop_assert_eq!(&json.encode(&text, options).unwrap(), &ids);
        prop_assert_eq!(json.decode(&ids), gguf.decode(&ids));
    }
}

#[test]
fn both_files_name_the_same_tokens() {
    let (spec, file) = smollm();
    let (gguf, json) = (Tokenizer::from_spec(spec).unwrap(), load(&file).unwrap());
    assert_eq!(json.vocab_size(), gguf.vocab_size());
    assert_eq!(
        (json.bos(), json.eos()),
        (None, Some(263)),
        "the end of a turn is known by its name"
    );
    for id in 0..300 {
        assert_eq!(json.token_bytes(id), gguf.token_bytes(id), "{id}");
        assert_eq!(json.is_special(id), gguf.is_special(id), "{id}");
        assert_eq!(json.is_end_of_generation(id), gguf.is_end_of_generation(id), "{id}");
    }
}

#[test]
fn sentence_piece_style_files_spell_spaces_and_bytes() {
    let mut spec = sentence_piece(&["▁", "a", "b", "▁a", "ab"]);
    spec.merges = vec!["▁ a".into(), "a b".into()];
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    let mut file = file(&spec, &Value::Null, &decoder, &normalizer);
    let sequence = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    file["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [sequence("<s>"), {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    let tokenizer = load(&file).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), true));
    let ids = tokenizer.encode("ab aé", EncodeOptions::default()).unwrap();
    assert_eq!(ids, [1, 262, 261, 262, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokenizer.decode(&ids), "ab aé");
    assert_eq!(tokenizer.token_bytes(262), Some(&b" a"[..]));
    // The same without the space that starts a text, up to the first special token.
    let gguf = Tokenizer::from_spec(spec).unwrap();
    for text in ["ab a", " ab", "a</s>ab a", "</s>a", "", "aé</s></s> a"] {
        for parse_special in [false, true] {
            let options = EncodeOptions { continuation: true, parse_special, ..Default::default() };
            assert_eq!(
                tokenizer.encode(text, options).unwrap(),
                gguf.encode(text, options).unwrap(),
                "{text}"
            );
        }
    }
}

#[test]
fn spaces_in_an_added_token_are_decoded_like_any_others() {
    let spec = sentence_piece(&["▁", "a", "▁▁"]);
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]});
    let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut file = file(&spec, &Value::Null, &decoder, &normalizer);
    file["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 261, "content": "▁▁", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": false,
    }));
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.token_bytes(261), Some(&b"  "[..]));
    assert_eq!(tokenizer.decode(&[260, 261, 260, 259, 260]), "a  a a");
}

#[test]
fn a_continuation_has_no_prefix_whatever_part_of_the_file_puts_it() {
    let continued = EncodeOptions { continuation: true, ..Default::default() };
    let mut spec = sentence_piece(&["▁", "a", "b", "▁a"]);
    spec.merges = vec!["▁ a".into()];
    let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
    for scheme in [
        json!({"prepend_scheme": "first"}),
        json!({"prepend_scheme": "always"}),
        json!({"add_prefix_space": true}),
    ] {
        let mut space = json!({"type": "Metaspace", "replacement": "▁", "split": false});
        space.as_object_mut().unwrap().extend(scheme.as_object().unwrap().clone());
        let pre = json!({"type": "Sequence", "pretokenizers": [space]});
        let tokenizer = load(&file(&spec, &pre, &decoder, &Value::Null)).unwrap();
        assert_eq!(
            tokenizer.encode("ab", EncodeOptions::default()).unwrap(),
            [262, 261],
            "{scheme}"
        );
        assert_eq!(tokenizer.encode("ab", continued).unwrap(), [260, 261], "{scheme}");
    }
    let (_, mut file) = smollm();
    file["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true);
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("b", EncodeOptions::default()).unwrap(), [32, 98]);
    assert_eq!(tokenizer.encode("b", continued).unwrap(), [98]);
}

#[test]
fn files_that_lie_are_refused() {
    let refused = |change: fn(&mut Value)| {
        let (_, mut file) = smollm();
        change(&mut file);
        let error = load(&file).unwrap_err();
        assert!(matches!(error, Error::Tokenizer(_) | Error::Unsupported { .. }), "{error:?}");
        error.to_string()
    };
    assert!(Tokenizer::from_tokenizer_json(b"").is_err());
    assert!(Tokenizer::from_tokenizer_json(b"{\"model\": 1}").is_err());
    assert!(Tokenizer::from_tokenizer_json(&[b'['; 1 << 16]).is_err());
    refused(|file| file["model"]["vocab"] = json!({}));
    refused(|file| file["model"]["vocab"]["x"] = json!(-1));
    assert!(
        refused(|file| file["model"]["vocab"]["x"] = json!(u32::MAX)).contains("not a vocabulary")
    );
    refused(|file| file["model"]["merges"] = json!(["nowhere b"]));
    refused(|file| file["model"]["merges"] = json!([1]));
    assert!(refused(|file| file["decoder"] = Value::Null).contains("decoder"));
    assert!(
        refused(|file| file["model"]["continuing_subword_prefix"] = json!("##")).contains("prefix")
    );
    refused(|file| file["pre_tokenizer"] = json!({"type": "Nothing"}));
}
