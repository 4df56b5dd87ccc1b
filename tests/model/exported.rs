//! Exported models: their weights against exact sums, their logits against an exact pass under the
//! adapters.

use std::path::Path;

use epiphyte::adapter::{Adapter, ModulePath};
use epiphyte::base::ModelConfig;
use epiphyte::export::{ExportReport, export_gguf};
use epiphyte::format::gguf::Gguf;
use epiphyte::{DType, Engine, Error, quant};

use super::adapted::random_adapter;
use super::matrix::Rounding;
use super::reference::Reference;
use super::{Expected, distance, expect, halves, logits, tiers, tiny};
use crate::common::Random;
use crate::common::odd_llama::odd_llama;
use crate::common::writer::Meta;

/// Roundings to a type. F16 keeps 11 bits, and multiples of 2^-24 below its normal numbers. Q8_0
/// stores the 127th part of the largest weight, itself rounded to F16, and is off by half of it.
const ROUNDINGS: [(DType, Rounding); 2] = [
    (DType::F16, |w, _| (w.abs() / 2048.0).max(2.0_f64.powi(-25))),
    (DType::Q8_0, |_, peak| peak / 254.0 * (1.0 + 1.0 / 1024.0)),
];

struct Exported {
    dir: tempfile::TempDir,
    report: ExportReport,
}

impl Exported {
    fn gguf(&self) -> Gguf {
        Gguf::open(self.dir.path().join("out.gguf")).unwrap()
    }
}

fn export(base: &Gguf, adapters: &[(&Adapter, f32)], dtype: DType) -> Result<Exported, Error> {
    let dir = tempfile::tempdir().unwrap();
    let shape = ModelConfig::from_gguf(base).unwrap().base_shape();
    let (mut last, path) = ((0, 0), dir.path().join("out.gguf"));
    let report = export_gguf(base, &shape, adapters, (&path, dtype), &mut |done, all| {
        assert!(done > last.0 && done <= all, "{done} of {all} after {last:?}");
        last = (done, all);
    });
    assert_eq!(
        dir.path().read_dir().unwrap().count(),
        usize::from(report.is_ok()),
        "the file or nothing"
    );
    let report = report?;
    assert_eq!(last.0, last.1);
    assert_eq!(report.n_bytes, std::fs::metadata(&path).unwrap().len());
    Ok(Exported { dir, report })
}

fn random(base: &Gguf, seed: u64, wanted: impl Fn(ModulePath) -> bool) -> Adapter {
    random_adapter(&ModelConfig::from_gguf(base).unwrap().base_shape(), seed, wanted)
}

fn values(gguf: &Gguf, path: ModulePath) -> Vec<f64> {
    let view = gguf.require(&format!("{path}.weight")).unwrap();
    let mut values = vec![0.0_f32; view.n_weights()];
    quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
    values.into_iter().map(f64::from).collect()
}

/// Tells a merged model from others.
const MERGED_KEY: &str = "epiphyte.merged_adapters";

#[test]
fn merged_weights_are_exact_sums_rounded_once() {
    for stem in ["tiny_llama", "tiny_llama_linear"] {
        let base = Gguf::open(tiny(stem)).unwrap();
        let (all, some) =
            (random(&base, 1, |_| true), random(&base, 2, |path| path.layer.is_some()));
        let adapters = [(&all, 0.75), (&some, -0.5)];
        for (dtype, rounding) in ROUNDINGS {
            let exported = export(&base, &adapters, dtype).unwrap();
            let gguf = exported.gguf();
            let mut exact = Reference::merged(&base, &adapters, rounding);
            let (mut squares, mut count, mut largest) = (0.0, 0, 0.0_f64);
            for path in ModelConfig::from_gguf(&base).unwrap().base_shape().modules() {
                assert_eq!(gguf.require(&format!("{path}.weight")).unwrap().dtype, dtype);
                let (found, exact) = (values(&gguf, path), exact.weights(path));
                for (i, (found, exact_value)) in found.iter().zip(exact).enumerate() {
                    let peak = exact[i / 32 * 32..][..32]
                        .iter()
                        .fold(0.0_f64, |peak, w| peak.max(w.abs()));
                    // Beside the rounding, 40 sums and products of f32; terms are no larger than
                    // the factors allow.
                    let bound = rounding(*exact_value, peak)
                        + 40.0 * f64::from(f32::EPSILON) * (peak + 1.0);
                    let off = (found - exact_value).abs();
                    assert!(
                        off <= bound,
                        "{path} {i}: {found} for {exact_value}, {} of the bound",
                        off / bound
                    );
                    (squares, count, largest) = (squares + off * off, count + 1, largest.max(off));
                }
            }
            let rms = (squares / f64::from(count)).sqrt();
            check_report(&exported.report, rms, largest);
            assert_eq!(exported.report.untied, stem != "tiny_llama");
        }
    }
}

/// The report's errors against those measured: in the same unit, and to a part in a hundred.
fn check_report(report: &ExportReport, rms: f64, largest: f64) {
    let near = |a: f64, b: f64| (a - b).abs() <= 0.01 * b;
    let max = report.merged.iter().fold(0.0_f64, |max, tensor| max.max(tensor.max_error));
    assert!(near(max, largest), "{max} {largest}");
    let unit = max / report.max_error_over_delta;
    assert!(near(report.rms_error_over_delta * unit, rms), "{report:?} {rms}");
    assert!(
        report
            .merged
            .iter()
            .all(|t| t.delta_rms > 0.0 && t.rms_error > 0.0 && t.rms_error <= t.max_error)
    );
}

#[test]
fn everything_else_is_copied_as_it_is() {
    let base = Gguf::open(tiny("tiny_llama")).unwrap();
    let adapter = random(&base, 3, |path| {
        path == ModulePath::parse("model.layers.1.self_attn.q_proj").unwrap()
    });
    let exported = export(&base, &[(&adapter, 1.0)], DType::F16).unwrap();
    let gguf = exported.gguf();
    let names: Vec<String> =
        exported.report.merged.iter().map(|tensor| tensor.name.clone()).collect();
    assert_eq!(names, ["blk.1.attn_q.weight"]);
    assert!(base.metadata().eq(gguf.metadata().filter(|(key, _)| *key != MERGED_KEY)));
    assert_eq!(gguf.find::<u32>(MERGED_KEY).unwrap(), Some(1));
    assert_eq!(base.tensors().len(), gguf.tensors().len());
    for (old, new) in base.tensors().zip(gguf.tensors()) {
        assert_eq!((old.name, old.shape), (new.name, new.shape));
        if old.name == "model.layers.1.self_attn.q_proj.weight" {
            assert_eq!(new.dtype, DType::F16);
        } else {
            assert!(old.dtype == new.dtype && old.bytes() == new.bytes(), "{}", old.name);
        }
    }
}

#[test]
fn the_keys_of_shards_go_and_the_alignment_stays() {
    let mut writer = odd_llama(&mut Random::new(11));
    let n = writer.tensors.len() as u32;
    writer.alignment = 128;
    let writer = writer
        .key("general.alignment", Meta::U32(128))
        .key("split.no", Meta::U32(0))
        .key("split.count", Meta::U32(1))
        .key("split.tensors.count", Meta::U32(n));
    let base = Gguf::from_bytes(writer.bytes()).unwrap();
    let adapter = random(&base, 12, |_| true);
    let exported = export(&base, &[(&adapter, 1.0)], DType::F16).unwrap();
    let gguf = exported.gguf();
    let kept: Vec<&str> =
        base.metadata().map(|(key, _)| key).filter(|key| !key.starts_with("split.")).collect();
    let written = gguf.metadata().map(|(key, _)| key).filter(|key| *key != MERGED_KEY);
    assert_eq!(written.collect::<Vec<_>>(), kept);
    assert!(kept.len() + 3 == base.metadata().count() && kept.contains(&"general.alignment"));
    assert_eq!(
        gguf.find::<u32>("general.alignment").unwrap(),
        Some(128),
        "which the reader holds every offset to"
    );
    Engine::open(exported.dir.path().join("out.gguf"), epiphyte::EngineOptions::default()).unwrap();
}

#[test]
fn a_tied_head_is_untied_only_where_an_adapter_parts_it() {
    let base = Gguf::open(tiny("tiny_llama_linear")).unwrap();
    let whole = |gguf: &Gguf, name: &str| {
        gguf.tensor(name).map(|view| (view.dtype, view.bytes().into_owned()))
    };
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let of = |wanted: &str| {
        let adapter = random(&base, 4, |path| path.to_string().ends_with(wanted));
        export(&base, &[(&adapter, 1.0)], DType::Q8_0).unwrap()
    };
    let (layer, on_embed, on_head) = (of("q_proj"), of("embed_tokens"), of("lm_head"));
    assert!(layer.gguf().tensor(head).is_none() && !layer.report.untied);
    assert_eq!(
        whole(&on_embed.gguf(), head),
        whole(&base, embed),
        "the head is the base's embedding"
    );
    assert_ne!(whole(&on_embed.gguf(), embed), whole(&base, embed));
    assert_eq!(whole(&on_head.gguf(), embed), whole(&base, embed));
    assert_eq!(on_head.gguf().tensor(head).unwrap().dtype, DType::Q8_0);
    assert!(on_embed.report.untied && on_head.report.untied);
}

#[test]
fn an_exported_model_says_what_base_and_adapters_say() {
    let mut random_ids = Random::new(6);
    let ids: Vec<u32> = (0..24).map(|_| random_ids.below(288)).collect();
    for stem in ["tiny_llama", "tiny_llama_linear"] {
        let base = Gguf::open(tiny(stem)).unwrap();
        let (all, some) =
            (random(&base, 5, |_| true), random(&base, 6, |path| path.layer.is_some()));
        let adapters = [(&all, 0.75), (&some, -0.5)];
        for (dtype, rounding) in ROUNDINGS {
            let exported = export(&base, &adapters, dtype).unwrap();
            let reference = Reference::merged(&base, &adapters, rounding);
            let (_, options) = tiers().into_iter().nth(1).unwrap();
            let engine =
                Engine::open(exported.dir.path().join("out.gguf"), options.clone()).unwrap();
            let expected = expect(&reference, &ids, None, halves(&engine, &options, &[24]));
            let found = logits(&engine, &ids, &[24]);
            let (in_bounds, relative) = distance(&expected, &found);
            println!(
                "{stem} in {}: {in_bounds:.2} of the bound, {relative:.1e} of the largest logit",
                dtype.name()
            );
            assert!(in_bounds <= 1.0, "{stem} {}: {in_bounds} of the bound", dtype.name());
            // And those of the adapters beside the base, within what both may be off.
            let beside = Engine::open(tiny(stem), options.clone()).unwrap();
            let halves = halves(&beside, &options, &[24]);
            let either = expect(&Reference::adapted(&base, &adapters), &ids, None, halves);
            let both = between(&under(&beside, &adapters, &ids), &expected, &either);
            let in_bounds = distance(&both, &found).0;
            assert!(
                in_bounds <= 1.0,
                "{stem} {}: {in_bounds} of the bounds beside the base",
                dtype.name()
            );
            let base_alone = distance(&expected, &logits(&beside, &ids, &[24])).0;
            assert!(base_alone > 1.0, "the bound tells the base from the adapted: {base_alone}");
        }
    }
}

/// `found`, with the bounds of both.
fn between(found: &[Vec<f32>], a: &Expected, b: &Expected) -> Expected {
    let bound = |t: usize, v: usize| a.rows[t][v].1 + b.rows[t][v].1;
    let row = |(t, found): (usize, &Vec<f32>)| {
        found.iter().enumerate().map(|(v, &value)| (f64::from(value), bound(t, v))).collect()
    };
    Expected { rows: found.iter().enumerate().map(row).collect(), largest: a.largest }
}

/// Logits of `ids` with the adapters beside the base.
fn under(
    engine: &std::sync::Arc<Engine>,
    adapters: &[(&Adapter, f32)],
    ids: &[u32],
) -> Vec<Vec<f32>> {
    let names: Vec<String> = (0..adapters.len()).map(|i| i.to_string()).collect();
    adapters
        .iter()
        .zip(&names)
        .for_each(|((adapter, _), id)| drop(engine.add_adapter(id, adapter).unwrap()));
    let set: Vec<(&str, f32)> =
        names.iter().zip(adapters).map(|(id, (_, weight))| (id.as_str(), *weight)).collect();
    let (mut session, mut all) = (engine.session(), Vec::new());
    session
        .set_adapters(&epiphyte::engine::Change { adapters: &set, ..Default::default() })
        .unwrap();
    session.push_tokens(ids).unwrap();
    super::collect(&mut session, &mut all);
    all
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let base = Gguf::open(tiny("tiny_llama")).unwrap();
    let adapter = random(&base, 7, |path| path.layer.is_some());
    let other = random(&Gguf::open(tiny("tiny_llama")).unwrap(), 8, |path| path.layer == Some(1));
    for dtype in [DType::F32, DType::Q4_0, DType::BF16] {
        assert!(matches!(
            export(&base, &[(&adapter, 1.0)], dtype).err(),
            Some(Error::InvalidArgument { name: "type", .. })
        ));
    }
    for adapters in [&[][..], &[(&adapter, f32::NAN)]] {
        assert!(matches!(
            export(&base, adapters, DType::F16).err(),
            Some(Error::InvalidArgument { name: "adapters", .. })
        ));
    }
    for dtype in [DType::F16, DType::Q8_0] {
        let large = export(&base, &[(&adapter, 1e9)], dtype).err();
        assert!(matches!(&large, Some(Error::InvalidTensor { .. })), "{large:?}");
    }
    let one_layer = Gguf::open(tiny("tiny_llama_linear")).unwrap();
    assert!(matches!(
        export(&one_layer, &[(&other, 1.0)], DType::F16).err(),
        Some(Error::InvalidAdapter { .. })
    ));
    let shape = ModelConfig::from_gguf(&base).unwrap().base_shape();
    let nowhere = Path::new("/no/such/folder/out.gguf");
    let error =
        export_gguf(&base, &shape, &[(&adapter, 1.0)], (nowhere, DType::F16), &mut |_, _| {}).err();
    assert!(matches!(error, Some(Error::Io { .. })), "{error:?}");
}
