//! Any bytes as a GGUF LoRA: loading never panics, and what loads fits the base.
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

fuzz_target!(|bytes: &[u8]| {
    let Ok(adapter) = Adapter::from_bytes(bytes.to_vec(), &SHAPE) else { return };
    assert!(adapter.modules.iter().all(|module| module.check(&SHAPE).is_ok()));
    assert!(!adapter.modules.is_empty());
    assert_eq!(adapter.modules.len(), adapter.report.modules.len());
});
