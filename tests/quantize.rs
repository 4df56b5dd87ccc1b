//! A model's weights in other formats: what is rounded, what is carried over, what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use epiphyte::base::ModelConfig;
use epiphyte::format::gguf::Gguf;
use epiphyte::quant::format;
use epiphyte::quantize::{Imatrix, QuantizeOptions, QuantizeReport, QuantizeTo, quantize_gguf};
use epiphyte::tokenizer::TokenizerSpec;
use epiphyte::{DType, Error, FileKind, Result};

use crate::common::writer::{Meta, Writer, llama};
use crate::common::{Random, golden};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn quantize(model: &Gguf, options: &QuantizeOptions, out: &Path) -> Result<QuantizeReport> {
    let mut last = (0, 1);
    let report = quantize_gguf(model, options, out, &mut |done, all| last = (done, all))?;
    assert_eq!(last.0, last.1);
    Ok(report)
}

fn to(dtype: DType) -> QuantizeOptions {
    QuantizeOptions::new(QuantizeTo::Type(dtype))
}

fn values(gguf: &Gguf, name: &str) -> (DType, Vec<f32>) {
    let view = gguf.require(name).unwrap();
    let mut values = vec![0.0; view.n_weights()];
    format(view.dtype).dequantize(&view.bytes(), &mut values);
    (view.dtype, values)
}

/// Root mean square of the differences over that of the weights.
fn relative(weights: &[f32], values: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let errors: f64 = weights.iter().zip(values).map(square).sum();
    (errors / weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>()).sqrt()
}

/// Keys but those of the quantisation.
fn keys(gguf: &Gguf) -> BTreeMap<String, String> {
    let ours = ["general.file_type", "general.quantization_version", "epiphyte.quantized"];
    let is_ours = |key: &str| ours.contains(&key) || key.starts_with("epiphyte.types.");
    let keys = gguf.metadata().filter(|(key, _)| !is_ours(key));
    // An array shows its length alone, so its items are told, too.
    let told = |value: epiphyte::format::gguf::Value<'_>| match value {
        epiphyte::format::gguf::Value::Array(all) => {
            format!("{:?}", all.iter().collect::<Vec<_>>())
        }
        other => other.to_string(),
    };
    keys.map(|(key, value)| (key.into(), told(value))).collect()
}

#[test]
fn every_type_is_written_and_read_again() {
    let folder = Folder::new();
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let config = ModelConfig::from_gguf(&tiny).unwrap();
    for dtype in DType::ALL {
        let out = folder.path(&format!("{}.gguf", dtype.name()));
        let report = quantize(&tiny, &to(dtype), &out).unwrap();
        assert_eq!(report.n_bytes, std::fs::metadata(&out).unwrap().len());
        assert_eq!(FileKind::of(&out), FileKind::QuantizedModel);
        let made = Gguf::open(&out).unwrap();
        assert_eq!(ModelConfig::from_gguf(&made).unwrap(), config);
        config.check_tensors(&made).unwrap();
        TokenizerSpec::from_gguf(&made).unwrap();
        assert_eq!(keys(&made), keys(&tiny), "{dtype:?}");
        assert_eq!(made.tensors().len(), report.tensors.len());
        let spent: usize = made.tensors().map(|view| view.n_bytes()).sum();
        let bits = 8.0 * spent as f64 / config.n_params() as f64;
        assert!((report.bits_per_weight - bits).abs() < 1e-9);
        for (view, told) in made.tensors().zip(&report.tensors) {
            let ((_, before), (now, after)) = (values(&tiny, view.name), values(&made, view.name));
            assert_eq!(told.to, now.name());
            let error = relative(&before, &after);
            assert!((error - told.relative_rms).abs() < 1e-6 * error.max(1e-9), "{}", view.name);
            // A code's step is 2 / 15 of a block's range at most, and errors are even over it.
            let most = match now {
                _ if view.shape.len() == 1 => 0.0,
                // Of 2 / 3; a normal distribution's part of it.
                DType::Q2_1 | DType::Q2_K => 0.5,
                _ => 0.2,
            };
            assert!(error <= most, "{dtype:?} {}: {error}", view.name);
            assert!(view.shape.len() > 1 || now == DType::F32);
            assert!(
                told.fell_back
                    || view.shape.len() == 1
                    || now == dtype
                    || told.to == "Q8_0"
                    || told.to == "Q6_K",
                "{dtype:?} {}: {now:?}",
                view.name
            );
        }
    }
    assert!(folder.names().iter().all(|name| name.ends_with(".gguf")), "nothing temporary is left");
}

#[test]
fn the_same_type_is_a_copy() {
    let folder = Folder::new();
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let (first, second) = (folder.path("1.gguf"), folder.path("2.gguf"));
    quantize(&tiny, &to(DType::Q4_0), &first).unwrap();
    let report = quantize(&Gguf::open(&first).unwrap(), &to(DType::Q4_0), &second).unwrap();
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());
    assert_eq!((report.relative_rms, report.requantized), (0.0, 0));
    let report = quantize(&Gguf::open(&first).unwrap(), &to(DType::Q8_0), &second).unwrap();
    assert!(report.requantized > 0);
}

/// A llama of one layer, with a head or without, whose rows are whole superblocks or not.
fn wide(columns: u64, head: bool) -> Writer {
    let mut random = Random::new(columns);
    let mut n =
        |len: u64| (0..len).flat_map(|_| random.signed(1.0).to_le_bytes()).collect::<Vec<u8>>();
    let mut writer = llama().without("token_embd.weight").without("blk.0.attn_q.weight");
    writer = writer.tensor("token_embd.weight", &[columns, 40], 0, n(40 * columns));
    writer = writer.tensor("blk.0.attn_q.weight", &[columns, 64], 0, n(64 * columns));
    match head {
        true => writer.tensor("output.weight", &[columns, 40], 0, n(40 * columns)),
        false => writer,
    }
}

#[test]
fn types_follow_the_table_of_the_docs() {
    let folder = Folder::new();
    // Columns, a head of its own, what is asked for: types of embedding, head and q.
    let cases = [
        (256, true, DType::Q4_K, [DType::Q4_K, DType::Q6_K, DType::Q4_K]),
        (256, false, DType::Q4_K, [DType::Q6_K, DType::Q6_K, DType::Q4_K]),
        (256, false, DType::Q6_K, [DType::Q6_K, DType::Q6_K, DType::Q6_K]),
        (256, false, DType::Q8_0, [DType::Q8_0, DType::Q8_0, DType::Q8_0]),
        (64, true, DType::Q4_0, [DType::Q4_0, DType::Q8_0, DType::Q4_0]),
        (64, false, DType::Q4_K, [DType::Q8_0, DType::Q8_0, DType::Q5_0]),
        (64, true, DType::Q5_K, [DType::Q5_1, DType::Q8_0, DType::Q5_1]),
        (40, true, DType::Q4_K, [DType::F16, DType::F16, DType::F16]),
        (40, true, DType::BF16, [DType::BF16, DType::BF16, DType::BF16]),
        (256, true, DType::NF4_DQ, [DType::NF4_DQ, DType::Q6_K, DType::NF4_DQ]),
        (64, false, DType::NF4_DQ, [DType::Q8_0, DType::Q8_0, DType::NF4]),
        (256, false, DType::Q3_K, [DType::Q6_K, DType::Q6_K, DType::Q3_K]),
        (64, false, DType::Q3_K, [DType::Q8_0, DType::Q8_0, DType::IQ4_NL]),
        (64, true, DType::Q2_K, [DType::IQ4_NL, DType::Q8_0, DType::IQ4_NL]),
        (40, true, DType::Q3_0, [DType::F16, DType::F16, DType::F16]),
        (64, true, DType::TQ2_0, [DType::Q2_1, DType::Q8_0, DType::Q2_1]),
        (40, true, DType::NF4, [DType::F16, DType::F16, DType::F16]),
    ];
    for (i, (columns, head, asked, types)) in cases.into_iter().enumerate() {
        let model = Gguf::from_bytes(wide(columns, head).bytes()).unwrap();
        let out = folder.path(&format!("{i}.gguf"));
        let report = quantize(&model, &to(asked), &out).unwrap();
        let made = Gguf::open(&out).unwrap();
        let names = [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.layers.0.self_attn.q_proj.weight",
        ];
        for (name, dtype) in
            names.into_iter().zip(types).filter(|(name, _)| head || *name != names[1])
        {
            assert_eq!(
                made.require(name).unwrap().dtype,
                dtype,
                "{columns} {head} {asked:?} {name}"
            );
        }
        let q = report.tensors.iter().find(|tensor| tensor.name == "blk.0.attn_q.weight").unwrap();
        assert_eq!(q.fell_back, types[2] != asked);
    }
}

#[test]
fn types_of_our_own_are_told_by_keys_and_mean_nothing_without() {
    let folder = Folder::new();
    let model = Gguf::from_bytes(wide(64, true).bytes()).unwrap();
    let (first, second) = (folder.path("1.gguf"), folder.path("2.gguf"));
    quantize(&model, &to(DType::NF4), &first).unwrap();
    let made = Gguf::open(&first).unwrap();
    assert_eq!(made.get::<u32>("epiphyte.types.nf4").unwrap(), DType::NF4.ggml_type());
    assert_eq!(made.get::<u32>("general.file_type").unwrap(), 1024);
    // One of other types says nothing of it.
    quantize(&made, &to(DType::Q4_0), &second).unwrap();
    let other = Gguf::open(&second).unwrap();
    assert_eq!(other.find::<u32>("epiphyte.types.nf4").unwrap(), None);
    // A number that the file does not explain is refused, as is one that means something else.
    let whole = std::fs::read(&first).unwrap();
    let key = b"epiphyte.types.nf4";
    let at = whole.windows(key.len()).position(|bytes| bytes == key).unwrap();
    let mut renamed = whole.clone();
    renamed[at + key.len() - 1] = b'5';
    let mut renumbered = whole;
    renumbered[at + key.len() + 4] ^= 1;
    for bytes in [renamed, renumbered] {
        match Gguf::from_bytes(bytes) {
            Err(Error::Unsupported { what, hint }) => {
                assert!(what.contains("ggml tensor type 20001"), "{what}");
                assert!(hint.contains("epiphyte.types.nf4"), "{hint}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn keys_tell_what_was_done() {
    let folder = Folder::new();
    let model = Gguf::from_bytes(
        wide(256, false)
            .key("quantize.imatrix.file", Meta::Text("old"))
            .key("split.count", Meta::U32(1))
            .bytes(),
    )
    .unwrap();
    let out = folder.path("out.gguf");
    let imatrix = Imatrix::open(folder.write("new.dat", &dat(256))).unwrap();
    let options = {
        let mut options = to(DType::Q4_K);
        options.imatrix = Some(imatrix);
        options
    };
    let report = quantize(&model, &options, &out).unwrap();
    let made = Gguf::open(&out).unwrap();
    assert_eq!(made.get::<u32>("general.file_type").unwrap(), 14);
    assert_eq!(made.get::<u32>("general.quantization_version").unwrap(), 2);
    assert_eq!(made.get::<&str>("epiphyte.quantized").unwrap(), "Q4_K");
    assert_eq!(made.get::<&str>("quantize.imatrix.file").unwrap(), "new.dat");
    assert_eq!(made.get::<&str>("quantize.imatrix.dataset").unwrap(), "text");
    assert_eq!(made.get::<u32>("quantize.imatrix.entries_count").unwrap(), 1);
    assert_eq!(made.get::<u32>("quantize.imatrix.chunks_count").unwrap(), 5);
    assert_eq!(made.find::<u32>("split.count").unwrap(), None);
    let matrices = report.tensors.iter().filter(|tensor| tensor.shape.len() > 1).count();
    assert_eq!(report.without_importance, matrices - 1);
}

fn importance(column: usize) -> f32 {
    if column.is_multiple_of(4) { 50.0 } else { 1.0 }
}

/// An old imatrix: importance of q's columns.
fn dat(columns: usize) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as i32).to_le_bytes(), text.as_bytes()].concat();
    let sums: Vec<u8> = (0..columns).flat_map(|i| importance(i).to_le_bytes()).collect();
    let counts = [2_i32, columns as i32].map(i32::to_le_bytes).concat();
    let mut out = [&1_i32.to_le_bytes()[..], &text("blk.0.attn_q.weight"), &counts, &sums].concat();
    out.extend(5_i32.to_le_bytes());
    out.extend(text("text"));
    out
}

/// The same in GGUF.
fn gguf_imatrix(columns: u64) -> Writer {
    let floats =
        |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let sums = floats((0..columns as usize).map(|i| 7.0 * importance(i)).collect());
    Writer::new()
        .key("general.type", Meta::Text("imatrix"))
        .key("imatrix.datasets", Meta::Texts(vec!["text".into()]))
        .key("imatrix.chunk_count", Meta::U32(5))
        .tensor("blk.0.attn_q.weight.in_sum2", &[columns], 0, sums)
        .tensor("blk.0.attn_q.weight.counts", &[1], 0, floats(vec![14.0]))
}

#[test]
fn an_imatrix_moves_errors_to_where_they_cost_less() {
    let folder = Folder::new();
    let model = Gguf::from_bytes(wide(256, false).bytes()).unwrap();
    let old = Imatrix::open(folder.write("a.dat", &dat(256))).unwrap();
    let new = Imatrix::open(folder.write("a.gguf", &gguf_imatrix(256).bytes())).unwrap();
    assert_eq!((old.len(), new.len()), (1, 1));
    let q = "model.layers.0.self_attn.q_proj.weight";
    let made = |imatrix: Option<Imatrix>| {
        let out = folder.path("out.gguf");
        let mut options = to(DType::Q4_K);
        options.imatrix = imatrix;
        quantize(&model, &options, &out).unwrap();
        values(&Gguf::open(&out).unwrap(), q).1
    };
    let (by_old, by_new, plain) = (made(Some(old)), made(Some(new)), made(None));
    assert!(by_old == by_new && by_old != plain);
    let weights = values(&model, q).1;
    let cost = |values: &[f32]| -> f64 {
        let square =
            |(i, (w, v)): (usize, (&f32, &f32))| f64::from(importance(i) * (w - v).powi(2));
        weights.iter().zip(values).enumerate().map(square).sum()
    };
    let (with, without) = (cost(&by_old), cost(&plain));
    assert!(with < 0.9 * without, "{with} and {without}");
}

#[test]
fn a_budget_of_bits_is_kept_and_spent() {
    let folder = Folder::new();
    let model = Gguf::from_bytes(wide(256, true).bytes()).unwrap();
    let mut last = f64::INFINITY;
    for bits in [7.5, 8.0, 9.0, 12.0, 16.5, 40.0] {
        let out = folder.path("out.gguf");
        let options = QuantizeOptions::new(QuantizeTo::Bits(bits));
        let report = quantize(&model, &options, &out).unwrap();
        assert!(report.bits_per_weight <= bits, "{bits}");
        assert!(report.relative_rms < last, "{bits}: more bits, fewer errors");
        last = report.relative_rms;
        let made = Gguf::open(&out).unwrap();
        assert_eq!(made.get::<u32>("general.file_type").unwrap(), 1024);
    }
    assert_eq!(last, 0.0, "32 bits hold everything");
    // Below what GGUF's types of four bits take, those of ours and of two bits come in.
    for (bits, own) in [(5.0, false), (4.3, true), (3.0, true)] {
        let options = QuantizeOptions::new(QuantizeTo::Bits(bits));
        let wide = Gguf::from_bytes(wide(512, true).bytes()).unwrap();
        let report = quantize(&wide, &options, &folder.path("out.gguf")).unwrap();
        assert!(report.bits_per_weight <= bits, "{bits}");
        let few = ["NF4", "Q2_1", "Q3_0"];
        assert_eq!(report.tensors.iter().any(|t| few.contains(&t.to)), own, "{bits}");
    }
    for bits in [0.0, 2.0, -1.0, f64::NAN] {
        let options = QuantizeOptions::new(QuantizeTo::Bits(bits));
        let refused = quantize(&model, &options, &folder.path("few.gguf"));
        assert!(matches!(refused, Err(Error::InvalidArgument { name: "bits", .. })), "{refused:?}");
    }
    assert_eq!(folder.names(), ["out.gguf"]);
}

#[test]
fn a_budget_goes_to_where_the_loss_is_steep() {
    let folder = Folder::new();
    let model = Gguf::from_bytes(wide(512, true).bytes()).unwrap();
    let floats = |v: f32| v.to_le_bytes().to_vec();
    let steep = |slope: f32| {
        let file = Writer::new()
            .key("general.type", Meta::Text("imatrix"))
            .tensor("blk.0.attn_q.weight.in_sum2", &[512], 0, floats(1.0).repeat(512))
            .tensor("blk.0.attn_q.weight.counts", &[1], 0, floats(1.0))
            .tensor("blk.0.attn_q.weight.slope2", &[1], 0, floats(slope));
        let mut options = QuantizeOptions::new(QuantizeTo::Bits(4.5));
        let path = folder.write("slopes.gguf", &file.bytes());
        options.imatrix = Some(Imatrix::open(path).unwrap());
        let report = quantize(&model, &options, &folder.path("out.gguf")).unwrap();
        assert!(report.bits_per_weight <= 4.5 && !report.wants_imatrix);
        let q = report.tensors.iter().find(|tensor| tensor.name == "blk.0.attn_q.weight");
        q.unwrap().relative_rms
    };
    let (flat, steep) = (steep(1e-9), steep(1.0));
    assert!(steep < 0.1 * flat, "{steep} and {flat}");
}

#[test]
fn few_bits_without_an_imatrix_are_told() {
    let folder = Folder::new();
    let model = Gguf::from_bytes(wide(512, true).bytes()).unwrap();
    for (bits, told) in [(3.9, true), (4.1, false)] {
        let options = QuantizeOptions::new(QuantizeTo::Bits(bits));
        let report = quantize(&model, &options, &folder.path("out.gguf")).unwrap();
        assert_eq!(report.wants_imatrix, told, "{bits}");
    }
    let report = quantize(&model, &to(DType::Q3_K), &folder.path("out.gguf")).unwrap();
    assert!(!report.wants_imatrix, "it is the type that was asked for");
}

#[test]
fn what_can_not_be_quantised_is_named_and_nothing_is_written() {
    let folder = Folder::new();
    let out = folder.path("out.gguf");
    for (odd, says) in [
        (f32::NAN, "not a finite number"),
        (f32::INFINITY, "not a finite number"),
        (1e30, "too large for Q4_0"),
    ] {
        let broken = wide(64, true).edit("blk.0.attn_q.weight", |tensor| {
            tensor.data[4000..4004].copy_from_slice(&odd.to_le_bytes());
        });
        let model = Gguf::from_bytes(broken.bytes()).unwrap();
        match quantize_gguf(&model, &to(DType::Q4_0), &out, &mut |_, _| {}) {
            Err(Error::InvalidTensor { name, reason }) => {
                assert_eq!(name, "blk.0.attn_q.weight");
                assert!(reason.contains(says), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    let path = folder.write("in.gguf", &wide(64, true).bytes());
    let before = std::fs::read(&path).unwrap();
    let model = Gguf::open(&path).unwrap();
    let same = quantize_gguf(&model, &to(DType::Q4_0), &path, &mut |_, _| {});
    assert!(matches!(same, Err(Error::InvalidArgument { name: "path", .. })), "{same:?}");
    assert!(std::fs::read(&path).unwrap() == before);
    let nowhere = folder.path("none/out.gguf");
    let refused = quantize_gguf(&model, &to(DType::Q4_0), &nowhere, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    // A disk without room; `/dev/full` is one.
    if Path::new("/dev/full").exists() {
        match quantize_gguf(&model, &to(DType::Q4_0), Path::new("/dev/full"), &mut |_, _| {}) {
            Err(Error::Io { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::StorageFull)
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(folder.names(), ["in.gguf"]);
}

#[test]
fn hostile_imatrices_are_refused() {
    let folder = Folder::new();
    let whole = dat(64);
    for end in 0..whole.len() - 12 {
        let refused = Imatrix::open(folder.write("cut.dat", &whole[..end]));
        assert!(matches!(refused, Err(Error::InvalidFile { .. })), "{end}");
    }
    let mut wild = whole.clone();
    for (at, value) in
        [(0, i32::MAX), (0, -1), (4, i32::MAX), (4, -1), (31, i32::MAX), (31, -5), (31, 0)]
    {
        wild[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(Imatrix::open(folder.write("wild.dat", &wild)).is_err(), "{value} at {at}");
        wild.clone_from(&whole);
    }
    for odd in [f32::NAN, f32::INFINITY, -1.0] {
        wild[35..39].copy_from_slice(&odd.to_le_bytes());
        let refused = Imatrix::open(folder.write("odd.dat", &wild));
        assert!(matches!(refused, Err(Error::InvalidTensor { .. })), "{odd}");
    }
    // A model, one without counts, one of experts, slopes that are none.
    let slope = |dims: &[u64], v: f32| {
        let floats = v.to_le_bytes().repeat(dims.iter().product::<u64>() as usize);
        gguf_imatrix(64).tensor("blk.0.attn_q.weight.slope2", dims, 0, floats)
    };
    let counts = "blk.0.attn_q.weight.counts";
    let floats = |n: usize| vec![0; 4 * n];
    for (i, writer) in [
        wide(64, true),
        gguf_imatrix(64).without(counts),
        gguf_imatrix(64).without(counts).tensor(counts, &[1, 2], 0, floats(2)),
        gguf_imatrix(64).edit("blk.0.attn_q.weight.in_sum2", |tensor| tensor.dims = vec![32, 2]),
        slope(&[2], 1.0),
        slope(&[1], f32::NAN),
        slope(&[1], -1.0),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(Imatrix::open(folder.write("other.gguf", &writer.bytes())).is_err(), "{i}");
    }
    // One of another model.
    let model = Gguf::from_bytes(wide(256, false).bytes()).unwrap();
    let mut options = to(DType::Q4_K);
    options.imatrix = Some(Imatrix::open(folder.write("a.dat", &whole)).unwrap());
    match quantize_gguf(&model, &options, &folder.path("out.gguf"), &mut |_, _| {}) {
        Err(Error::InvalidTensor { name, .. }) => assert_eq!(name, "blk.0.attn_q.weight"),
        other => panic!("{other:?}"),
    }
}
