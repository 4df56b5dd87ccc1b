//! Models in formats of few bits: logits against an exact pass over the same weights.

use epiphyte::DType;
use epiphyte::format::gguf::Gguf;
use epiphyte::quantize::{QuantizeOptions, QuantizeTo, quantize_gguf};

use super::check;
use crate::common::Random;
use crate::common::odd_llama::sized_llama;

/// Rows of whole superblocks, but for the attention's output, which takes the next type.
#[test]
fn logits_of_models_of_few_bits_are_those_of_an_exact_pass() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(256);
    let model = Gguf::from_bytes(sized_llama(&mut random, 256, 512).bytes()).unwrap();
    let ids: Vec<u32> = (0..24).map(|_| random.below(41)).collect();
    for (dtype, next) in [
        (DType::Q2_K, DType::IQ4_NL),
        (DType::Q3_K, DType::IQ4_NL),
        (DType::NF4_DQ, DType::NF4),
        (DType::TQ2_0, DType::Q2_1),
    ] {
        let path = dir.path().join(format!("{}.gguf", dtype.name()));
        let options = QuantizeOptions::new(QuantizeTo::Type(dtype));
        let report = quantize_gguf(&model, &options, &path, &mut |_, _| {}).unwrap();
        let count = |dtype: DType| report.tensors.iter().filter(|t| t.to == dtype.name()).count();
        assert_eq!((count(dtype), count(next)), (12, 2), "{dtype:?}");
        check(&path, &ids, None);
    }
}
