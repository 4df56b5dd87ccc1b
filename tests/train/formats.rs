//! Training on bases of few bits: the same gradients as on their dequantised weights.

use std::sync::Arc;

use epiphyte::format::gguf::Gguf;
use epiphyte::quantize::{QuantizeOptions, QuantizeTo, quantize_gguf};
use epiphyte::train::Trainer;
use epiphyte::train::data::batch::in_order;
use epiphyte::train::data::{Dataset, Example};
use epiphyte::{DType, Engine, EngineOptions};

use super::gradients::{difference, rounding_of_factors};
use super::trainer::options;
use crate::common::Random;
use crate::common::odd_llama::sized_llama;

#[test]
fn gradients_on_few_bits_are_those_on_their_values() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(7);
    let model = Gguf::from_bytes(sized_llama(&mut random, 256, 512).bytes()).unwrap();
    let example = |_| Example {
        ids: (0..12).map(|_| random.below(41)).collect(),
        weights: (0..12).map(|i| if i == 0 { 0.0 } else { 1.0 }).collect(),
    };
    let data = Arc::new(Dataset::of((0..3).map(example)));
    let batches = in_order(&data, 48);
    for dtype in [
        DType::Q2_K,
        DType::Q3_K,
        DType::Q3_0,
        DType::IQ4_NL,
        DType::NF4,
        DType::NF4_DQ,
        DType::Q2_1,
        DType::TQ2_0,
    ] {
        let file = |name: &str| dir.path().join(format!("{}.{name}", dtype.name()));
        let write = |model: &Gguf, dtype, path: &std::path::Path| {
            let options = QuantizeOptions::new(QuantizeTo::Type(dtype));
            quantize_gguf(model, &options, path, &mut |_, _| {}).unwrap();
            Gguf::open(path).unwrap()
        };
        let few = write(&model, dtype, &file("few.gguf"));
        write(&few, DType::F32, &file("f32.gguf"));
        let open = |name: &str| Engine::open(file(name), EngineOptions::default()).unwrap();
        let trainer = |engine: &Arc<Engine>, from| {
            Trainer::new(engine, Arc::clone(&data), options(), from).unwrap()
        };
        let (few, whole) = (open("few.gguf"), open("f32.gguf"));
        // Some steps in, so that neither factor is zero.
        let mut first = trainer(&whole, None);
        for _ in 0..3 {
            first.step().unwrap();
        }
        let mut from = first.adapter().unwrap();
        from.base_fingerprint = None;
        let (loss, on_few) = trainer(&few, Some(&from)).gradients(&batches).unwrap();
        let (wanted, on_whole) = trainer(&whole, Some(&from)).gradients(&batches).unwrap();
        assert!((loss - wanted).abs() < 1e-3 * wanted, "{dtype:?}: {loss} and {wanted}");
        // Products of four times as many terms as those of the tiny model.
        let (found, bound) = (difference(&on_few, &on_whole), 2.0 * rounding_of_factors());
        println!("{dtype:?}: {found:.1e} of the gradient's norm, {bound:.1e} allowed");
        assert!(found <= bound, "{dtype:?}: {found} over {bound}");
    }
}
