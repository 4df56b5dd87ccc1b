//! Any bytes as a PEFT adapter: a config and a tensor file. Loading never panics, and what loads can be saved.
#![no_main]

use arbitrary::Arbitrary;
use epiphyte::adapter::{Adapter, BaseShape};
use libfuzzer_sys::fuzz_target;

const SHAPE: BaseShape = BaseShape {
    num_hidden_layers: 2,
    hidden_size: 4,
    intermediate_size: 6,
    q_size: 8,
    kv_size: 4,
    vocab_size: 5,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    tie_word_embeddings: false,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    config: &'a [u8],
    header: &'a [u8],
    data: &'a [u8],
    /// Instead of the header's true length.
    length: Option<u64>,
}

fuzz_target!(|input: Input<'_>| {
    let length = input.length.unwrap_or(input.header.len() as u64);
    let tensors = [&length.to_le_bytes(), input.header, input.data].concat();
    for result in [Adapter::from_peft(input.config, &tensors, &SHAPE), Adapter::from_bytes(tensors.clone(), &SHAPE)] {
        let Ok(adapter) = result else { continue };
        assert!(adapter.modules.iter().all(|module| module.check(&SHAPE).is_ok()));
        let (again, _) = epiphyte::adapter::LoraConfig::parse(adapter.config.to_json().as_bytes()).unwrap();
        assert_eq!(again.modules(&SHAPE).unwrap(), adapter.config.modules(&SHAPE).unwrap());
    }
});
