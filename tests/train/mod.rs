//! Fine-tuning: data, schedule, memory plan, signals; then the trainer on a tiny model.

mod batch;
mod data;
mod default_model;
mod files;
mod golden;
mod gradients;
mod optimizers;
mod plan;
mod recipe;
mod runs;
mod schedule;
mod signals;
mod trainer;

use epiphyte::chat::ChatTemplate;
use epiphyte::tokenizer::{Tokenizer, TokenizerSpec};
use epiphyte::train::data::{DataOptions, Dataset, Encoder, Example, Record};

/// Ids of the control tokens below.
const EOS: u32 = 0;
const BOS: u32 = 1;
const END: u32 = 3;

/// Byte-level BPE over printable ASCII, space and newline, with one merge ("ab") and `extra`
/// control tokens at the end.
pub(crate) fn tokenizer_with(extra: &[&str], add_bos: bool) -> Tokenizer {
    let mut tokens = ["</s>", "<s>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    let mut token_types = vec![3; tokens.len()];
    tokens.extend((33_u8..127).map(|byte| char::from(byte).to_string()));
    tokens.extend(["Ġ", "Ċ", "ab"].map(String::from));
    token_types.resize(tokens.len(), 1);
    tokens.extend(extra.iter().map(|&token| token.to_string()));
    token_types.resize(tokens.len(), 3);
    Tokenizer::from_spec(TokenizerSpec {
        model: "gpt2".into(),
        tokens,
        token_types: Some(token_types),
        merges: vec!["a b".into()],
        bos: Some(BOS),
        eos: Some(EOS),
        add_bos: Some(add_bos),
        ..Default::default()
    })
    .unwrap()
}

fn tokenizer() -> Tokenizer {
    tokenizer_with(&[], false)
}

pub(crate) fn chatml() -> ChatTemplate {
    ChatTemplate::new(None, "", "").unwrap()
}

fn options(seq_len: usize) -> DataOptions {
    DataOptions { seq_len, ..Default::default() }
}

/// What one record becomes with `tokenizer`, `template` and a context of 4096.
fn examples(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    options: DataOptions,
    record: &Record,
) -> Dataset {
    let encoder = Encoder::new(tokenizer, template, 4096, options).unwrap();
    let mut data = Dataset::default();
    data.push(record, &encoder).unwrap();
    data
}

fn record(json: &str) -> Record {
    serde_json::from_str(json).unwrap()
}

/// The text of the tokens whose weight is `weight`, control tokens written out.
fn weighing(tokenizer: &Tokenizer, example: &Example, weight: f32) -> String {
    let chosen = example.ids.iter().zip(&example.weights).filter(|(_, w)| **w == weight);
    let bytes =
        chosen.flat_map(|(&id, _)| tokenizer.token_bytes(id).unwrap().to_vec()).collect::<Vec<_>>();
    String::from_utf8(bytes).unwrap()
}
