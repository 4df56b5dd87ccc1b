//! Tokenizer metadata of any content: an error or a tokenizer whose every method works.
//! `cargo +nightly fuzz run tokenizer`

#![no_main]

use arbitrary::Arbitrary;
use epiphyte::tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerSpec};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    spec: Spec,
    /// Several, for most of the time goes to the compiling of a tokenizer's regular expressions.
    texts: [String; 8],
    ids: Vec<u16>,
    options: [Option<bool>; 2],
    flags: [bool; 4],
}

#[derive(Arbitrary, Debug)]
struct Spec {
    llama: bool,
    pre: u8,
    /// All byte tokens come first, so that more texts can be spelt.
    bytes: bool,
    tokens: Vec<String>,
    merges: Vec<Merge>,
    scores: Option<Vec<f32>>,
    token_types: Option<Vec<u8>>,
    ids: [Option<u8>; 5],
    flags: [Option<bool>; 3],
}

#[derive(Arbitrary, Debug)]
enum Merge {
    Text(String),
    Pair(u8, u8),
}

/// What pairs are merged to becomes a token.
fn merges(merges: Vec<Merge>, tokens: &mut Vec<String>) -> Vec<String> {
    let mut texts = Vec::new();
    for merge in merges {
        match merge {
            Merge::Text(text) => texts.push(text),
            Merge::Pair(a, b) => {
                let (Some(a), Some(b)) = (tokens.get(usize::from(a)), tokens.get(usize::from(b))) else { continue };
                let (joined, text) = (format!("{a}{b}"), format!("{a} {b}"));
                if !tokens.contains(&joined) {
                    tokens.push(joined);
                }
                texts.push(text);
            }
        }
    }
    texts
}

fn spec(spec: Spec) -> TokenizerSpec {
    let mut tokens = Vec::new();
    if spec.bytes && spec.llama {
        tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    } else if spec.bytes {
        tokens.extend(('!'..='~').chain('¡'..='¬').chain('®'..='ń').map(String::from));
    }
    let first = tokens.len();
    tokens.extend(spec.tokens);
    let merges = merges(spec.merges, &mut tokens);
    let len = tokens.len();
    let pre = ["smollm", "llama-bpe", "qwen2", "gpt-2", "default", "tekken", "deepseek-llm", "other"];
    let [bos, eos, eot, unk, pad] = spec.ids.map(|id| id.map(u32::from));
    let [add_bos, add_eos, add_space_prefix] = spec.flags;
    // Mostly of the right length, so that the rest is reached.
    let scores = spec.scores.map(|mut scores| {
        if scores.len() > first {
            return scores;
        }
        scores.resize(len, 0.0);
        scores
    });
    let token_types = spec.token_types.map(|types| {
        let mut types = types.into_iter().map(|kind| i32::from(kind % 8)).collect::<Vec<_>>();
        if types.len() < len {
            types.resize(len, 1);
        }
        let by = types.len().min(len - first);
        types.rotate_right(by);
        types
    });
    TokenizerSpec {
        model: if spec.llama { "llama" } else { "gpt2" }.into(),
        pre: pre.get(usize::from(spec.pre % 8)).map(|&pre| pre.to_owned()),
        tokens,
        merges,
        scores,
        token_types,
        bos,
        eos,
        eot,
        eom: eot,
        unk,
        pad,
        add_bos,
        add_eos,
        add_space_prefix,
        chat_template: Some("<|im_start|>[INST]<|".into()),
    }
}

fuzz_target!(|input: Input| {
    let Ok(tokenizer) = Tokenizer::from_spec(spec(input.spec)) else { return };
    let [add_bos, add_eos] = input.options;
    let [parse_special, show_special, continuation, continued] = input.flags;
    let decode = DecodeOptions { show_special, continuation };
    let options = EncodeOptions { add_bos, add_eos, parse_special, continuation: continued };
    let encoded = input.texts.iter().map(|text| tokenizer.encode(text, options).unwrap_or_default());
    let arbitrary = input.ids.into_iter().map(u32::from).collect::<Vec<_>>();
    for ids in encoded.chain([arbitrary]) {
        let mut detokenizer = tokenizer.detokenizer(decode);
        let mut text = ids.iter().map(|&id| detokenizer.push(id)).collect::<String>();
        text += &detokenizer.finish();
        assert_eq!(text, tokenizer.decode_with(&ids, decode));
    }
});
