//! Where pre-tokenisers cut, against Python's `regex` (tests/golden/pretokenize.py).

use std::collections::{BTreeMap, HashMap};

use epiphyte::tokenizer::{EncodeOptions, Tokenizer};

use super::{byte_level, char_of_byte};

/// Bytes are tokens 0 to 255; every two that are neighbours in the text make one more, so that ids
/// tell of each cut that is missed and each that is made where there is none.
fn pairs(text: &str) -> HashMap<[u8; 2], u32> {
    let mut pairs = HashMap::new();
    for pair in text.as_bytes().windows(2) {
        let id = 256 + u32::try_from(pairs.len()).unwrap();
        pairs.entry([pair[0], pair[1]]).or_insert(id);
    }
    pairs
}

/// The pair of lowest rank first, from the left, until there is none.
fn merge(piece: &[u8], pairs: &HashMap<[u8; 2], u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = piece.iter().map(|&byte| byte.into()).collect();
    let id = |a: u32, b: u32| pairs.get(&[u8::try_from(a).ok()?, u8::try_from(b).ok()?]).copied();
    while let Some((id, at)) =
        (1..ids.len()).filter_map(|i| Some((id(ids[i - 1], ids[i])?, i))).min()
    {
        ids[at - 1] = id;
        ids.remove(at);
    }
    ids
}

#[test]
fn pre_tokenisers_cut_as_the_models_own_patterns() {
    let golden: BTreeMap<String, Vec<Vec<String>>> =
        serde_json::from_str(include_str!("../golden/pretokenize.json")).unwrap();
    assert_eq!(golden.len(), 12);
    for (pre, texts) in &golden {
        for pieces in texts {
            let text = pieces.concat();
            let pairs = pairs(&text);
            let mut by_id: Vec<_> =
                pairs.iter().map(|(pair, id)| (*id, pair.map(char_of_byte))).collect();
            by_id.sort_unstable();
            let mut spec = byte_level(pre, &[], &[]);
            spec.token_types = None;
            spec.tokens.extend(by_id.iter().map(|(_, pair)| pair.iter().collect::<String>()));
            spec.merges.extend(by_id.iter().map(|(_, [a, b])| format!("{a} {b}")));
            let expected: Vec<u32> =
                pieces.iter().flat_map(|piece| merge(piece.as_bytes(), &pairs)).collect();
            let ids = Tokenizer::from_spec(spec)
                .unwrap()
                .encode(&text, EncodeOptions::default())
                .unwrap();
            assert_eq!(ids, expected, "{pre} {pieces:?}");
        }
    }
}

#[test]
fn names_of_one_pattern_cut_alike() {
    let text = "Hello we'LL 12345 camelCase\r\n  été!! 中文";
    for names in [
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx", "glm4", "chatglm-bpe"]
            [..],
        &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"],
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        &["gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "mellum"],
    ] {
        let merges =
            [("l", "l"), ("1", "2"), ("12", "3"), (" ", "w"), ("\r", "\n"), ("!", "!"), ("e", "C")];
        let ids = |pre: &&str| {
            Tokenizer::from_spec(byte_level(pre, &merges, &[]))
                .unwrap()
                .encode(text, EncodeOptions::default())
                .unwrap()
        };
        assert!(names.iter().map(ids).all(|of_name| of_name == ids(&names[0])), "{names:?}");
    }
}

#[test]
fn falcon_3_and_tekken_start_with_bos_as_llama_3() {
    for (pre, starts) in
        [("falcon3", true), ("tekken", true), ("smaug-bpe", false), ("deepseek-v3", false)]
    {
        let mut spec = byte_level(pre, &[], &["<|begin_of_text|>"]);
        spec.bos = Some(256);
        assert_eq!(Tokenizer::from_spec(spec).unwrap().add_bos(), starts, "{pre}");
    }
}
