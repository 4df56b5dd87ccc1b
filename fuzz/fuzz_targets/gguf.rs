//! Any bytes as a GGUF file: opening, reading every value and every row, and the model's sizes
//! never panic.
#![no_main]

use epiphyte::format::gguf::Gguf;
use epiphyte::base::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(bytes.to_vec()) else { return };
    for (key, value) in gguf.metadata() {
        std::hint::black_box((value.to_string(), gguf.find::<Vec<&str>>(key), gguf.find::<Vec<f32>>(key)).0.len());
    }
    for tensor in gguf.tensors() {
        assert_eq!(tensor.bytes().len(), tensor.n_bytes());
        let last = tensor.n_rows() - 1;
        assert_eq!(tensor.rows(last, 1).len(), tensor.row_bytes());
    }
    if let Ok(config) = ModelConfig::from_gguf(&gguf) {
        assert_eq!(config.rope_frequencies(0).len(), config.rotary_dim() / 2);
        if config.check_tensors(&gguf).is_ok() {
            assert!(config.n_params() > 0);
        }
    }
});
