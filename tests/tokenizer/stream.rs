//! Streaming detokenisation, special tokens, BOS and EOS.

use epiphyte::Error;
use epiphyte::tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerSpec};
use proptest::prelude::*;

use super::{byte_level, char_of_byte, sentence_piece};

const PIECES: [&str; 4] = ["▁a", "▁", "é", "▁▁"];

fn stream(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> String {
    let mut detokenizer = tokenizer.detokenizer(options);
    let mut text = ids.iter().map(|&id| detokenizer.push(id)).collect::<String>();
    text.push_str(&detokenizer.finish());
    text
}

fn spec(sentence: bool) -> TokenizerSpec {
    if sentence {
        return sentence_piece(&PIECES);
    }
    let mut spec = byte_level("smollm", &[], &["<|x|>"]);
    // Two of the three bytes of a euro sign.
    spec.tokens.push([0xE2, 0x82].map(char_of_byte).iter().collect());
    spec.token_types.as_mut().unwrap().push(1);
    spec
}

proptest! {
    #[test]
    fn a_stream_says_what_decode_says(
        // Bytes that start, continue and break characters are frequent; some ids lie outside.
        ids in prop::collection::vec(prop_oneof![0u32..270, 0x80u32..0x100], 0..40),
        sentence: bool, show_special: bool, continuation: bool,
    ) {
        let tokenizer = Tokenizer::from_spec(spec(sentence)).unwrap();
        let options = DecodeOptions { show_special, continuation };
        let bytes = ids.iter().filter(|&&id| show_special || !tokenizer.is_special(id));
        let bytes = bytes.flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().to_vec()).collect::<Vec<u8>>();
        let strip = sentence && !continuation && bytes.first() == Some(&b' ');
        let expected = String::from_utf8_lossy(&bytes[usize::from(strip)..]).into_owned();
        prop_assert_eq!(tokenizer.decode_with(&ids, options), expected.clone());
        prop_assert_eq!(stream(&tokenizer, &ids, options), expected);
    }
}

#[test]
fn a_character_comes_whole() {
    let tokenizer = Tokenizer::from_spec(byte_level("smollm", &[], &["<|x|>"])).unwrap();
    let mut detokenizer = tokenizer.detokenizer(DecodeOptions::default());
    let pushed = "a€😀".bytes().map(|byte| detokenizer.push(byte.into())).collect::<Vec<_>>();
    assert_eq!(pushed, ["a", "", "", "€", "", "", "", "😀"]);
    // A character that is cut short is told apart from what follows it.
    assert_eq!([0xE2, 0x82, u32::from(b'a')].map(|id| detokenizer.push(id)), ["", "", "\u{fffd}a"]);
    assert_eq!(detokenizer.push(0xF0), "");
    assert_eq!(detokenizer.push(256), "", "a special token shows nothing");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn special_tokens_count_only_when_asked() {
    let mut spec = byte_level("smollm", &[], &["<|x|>", "<|x|>>", "[user]"]);
    spec.token_types.as_mut().unwrap()[258] = 4;
    let tokenizer = Tokenizer::from_spec(spec).unwrap();
    let text = "a<|x|>b<|x|>>[user]";
    let plain = tokenizer.encode(text, EncodeOptions::default()).unwrap();
    let bytes = "a<|x|>b<|x|>>".bytes().map(u32::from).chain([258]).collect::<Vec<_>>();
    assert_eq!(plain, bytes, "a user-defined token always counts");
    let special = tokenizer
        .encode(text, EncodeOptions { parse_special: true, ..Default::default() })
        .unwrap();
    assert_eq!(special, [97, 256, 98, 257, 258], "the longest at the leftmost place");
    assert_eq!(tokenizer.decode(&special), "ab[user]");
    assert_eq!(
        tokenizer.decode_with(&special, DecodeOptions { show_special: true, ..Default::default() }),
        text
    );
}

#[test]
fn a_continuation_has_nothing_put_before_it() {
    let tokenizer = Tokenizer::from_spec(sentence_piece(&["▁a", "a", "▁"])).unwrap();
    let encode = |text, continuation, parse_special| {
        tokenizer
            .encode(text, EncodeOptions { continuation, parse_special, ..Default::default() })
            .unwrap()
    };
    assert_eq!(encode("a a", false, false), [1, 259, 259]);
    assert_eq!(encode("a a", true, false), [260, 259], "neither BOS nor a space");
    assert_eq!(encode(" a", true, false), [259], "the text's own space stays");
    assert_eq!(
        encode("a</s>a", true, true),
        [260, 2, 259],
        "what follows a special token continues nothing"
    );
    assert_eq!(encode("</s>a", true, true), [2, 259]);
    assert!(encode("", true, true).is_empty());
    let options = EncodeOptions { continuation: true, add_bos: Some(true), ..Default::default() };
    assert_eq!(tokenizer.encode("a", options).unwrap(), [1, 260], "BOS when asked for");
    let continuation = DecodeOptions { continuation: true, ..Default::default() };
    for text in ["a", " a", "aa a  ", "é", ""] {
        assert_eq!(tokenizer.decode_with(&encode(text, true, false), continuation), text);
    }
}

#[test]
fn bos_and_eos_come_as_the_file_or_the_caller_asks() {
    let mut spec = sentence_piece(&PIECES);
    let encode = |spec: &TokenizerSpec, add_bos, add_eos| {
        let tokenizer = Tokenizer::from_spec(spec.clone()).unwrap();
        tokenizer.encode("a", EncodeOptions { add_bos, add_eos, ..Default::default() })
    };
    assert_eq!(
        encode(&spec, None, None).unwrap(),
        [1, 259],
        "SentencePiece starts with BOS by default"
    );
    assert_eq!(encode(&spec, Some(false), Some(true)).unwrap(), [259, 2]);
    (spec.add_bos, spec.add_eos) = (Some(false), Some(true));
    assert_eq!(encode(&spec, None, None).unwrap(), [259, 2]);
    assert_eq!(encode(&spec, Some(true), Some(false)).unwrap(), [1, 259]);
    (spec.bos, spec.add_space_prefix) = (None, Some(false));
    assert!(matches!(
        encode(&spec, Some(true), None),
        Err(Error::InvalidArgument { name: "add_bos", .. })
    ));
    assert_eq!(
        encode(&spec, None, Some(false)).unwrap(),
        [3 + u32::from(b'a')],
        "no prefix, so the byte"
    );

    let mut spec = byte_level("llama-bpe", &[], &["<|begin_of_text|>", "<|eot_id|>"]);
    spec.bos = Some(256);
    assert_eq!(encode(&spec, None, None).unwrap(), [256, 97], "llama-3 starts with BOS by default");
    spec.pre = Some("qwen2".into());
    assert_eq!(encode(&spec, None, None).unwrap(), [97]);
    let tokenizer = Tokenizer::from_spec(spec).unwrap();
    assert!(tokenizer.is_end_of_generation(257) && !tokenizer.is_end_of_generation(256));
}
