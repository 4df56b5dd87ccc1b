//! Tokenizers against llama.cpp, `SentencePiece` and their own definitions.

mod control;
mod definition;
mod golden;
mod hostile;
mod huggingface;
mod json;
mod pieces;
mod stream;

use epiphyte::tokenizer::TokenizerSpec;

/// The character that stands for a byte in byte-level vocabularies, from the definition in GPT-2's
/// encoder: visible Latin-1 characters for themselves, the rest from U+0100 on.
fn char_of_byte(byte: u8) -> char {
    let visible = |b: u8| (33..=126).contains(&b) || (161..=172).contains(&b) || b >= 174;
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !visible(b)).count();
    char::from_u32(256 + u32::try_from(before).unwrap()).unwrap()
}

/// A byte-level vocabulary: the 256 bytes, then what `merges` make, then `special` as control
/// tokens.
fn byte_level(pre: &str, merges: &[(&str, &str)], special: &[&str]) -> TokenizerSpec {
    let spell = |text: &str| text.bytes().map(char_of_byte).collect::<String>();
    let mut tokens = (0..=255).map(|b| char_of_byte(b).to_string()).collect::<Vec<_>>();
    tokens.extend(merges.iter().map(|(a, b)| spell(&format!("{a}{b}"))));
    let mut token_types = vec![1; tokens.len()];
    tokens.extend(special.iter().map(|&text| text.to_owned()));
    token_types.resize(tokens.len(), 3);
    TokenizerSpec {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        merges: merges.iter().map(|(a, b)| format!("{} {}", spell(a), spell(b))).collect(),
        token_types: Some(token_types),
        ..Default::default()
    }
}

/// A `SentencePiece` vocabulary: unknown, BOS, EOS, the 256 bytes, then `pieces` with falling
/// scores.
fn sentence_piece(pieces: &[&str]) -> TokenizerSpec {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    let mut token_types = [&[2, 3, 3][..], &[6; 256]].concat();
    tokens.extend(pieces.iter().map(|&piece| piece.to_owned()));
    token_types.resize(tokens.len(), 1);
    let mut scores = vec![0.0; 259];
    scores.extend((0u16..).map(|i| -f32::from(i)).take(pieces.len()));
    TokenizerSpec {
        model: "llama".into(),
        tokens,
        scores: Some(scores),
        token_types: Some(token_types),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..Default::default()
    }
}
