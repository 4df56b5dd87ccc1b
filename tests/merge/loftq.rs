//! What quantising took, as an adapter.

use epiphyte::DType;
use epiphyte::base::ModelConfig;
use epiphyte::format::gguf::Gguf;
use epiphyte::merge::loftq;
use epiphyte::quantize::{QuantizeOptions, QuantizeTo, quantize_gguf};
use epiphyte::{Error, quant};

use crate::common::golden;

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let view = gguf.require(name).unwrap();
    let mut values = vec![0.0; view.n_weights()];
    quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
    values
}

fn error(wanted: &[f32], found: impl Iterator<Item = f64>) -> f64 {
    let square = |(w, f): (&f32, f64)| (f64::from(*w) - f).powi(2);
    let all: f64 = wanted.iter().map(|w| f64::from(*w).powi(2)).sum();
    (wanted.iter().zip(found).map(square).sum::<f64>() / all).sqrt()
}

#[test]
fn an_adapter_makes_up_for_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("few.gguf");
    let full = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let options = QuantizeOptions::new(QuantizeTo::Type(DType::Q2_1));
    quantize_gguf(&full, &options, &path, &mut |_, _| {}).unwrap();
    let few = Gguf::open(&path).unwrap();
    let shape = ModelConfig::from_gguf(&few).unwrap().base_shape();
    let mut last = [f64::INFINITY; 14];
    for rank in [1, 8, 32] {
        let made = loftq(&full, &few, rank, &mut |_, _| {}).unwrap();
        assert_eq!((made.modules.len(), made.adapter.modules.len()), (14, 14));
        for (i, (told, module)) in made.modules.iter().zip(&made.adapter.modules).enumerate() {
            assert_eq!((told.path, module.rank, module.scaling), (module.path, rank, 1.0));
            let name = format!("{}.weight", module.path);
            let (wanted, held) = (values(&full, &name), values(&few, &name));
            let k = shape.shape(module.path.target)[1];
            let sum = |at: usize| {
                let (row, column) = (at / k, at % k);
                let added = (0..rank).map(|r| {
                    f64::from(module.b[row * rank + r]) * f64::from(module.a[r * k + column])
                });
                f64::from(held[at]) + added.sum::<f64>()
            };
            let before = error(&wanted, held.iter().map(|v| f64::from(*v)));
            let after = error(&wanted, (0..wanted.len()).map(sum));
            assert!((before - told.before).abs() < 1e-5 * before, "{name}");
            assert!((after - told.after).abs() < 1e-4 * before, "{name}: {after} {}", told.after);
            assert!(after < before && after < last[i], "{name}: more ranks, less error");
            last[i] = after;
        }
        // It goes with this base alone.
        let saved = dir.path().join(format!("adapter{rank}"));
        made.adapter.save_peft(&saved, DType::F32, &shape).unwrap();
        assert!(made.adapter.base_fingerprint.is_some());
    }
}

#[test]
fn what_can_not_be_made_up_for_is_refused() {
    let full = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let refused = |rank| loftq(&full, &full, rank, &mut |_, _| {}).unwrap_err();
    for rank in [0, 1000] {
        assert!(matches!(refused(rank), Error::InvalidArgument { name: "rank", .. }));
    }
    assert!(matches!(refused(4), Error::InvalidArgument { name: "quantized", .. }));
}
