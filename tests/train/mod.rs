//! Fine-tuning: data, schedule, memory plan, signals; then the trainer on a tiny model.

mod batch;
mod data;
mod default_model;
mod federated;
mod files;
mod folder;
mod formats;
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
use epiphyte::train::TrainOptions;
use epiphyte::train::data::{DataOptions, Dataset, Encoder, Example, Record, TrainLength};
use epiphyte::train::schedule::{Decay, Warmup};

use crate::common::{BOS, END, EOS, chatml, tokenizer_with};

fn tokenizer() -> Tokenizer {
    tokenizer_with(&[], false)
}

/// Ten steps of AdamW, as the scripts of the golden data take them.
pub(crate) fn ten_steps() -> TrainOptions {
    TrainOptions {
        rank: 4,
        lora_alpha: 8.0,
        learning_rate: Some(1e-3),
        weight_decay: 0.01,
        max_grad_norm: Some(1.0),
        decay: Decay::Constant,
        warmup: Warmup::Steps(0),
        duration: TrainLength::Steps(10),
        micro_batch: 1,
        ..TrainOptions::default()
    }
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
