//! What goes into the linears over a text, against an exact pass; the file that holds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use epiphyte::adapter::Target;
use epiphyte::base::layout::SiteKind;
use epiphyte::format::gguf::Gguf;
use epiphyte::importance::{ImportanceOptions, importance};
use epiphyte::quantize::{Imatrix, QuantizeOptions, QuantizeTo, quantize_gguf};
use epiphyte::tokenizer::EncodeOptions;
use epiphyte::train::data::batch::in_order;
use epiphyte::train::data::{Dataset, Example, TrainLength};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{CancelToken, DType, Engine, EngineOptions, Error};

use super::reference::{Halves, Reference};
use crate::common::golden;

const TEXT: &str = "the sea and the land and the sea and the land, the sea and the land";
/// Tokens: two windows and some that are left over.
const WINDOW: usize = 12;

#[test]
fn an_importance_matrix_holds_the_squares_of_what_goes_in() {
    let path = golden("tiny_llama.gguf");
    let engine = Engine::open(&path, EngineOptions::default()).unwrap();
    let tokenizer = &engine.base().tokenizer;
    let ids = tokenizer.encode(TEXT, EncodeOptions::default()).unwrap();
    let windows = ids.len() / WINDOW;
    assert!(windows >= 2 && ids.len() > windows * WINDOW, "{}", ids.len());
    let options = ImportanceOptions { window: WINDOW, ..ImportanceOptions::default() };
    let mut heard = Vec::new();
    let found = importance(&engine, TEXT, &options, &mut |done, all| heard.push((done, all)));
    let found = found.unwrap();
    assert_eq!(heard.last(), Some(&(windows, windows)));
    assert_eq!((found.chunks(), found.tokens()), (windows, (windows * WINDOW) as u64));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("imatrix.gguf");
    found.save(&file, "a text").unwrap();

    // By an exact pass over each window.
    let model = Gguf::open(&path).unwrap();
    let reference = Reference::new(&model);
    let mut sums: BTreeMap<(usize, u8), Vec<f64>> = BTreeMap::new();
    for window in ids.chunks_exact(WINDOW) {
        let mut window = window.to_vec();
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
            window[0] = bos;
        }
        let halves = Halves { cache: true, products: false };
        reference.watched(&window, halves, &mut |layer, site, row| {
            let sums = sums.entry((layer, site as u8)).or_insert_with(|| vec![0.0; row.len()]);
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.value * x.value);
        });
    }
    let written = Gguf::open(&file).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let bytes = written.require(name).unwrap().bytes().into_owned();
        bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    };
    let names = [
        (SiteKind::Qkv, "attn_q"),
        (SiteKind::Qkv, "attn_v"),
        (SiteKind::OProj, "attn_output"),
        (SiteKind::GateUp, "ffn_up"),
        (SiteKind::DownProj, "ffn_down"),
    ];
    for ((layer, site), wanted) in &sums {
        for (_, name) in names.iter().filter(|(of, _)| *of as u8 == *site) {
            let name = format!("blk.{layer}.{name}.weight");
            assert_eq!(floats(&format!("{name}.counts")), [(windows * WINDOW) as f32]);
            let found = floats(&format!("{name}.in_sum2"));
            assert_eq!(found.len(), wanted.len(), "{name}");
            // Keys and values are kept in f16, on matrices the factors, too; squares double that.
            let largest = wanted.iter().fold(0.0_f64, |a, b| a.max(*b));
            for (a, b) in found.iter().zip(wanted) {
                assert!((f64::from(*a) - b).abs() < 5e-3 * largest, "{name}: {a} is not {b}");
            }
        }
    }

    // What reads llama-imatrix's files reads it; embedding and head are no layer's.
    let mut options = QuantizeOptions::new(QuantizeTo::Type(DType::Q4_0));
    let imatrix = Imatrix::open(&file).unwrap();
    assert_eq!(imatrix.len(), found.n_matrices());
    options.imatrix = Some(imatrix);
    let out = dir.path().join("out.gguf");
    let report = quantize_gguf(&model, &options, &out, &mut |_, _| {}).unwrap();
    let others = report.tensors.iter().filter(|t| t.shape.len() > 1 && !t.name.starts_with("blk."));
    assert_eq!(report.without_importance, others.count());
}

/// The slopes that a file has of q, k and v are about those of their gradients, which factors A of
/// every direction, once each, give whole.
#[test]
fn slopes_are_the_mean_squares_of_gradients() {
    let engine = Engine::open(golden("tiny_llama.gguf"), EngineOptions::default()).unwrap();
    let tokenizer = &engine.base().tokenizer;
    let ids = tokenizer.encode(TEXT, EncodeOptions::default()).unwrap();
    let options = ImportanceOptions { window: WINDOW, ..ImportanceOptions::default() };
    let found = importance(&engine, TEXT, &options, &mut |_, _| {}).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("imatrix.gguf");
    found.save(&file, "a text").unwrap();
    let written = Gguf::open(&file).unwrap();

    let columns = engine.base().config.hidden_size;
    let examples = ids.chunks_exact(WINDOW).map(|window| {
        let mut ids = window.to_vec();
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
            ids[0] = bos;
        }
        Example { weights: (0..WINDOW).map(|i| f32::from(i > 0)).collect(), ids }
    });
    let data = Arc::new(Dataset::of(examples));
    let options = TrainOptions {
        rank: columns,
        lora_alpha: columns as f64,
        target_modules: ["q_proj", "k_proj", "v_proj"].map(String::from).into(),
        duration: TrainLength::Steps(1),
        seq_len: WINDOW,
        ..TrainOptions::default()
    };
    let fresh = Trainer::new(&engine, Arc::clone(&data), options.clone(), None).unwrap();
    let mut whole = fresh.adapter().unwrap();
    for module in &mut whole.modules {
        module.a = (0..columns * columns).map(|i| f32::from(i % (columns + 1) == 0)).collect();
    }
    let trainer = Trainer::new(&engine, Arc::clone(&data), options, Some(&whole)).unwrap();
    let mut wanted = vec![0.0; whole.modules.len()];
    for example in &data.examples {
        let batches = in_order(&Dataset::of([example.clone()]), WINDOW);
        let (_, gradients) = trainer.gradients(&batches).unwrap();
        for (wanted, module) in wanted.iter_mut().zip(&gradients.modules) {
            let squares: f64 = module.b.iter().map(|v| f64::from(*v).powi(2)).sum();
            *wanted += squares / module.b.len() as f64 * (WINDOW - 1) as f64;
        }
    }
    let mut factor = 0.0;
    for (wanted, module) in wanted.iter().zip(&whole.modules) {
        let names = ["attn_q", "attn_k", "attn_v"];
        let name = names[module.path.target as usize - Target::QProj as usize];
        let name = format!("blk.{}.{name}.weight.slope2", module.path.layer.unwrap());
        let bytes = written.require(&name).unwrap().bytes().into_owned();
        let slope = f32::from_le_bytes(bytes.as_slice().try_into().unwrap());
        let wanted = wanted / data.examples.len() as f64;
        let off = f64::from(slope) / wanted;
        assert!((0.4..2.5).contains(&off), "{name}: {slope} is not {wanted}");
        factor += off / whole.modules.len() as f64;
    }
    // One by one they are estimates by 16 directions of 64, in the mean they are right.
    assert!((0.7..1.4).contains(&factor), "{factor}");
}

#[test]
fn a_text_must_fill_a_window() {
    let engine = Engine::open(golden("tiny_llama.gguf"), EngineOptions::default()).unwrap();
    let measure = |text: &str, options: ImportanceOptions| {
        importance(&engine, text, &options, &mut |_, _| {}).err().unwrap()
    };
    let short = measure("the sea", ImportanceOptions::default());
    assert!(matches!(short, Error::InvalidArgument { name: "text", .. }), "{short}");
    assert!(!short.to_string().contains("sea"));
    let none = measure(TEXT, ImportanceOptions { window: 0, ..ImportanceOptions::default() });
    assert!(matches!(none, Error::InvalidArgument { name: "window", .. }));
    let cancel = CancelToken::default();
    cancel.cancel();
    let window = WINDOW;
    let stopped = measure(TEXT, ImportanceOptions { window, cancel, ..Default::default() });
    assert!(matches!(stopped, Error::Cancelled));
}
