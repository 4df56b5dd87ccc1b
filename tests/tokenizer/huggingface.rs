//! The ids of Hugging Face's tokenizers on mixed text: tests/golden/huggingface_ids.py.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use epiphyte::format::gguf::Gguf;
use epiphyte::library::{Entry, EntryKind, Library};
use epiphyte::tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerSpec};
use serde::Deserialize;
use serde_json::Value;

use crate::common::skip::skip;

#[derive(Deserialize)]
struct Golden {
    lines: Vec<String>,
    ids: HashMap<String, Vec<String>>,
    vocabularies: HashMap<String, Vocabulary>,
}

#[derive(Deserialize)]
struct Vocabulary {
    tokenizer: Value,
    vocab_size: usize,
}

const TEXT: EncodeOptions = EncodeOptions {
    add_bos: Some(false),
    add_eos: Some(false),
    parse_special: false,
    continuation: false,
};

/// Nothing is put before a text, so nothing is taken from it.
const CONTINUED: DecodeOptions = DecodeOptions { show_special: false, continuation: true };

/// The tokenizer that a GGUF file of this vocabulary has. Such files know of no normal form, so
/// Qwen's NFC is left to the text.
fn as_gguf(mut file: Value, config: &Value, vocab_size: usize) -> Tokenizer {
    if file["normalizer"]["type"] == "NFC" {
        file["normalizer"] = Value::Null;
    }
    let (file, config) = (file.to_string(), config.to_string());
    let spec = TokenizerSpec::from_tokenizer_json(&file, Some(&config), vocab_size).unwrap();
    Tokenizer::from_spec(spec).unwrap()
}

/// The tokenizer that a GGUF file of Llama 2's vocabulary has: of SentencePiece, whose pieces are
/// scored in the order of their first merges.
fn as_sentencepiece(file: &Value) -> Tokenizer {
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (text, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = text.clone();
    }
    let mut scores = vec![0.0; tokens.len()];
    for (place, merge) in file["model"]["merges"].as_array().unwrap().iter().enumerate().rev() {
        let joined = match merge {
            Value::String(pair) => pair.replacen(' ', "", 1),
            pair => format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        scores[vocab[&joined].as_u64().unwrap() as usize] = -(place as f32);
    }
    let kind = |id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    let spec = TokenizerSpec {
        model: "llama".into(),
        scores: Some(scores),
        token_types: Some((0..tokens.len()).map(kind).collect()),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        tokens,
        ..TokenizerSpec::default()
    };
    Tokenizer::from_spec(spec).unwrap()
}

/// Lines of which the ids are others, and of which another text comes back, with what came.
fn differences(
    tokenizer: &Tokenizer,
    lines: &[String],
    expected: &[Vec<u32>],
    decode: DecodeOptions,
) -> [Vec<(usize, String)>; 2] {
    assert_eq!(lines.len(), expected.len());
    let [mut ids, mut texts] = [Vec::new(), Vec::new()];
    for (i, (line, expected)) in lines.iter().zip(expected).enumerate() {
        let got = tokenizer.encode(line, TEXT).unwrap();
        let decoded = tokenizer.decode_with(&got, decode);
        if got != *expected {
            ids.push((i, format!("{line:?}: {got:?}, not {expected:?}")));
        }
        if decoded != *line {
            texts.push((i, format!("{line:?} became {decoded:?}")));
        }
    }
    [ids, texts]
}

#[test]
fn a_sample_has_the_ids_of_hugging_face() {
    let golden: Golden =
        serde_json::from_str(include_str!("../golden/huggingface_ids.json")).unwrap();
    assert_eq!(golden.vocabularies.len(), 2);
    for (name, Vocabulary { tokenizer, vocab_size }) in golden.vocabularies {
        let parse = |ids: &String| ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let expected: Vec<Vec<u32>> = golden.ids[&name].iter().map(parse).collect();
        let bytes = tokenizer.to_string();
        let theirs = Tokenizer::from_tokenizer_json(bytes.as_bytes()).unwrap();
        for tokenizer in [theirs, as_gguf(tokenizer, &Value::Null, vocab_size)] {
            let [ids, texts] = differences(&tokenizer, &golden.lines, &expected, CONTINUED);
            assert!(ids.is_empty() && texts.is_empty(), "{name}: {ids:?} {texts:?}");
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Gemma's ids, by the vocabulary in the model file.
fn gemma() -> Option<Tokenizer> {
    let found = Library::open().unwrap().find(EntryKind::Model, "gemma-3-270m").unwrap();
    let Entry { path, .. } = found?;
    let spec = TokenizerSpec::from_gguf(&Gguf::open(path).unwrap()).unwrap();
    Some(Tokenizer::from_spec(spec).unwrap())
}

#[test]
fn ten_thousand_lines_have_the_ids_of_hugging_face() {
    let Some(folder) = std::env::var_os("EPIPHYTE_TOKENIZERS").map(PathBuf::from) else {
        return skip(
            "others' tokenizers: EPIPHYTE_TOKENIZERS names what tests/golden/huggingface_ids.py \
             makes",
        );
    };
    let lines: Vec<String> = read(&folder.join("lines.json"));
    assert_eq!(lines.len(), 10_000);
    for name in
        ["qwen2_5", "qwen3", "llama3", "llama3_1", "gemma3", "llama2", "gpt4o", "gpt35turbo"]
    {
        let models = folder.join(name).join("package/models");
        let expected: Vec<Vec<u32>> = read(&folder.join(format!("{name}.ids.json")));
        let file: Value = read(&models.join("tokenizer.json"));
        let is_nfc = file["normalizer"]["type"] == "NFC";
        let bytes = std::fs::read(models.join("tokenizer.json")).unwrap();
        let theirs = Tokenizer::from_tokenizer_json(&bytes).unwrap();
        // Llama 2's puts a space before a text.
        let continuation = name != "llama2";
        let decode = DecodeOptions { continuation, ..CONTINUED };
        let [ids, texts] = differences(&theirs, &lines, &expected, decode);
        println!("{name}: by tokenizer.json {} ids, {} texts differ", ids.len(), texts.len());
        // A text in another form than NFC comes back in NFC.
        assert!(ids.is_empty() && (is_nfc || texts.is_empty()), "{name}: {:?}", texts.first());
        let not_normal: Vec<usize> = texts.into_iter().map(|(line, _)| line).collect();
        let ours = if name == "gemma3" {
            gemma()
        } else if name == "llama2" {
            Some(as_sentencepiece(&file))
        } else {
            let vocab_size = theirs.vocab_size();
            Some(as_gguf(file, &read(&models.join("tokenizer_config.json")), vocab_size))
        };
        let Some(ours) = ours else {
            skip("in part: Gemma 3 270M is not there: run `make model MODEL=gemma`");
            continue;
        };
        let [ids, texts] = differences(&ours, &lines, &expected, decode);
        println!("{name}: as GGUF has it {} ids, {} texts differ", ids.len(), texts.len());
        let other = ids.iter().find(|(line, _)| !not_normal.contains(line));
        assert!(other.is_none() && texts.is_empty(), "{name}: {other:?} {:?}", texts.first());
    }
}
