//! Fine-tuning: data, schedule, memory plan, signals; then the trainer on a tiny model.

mod batch;
mod data;
mod default_model;
mod files;
mod folder;
mod golden;
mod gradients;
mod lifecycle;
mod optimizers;
mod plan;
mod recipe;
mod runs;
mod schedule;
mod signals;
mod trainer;

use epiphyte::chat::ChatTemplate;
use epiphyte::tokenizer::Tokenizer;
use epiphyte::train::data::{DataOptions, Dataset, Encoder, Example, Record};

use crate::common::{BOS, END, EOS, chatml, tokenizer_with};

fn tokenizer() -> Tokenizer {
    tokenizer_with(&[], false)
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
