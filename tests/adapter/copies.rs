//! Copies of the base's embedding and head, as PEFT's `save_embedding_layers` leaves them in an
//! adapter.

use epiphyte::adapter::{AdaptedBase, Adapter, BaseShape, BaseWeights, LoadReport, Verdict};
use epiphyte::format::gguf::Gguf;
use epiphyte::quant;
use half::bf16;
use safetensors::Dtype;

use super::Files;
use crate::common::writer::{Meta, Writer, llama};
use crate::common::{Random, golden};

const EMBED: &str = "base_model.model.model.embed_tokens.weight";
const HEAD: &str = "base_model.model.lm_head.weight";
const BASE_LAYER: &str = "base_model.model.model.embed_tokens.base_layer.weight";

/// `tiny_llama.gguf`'s, with its true number of tokens.
const SHAPE: BaseShape = BaseShape { vocab_size: 288, ..super::SHAPE };

/// A tensor's weights.
fn weights(gguf: &Gguf, name: &str) -> Vec<f32> {
    let view = gguf.require(name).unwrap();
    let mut values = vec![0.0; view.n_weights()];
    quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
    values
}

/// What weights of Q4_0 may have been before they were rounded: up to half a step off.
fn unrounded(values: &[f32]) -> Vec<f32> {
    let mut random = Random::new(5);
    let block = |block: &[f32]| {
        let step = block.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / 8.0;
        block.iter().map(|v| v + random.signed(0.5 * step)).collect::<Vec<_>>()
    };
    values.chunks(32).flat_map(block).collect()
}

fn inspect(files: &Files, gguf: &Gguf) -> LoadReport {
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path());
    Adapter::inspect(dir.path(), AdaptedBase { shape: SHAPE, weights: BaseWeights::Open(gguf) })
        .unwrap()
}

fn verdict(report: &LoadReport, name: &str) -> (Verdict, String) {
    let item = report.tensors.iter().find(|item| item.name == name).unwrap();
    (item.verdict, item.reason.clone())
}

#[test]
fn equal_ones_are_dropped_and_others_refused() {
    let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let (embed, head) =
        (weights(&gguf, "model.embed_tokens.weight"), weights(&gguf, "lm_head.weight"));
    let before = unrounded(&embed);
    let halves = before.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let equal =
        Files::new().tensor(EMBED, Dtype::BF16, &[288, 64], halves).floats(HEAD, &[288, 64], &head);
    let report = inspect(&equal, &gguf);
    assert_eq!(report.refused().count(), 0, "{:?}", report.refused().next());
    assert_eq!((report.modules.len(), verdict(&report, HEAD).0), (2, Verdict::Ignored));
    assert!(verdict(&report, EMBED).1.contains("within the rounding of Q4_0"));

    // A step of Q4_0 is about an eighth of the largest of 32.
    let changed = |change: &dyn Fn(usize, f32) -> f32| {
        before.iter().enumerate().map(|(i, &v)| change(i, v)).collect()
    };
    let cases: [(&str, Vec<f32>); 6] = [
        ("one row is another's", changed(&|i, v| if i / 64 == 7 { before[i + 64] } else { v })),
        ("the last row is zero", changed(&|i, v| if i / 64 == 287 { 0.0 } else { v })),
        ("one weight", changed(&|i, v| if i == 5000 { v + 1.5 } else { v })),
        ("not a number", changed(&|i, v| if i == 5000 { f32::NAN } else { v })),
        ("all larger", changed(&|_, v| v * 1.3)),
        (
            "all noisier",
            changed(&|i, v| {
                v + if i % 2 == 0 { 0.12 } else { -0.12 } * embed[i - i % 64].abs().max(2.0)
            }),
        ),
    ];
    for (what, values) in cases {
        for name in [EMBED, BASE_LAYER] {
            let report = inspect(&Files::new().floats(name, &[288, 64], &values), &gguf);
            let (verdict, reason) = verdict(&report, name);
            assert!(
                verdict == Verdict::Refused && reason.contains("differs from the base's"),
                "{what}: {reason}"
            );
            assert!(report.modules.is_empty());
        }
    }
    for shape in [[287, 64], [289, 64], [64, 288]] {
        let report = inspect(&Files::new().counting(EMBED, &shape), &gguf);
        assert!(verdict(&report, EMBED).1.contains("resized"));
    }
    let report =
        inspect(&Files::new().tensor(EMBED, Dtype::I8, &[288, 64], vec![0; 288 * 64]), &gguf);
    assert!(verdict(&report, EMBED).1.contains("I8"));
}

#[test]
fn exact_formats_are_held_to_bf16() {
    // A base of F32, where the head is the embedding.
    let values: Vec<f32> = {
        let mut random = Random::new(9);
        (0..288 * 64).map(|_| random.signed(1.0)).collect()
    };
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let writer: Writer =
        llama().edit("token_embd.weight", |t| (t.dims, t.data) = (vec![64, 288], data));
    let gguf = Gguf::from_bytes(writer.key("llama.block_count", Meta::U32(1)).bytes()).unwrap();
    let as_bf16 =
        |values: &[f32]| values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>();
    for name in [EMBED, HEAD] {
        let report = inspect(&Files::new().floats(name, &[288, 64], &as_bf16(&values)), &gguf);
        assert_eq!(verdict(&report, name).0, Verdict::Ignored, "{name}");
        let changed: Vec<f32> = values.iter().map(|v| v * 1.01).collect();
        let report = inspect(&Files::new().floats(name, &[288, 64], &changed), &gguf);
        assert_eq!(verdict(&report, name).0, Verdict::Refused, "{name}");
    }
}

#[test]
fn without_the_bases_file_they_are_not_trusted() {
    let files = Files::new().counting(EMBED, &[291, 64]);
    let (what, reason) = super::refusal(files.load());
    assert!(what == EMBED && reason.contains("no model file to compare"), "{what}: {reason}");
}

#[cfg(feature = "gpu")]
#[test]
fn an_engine_compares_with_the_file_it_was_opened_from() {
    use epiphyte::{Engine, EngineOptions, Error};

    let engine = Engine::open(golden("tiny_llama.gguf"), EngineOptions::default()).unwrap();
    let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let head = weights(&gguf, "lm_head.weight");
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new().floats(HEAD, &[288, 64], &head);
    files.write(dir.path());
    engine.load_adapter("a", dir.path()).unwrap();
    files.floats(HEAD, &[288, 64], &head.iter().map(|v| -v).collect::<Vec<_>>()).write(dir.path());
    let refused = engine.load_adapter("a", dir.path()).map(drop).unwrap_err();
    assert!(matches!(&refused, Error::InvalidAdapter { what, .. } if what == HEAD), "{refused}");
}
