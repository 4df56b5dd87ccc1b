//! Both encoders against their definitions, written as plainly as can be.

use std::collections::HashMap;
use std::sync::LazyLock;

use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
use proptest::prelude::*;

use super::{byte_level, char_of_byte, sentence_piece};

const MERGES: [(&str, &str); 13] = [
    ("l", "l"),
    ("'", "ll"),
    ("t", "h"),
    (" ", "th"),
    ("th", "e"),
    (" th", "e"),
    (" ", " "),
    ("  ", "  "),
    ("1", "2"),
    ("12", "3"),
    (" ", "1"),
    ("\n", "\n"),
    ("!", "\n"),
];

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, EncodeOptions { add_bos: Some(false), ..Default::default() }).unwrap()
}

/// GPT-2's byte-level BPE of one piece: merge the pair of lowest rank, everywhere from the left,
/// until there is none.
fn merge_piece(spec: &TokenizerSpec, piece: &str) -> Vec<u32> {
    let rank = |a: &str, b: &str| spec.merges.iter().position(|merge| *merge == format!("{a} {b}"));
    let mut symbols = piece.bytes().map(|b| char_of_byte(b).to_string()).collect::<Vec<_>>();
    while let Some((_, at)) =
        (1..symbols.len()).filter_map(|i| Some((rank(&symbols[i - 1], &symbols[i])?, i))).min()
    {
        let right = symbols.remove(at);
        symbols[at - 1] += &right;
    }
    let ids =
        symbols.iter().map(|symbol| spec.tokens.iter().position(|token| token == symbol).unwrap());
    ids.map(|id| u32::try_from(id).unwrap()).collect()
}

/// Where each pre-tokeniser cuts, by hand from its regular expressions; `|` is the cut.
const CUTS: [(&str, &str); 30] = [
    ("smollm", "Hello| world"),
    ("smollm", "a|1|2|b| |3"),
    ("smollm", "the|  |7|  | x"),
    ("smollm", "we|'ll| go|'LL|!"),
    ("smollm", "a|\n|\nb|   "),
    ("smollm", "½|²|!"),
    ("gpt-2", "a|12|b| 345|.| 6"),
    ("gpt-2", "it|'s|  | x|\t\t|\ty"),
    ("gpt-2", "!?|\n|\n|1"),
    ("llama-bpe", "we|'LL| go|'s"),
    ("llama-bpe", "123|456|7| |89"),
    ("llama-bpe", "a|!!\n\n|b"),
    ("llama-bpe", "x|  \n|   | y"),
    ("llama-bpe", ".foo|(bar| baz|)"),
    ("llama-bpe", "\tx|\n|\ty"),
    ("llama-bpe", "a| |1"),
    ("qwen2", "1|2|3| |4"),
    ("qwen2", "we|'VE| x|1|y"),
    ("qwen2", "a|!\r\n|b|  \n \n|  "),
    ("qwen2", "$x|=$|y"),
    ("default", "a|==|b|.| c"),
    ("default", "123|456|7"),
    ("default", " |123|456"),
    ("default", "it|'|s| $|5"),
    ("default", "x| |(|y|)"),
    ("gpt-2", "été| 中文|!"),
    ("llama-bpe", "été| 中文|!"),
    ("smollm", "e|\u{301}|x"),
    ("qwen2", "😀\u{200d}|ok"),
    ("gpt-2", "\u{a0}|x"),
];

/// `spec` with one more merge for every cut, that of the two bytes around it: a missed cut shows.
fn with_merges_across(mut spec: TokenizerSpec, pieces: &[&str]) -> TokenizerSpec {
    spec.token_types = None;
    for pair in pieces.windows(2) {
        let left = char_of_byte(*pair[0].as_bytes().last().unwrap());
        let right = char_of_byte(pair[1].as_bytes()[0]);
        let token = format!("{left}{right}");
        if !spec.tokens.contains(&token) {
            spec.tokens.push(token);
            spec.merges.push(format!("{left} {right}"));
        }
    }
    spec
}

#[test]
fn pieces_are_merged_apart() {
    for (pre, cut) in CUTS {
        let pieces = cut.split('|').collect::<Vec<_>>();
        let text = pieces.concat();
        let merges_inside = byte_level(pre, &MERGES, &[]);
        let merges_across = with_merges_across(byte_level(pre, &[], &[]), &pieces);
        for spec in [merges_inside, merges_across] {
            let expected =
                pieces.iter().flat_map(|piece| merge_piece(&spec, piece)).collect::<Vec<_>>();
            assert_eq!(
                encode(&Tokenizer::from_spec(spec).unwrap(), &text),
                expected,
                "{pre} {cut:?}"
            );
        }
    }
}

#[test]
fn llama_3_takes_a_whole_piece_that_is_a_token() {
    // " xyz" is a token that no merge makes.
    let mut spec = byte_level("llama-bpe", &[("x", "y")], &[]);
    spec.tokens.push(format!("{}xyz", char_of_byte(b' ')));
    spec.token_types = None;
    let whole = u32::try_from(spec.tokens.len()).unwrap() - 1;
    assert_eq!(
        encode(&Tokenizer::from_spec(spec.clone()).unwrap(), "a xyz"),
        [u32::from(b'a'), whole]
    );
    spec.pre = Some("qwen2".into());
    let expected = [u32::from(b'a'), u32::from(b' '), 256, u32::from(b'z')];
    assert_eq!(encode(&Tokenizer::from_spec(spec).unwrap(), "a xyz"), expected);
}

/// `SentencePiece`: join the neighbours that make the best-scored piece, leftmost first, until
/// there are none; what is no piece becomes bytes.
fn sentence_piece_by_definition(spec: &TokenizerSpec, text: &str) -> Vec<u32> {
    let scores = spec.scores.as_deref().unwrap();
    let pieces = spec.tokens.iter().enumerate().skip(259).map(|(id, piece)| (piece.as_str(), id));
    let pieces = pieces.collect::<HashMap<_, _>>();
    let mut symbols =
        format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect::<Vec<_>>();
    loop {
        let joined = |i: usize| pieces.get(format!("{}{}", symbols[i], symbols[i + 1]).as_str());
        let mut best: Option<(f32, usize)> = None;
        for i in 0..symbols.len().saturating_sub(1) {
            if let Some(score) =
                joined(i).map(|&id| scores[id]).filter(|&score| best.is_none_or(|(b, _)| score > b))
            {
                best = Some((score, i));
            }
        }
        let Some((_, at)) = best else { break };
        let right = symbols.remove(at + 1);
        symbols[at] += &right;
    }
    let ids = |symbol: &String| match pieces.get(symbol.as_str()) {
        Some(&id) => vec![u32::try_from(id).unwrap()],
        None => symbol.bytes().map(|byte| u32::from(byte) + 3).collect(),
    };
    symbols.iter().flat_map(ids).collect()
}

const PIECES: [&str; 22] = [
    "▁a",
    "ab",
    "ba",
    "aba",
    "▁ab",
    "▁▁",
    "▁▁▁▁",
    "bb",
    "abab",
    "bab",
    "é",
    "éa",
    "aa",
    "aaa",
    "a",
    "b",
    "▁",
    "abb",
    "▁b",
    "ca",
    "cab",
    "<0x41",
];

proptest! {
    #[test]
    fn byte_level_merges_by_definition(piece in "[a-c]{1,24}") {
        // Letters reach the merges in one piece.
        let merges = [("a", "b"), ("b", "c"), ("a", "a"), ("ab", "a"), ("a", "bc"), ("b", "a"), ("aa", "aa"), ("ab", "c")];
        let mut spec = byte_level("gpt-2", &merges, &[]);
        // "abc" is one token that two merges make.
        spec.tokens.truncate(spec.tokens.len() - 1);
        spec.token_types = None;
        let tokenizer = Tokenizer::from_spec(spec.clone()).unwrap();
        prop_assert_eq!(encode(&tokenizer, &piece), merge_piece(&spec, &piece));
    }

    #[test]
    fn sentence_piece_merges_by_definition(text in "[abcé 中A<>0x4]{1,40}", shuffle in any::<u64>()) {
        let mut spec = sentence_piece(&PIECES);
        // Any order of scores, with ties.
        for (i, score) in spec.scores.as_mut().unwrap().iter_mut().skip(259).enumerate() {
            *score = f32::from(u8::try_from((shuffle >> (i % 32)) % 7).unwrap());
        }
        let tokenizer = Tokenizer::from_spec(spec.clone()).unwrap();
        prop_assert_eq!(encode(&tokenizer, &text), sentence_piece_by_definition(&spec, &text));
    }

    #[test]
    fn byte_level_decodes_what_it_encodes(text in any::<String>(), pre in 0usize..5) {
        static TOKENIZERS: LazyLock<[Tokenizer; 5]> = LazyLock::new(|| {
            ["smollm", "llama-bpe", "qwen2", "gpt-2", "default"]
                .map(|pre| Tokenizer::from_spec(byte_level(pre, &MERGES, &["<|end|>"])).unwrap())
        });
        let tokenizer = &TOKENIZERS[pre];
        prop_assert_eq!(tokenizer.decode(&encode(tokenizer, &text)), text);
    }

    #[test]
    fn sentence_piece_decodes_what_it_encodes(text in any::<String>()) {
        // U+2581 is how this vocabulary writes a space.
        let text = text.replace('▁', " ");
        let tokenizer = Tokenizer::from_spec(sentence_piece(&PIECES)).unwrap();
        prop_assert_eq!(tokenizer.decode(&encode(&tokenizer, &text)), text);
    }
}
