//! Any bytes as a PEFT adapter: a config and a tensor file. Loading never panics, and what loads
//! can be saved.
#![no_main]

use epiphyte::adapter::{Adapter, BaseShape};
use libfuzzer_sys::fuzz_target;

const SHAPE: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Llama,
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

// The config's length in two bytes, the config, the tensor file.
fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (config, tensors) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
    for result in [Adapter::from_peft(config, tensors, &SHAPE), Adapter::from_bytes(tensors.to_vec(), &SHAPE)] {
        let Ok(adapter) = result else { continue };
        assert!(adapter.modules.iter().all(|module| module.check(&SHAPE).is_ok()));
        let (again, _) = epiphyte::adapter::LoraConfig::parse(adapter.config.to_json().as_bytes()).unwrap();
        assert_eq!(again.modules(&SHAPE).unwrap(), adapter.config.modules(&SHAPE).unwrap());
    }
});
