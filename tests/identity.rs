//! Names of bases and adapters: as another program computes them, and what they depend on.

use std::path::Path;

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule, ModulePath, Modules, Target};
use epiphyte::base::ModelConfig;
use epiphyte::base::fingerprint::{fingerprint, full_hash};
use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::TokenizerSpec;
use epiphyte::{DType, Error};
use serde_json::Value;

use crate::common::writer::{Meta, Tensor, Writer, array, llama};
use crate::common::{golden, model_path};

const DEMO: [&str; 2] = ["pirate", "json"];

fn demo(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/adapters").join(name)
}

/// What `tests/golden/identity.py` says of files, by name.
fn said(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("golden/identity.json")).unwrap();
    all[name].clone()
}

/// Sizes and vocabulary of a file.
fn described(gguf: &Gguf) -> (ModelConfig, TokenizerSpec) {
    (ModelConfig::from_gguf(gguf).unwrap(), TokenizerSpec::from_gguf(gguf).unwrap())
}

fn check_model(path: &Path) {
    let gguf = Gguf::open(path).unwrap();
    let (config, spec) = described(&gguf);
    let expected = said(path.file_name().unwrap().to_str().unwrap());
    assert_eq!(fingerprint(&gguf, &config, &spec).unwrap(), expected["fingerprint"]);
    let all = gguf.tensors().map(|view| view.n_bytes() as u64).sum::<u64>();
    let most = std::sync::atomic::AtomicU64::new(0);
    let progress = |done| {
        most.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
    };
    assert_eq!(full_hash(&gguf, &config, &spec, &progress).unwrap(), expected["full_hash"]);
    let unused = gguf.tensor("rope_freqs.weight").map_or(0, |view| view.n_bytes() as u64);
    assert_eq!(most.into_inner(), all - unused);
}

#[test]
fn python_names_the_tiny_models_alike() {
    for name in ["tiny_llama.gguf", "tiny_llama_linear.gguf", "tiny_llama_llama3.gguf"] {
        check_model(&golden(name));
    }
}

#[test]
fn python_names_the_default_model_and_the_demos_adapters_alike() {
    let Some(path) = model_path() else { return };
    let named = std::fs::canonicalize(&path).unwrap();
    if named.file_name().is_some_and(|name| name == epiphyte::DEFAULT_MODEL) {
        check_model(&path);
    }
    let gguf = Gguf::open(path).unwrap();
    let shape = ModelConfig::from_gguf(&gguf).unwrap().base_shape();
    for name in DEMO {
        let adapter = Adapter::load(demo(name), &shape).unwrap();
        assert_eq!(adapter.digest(), said(name)["digest"], "{name}");
        let base = &said(epiphyte::DEFAULT_MODEL)["fingerprint"];
        assert_eq!(adapter.base_fingerprint.as_deref(), base.as_str(), "{name}");
    }
}

#[test]
fn python_names_what_peft_wrote_alike() {
    let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let shape = ModelConfig::from_gguf(&gguf).unwrap().base_shape();
    for name in ["all_linear", "rslora"] {
        let adapter = Adapter::load(golden("peft_logits").join(name), &shape).unwrap();
        assert_eq!(adapter.digest(), said(name)["digest"], "{name}");
    }
}

/// The values are written down for others to compare with.
#[test]
fn the_documentation_has_the_values() {
    let docs = include_str!("../docs/formats.md");
    let names =
        ["tiny_llama.gguf", epiphyte::DEFAULT_MODEL].map(|name| said(name)["fingerprint"].clone());
    let digests = DEMO.map(|name| said(name)["digest"].clone());
    for name in names.iter().chain(&digests) {
        assert!(docs.contains(name.as_str().unwrap()), "{name}");
    }
    assert!(docs.contains(&example().digest()), "{}", example().digest());
}

/// The smallest model, with a tokenizer.
fn small() -> Writer {
    let merges = ["a b", "t 1"].map(String::from).to_vec();
    llama()
        .key("tokenizer.ggml.model", Meta::Text("gpt2"))
        .key("tokenizer.ggml.pre", Meta::Text("llama-bpe"))
        .key("tokenizer.ggml.merges", Meta::Texts(merges))
        .key("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .key("tokenizer.ggml.eos_token_id", Meta::U32(2))
        .key("tokenizer.chat_template", Meta::Text("{{ messages }}"))
        .tensor("output.weight", &[64, 40], 0, vec![1; 64 * 40 * 4])
}

/// As [`small`], with a vocabulary of the other kind.
fn sentence_piece() -> Writer {
    let scores = (0..40_u32).flat_map(|i| (i as f32).to_le_bytes());
    small()
        .key("tokenizer.ggml.model", Meta::Text("llama"))
        .key("tokenizer.ggml.scores", Meta::Raw(9, array(6, 40, scores)))
        .key("tokenizer.ggml.unknown_token_id", Meta::U32(0))
}

/// The fingerprint, and the full hash, of a file in the making.
fn names(writer: &Writer) -> [String; 2] {
    let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
    let (config, spec) = described(&gguf);
    config.check_tensors(&gguf).unwrap();
    let full = full_hash(&gguf, &config, &spec, &|_| ()).unwrap();
    [fingerprint(&gguf, &config, &spec).unwrap(), full]
}

fn floats(n: usize, value: f32) -> Vec<u8> {
    (0..n).flat_map(|_| value.to_le_bytes()).collect()
}

#[test]
fn what_changes_nothing_leaves_a_bases_name_alone() {
    let neutral = |key: &str, value: Meta| (key.to_string(), small().key(key, value));
    let wide = |kind, n: u64| Meta::Raw(kind, n.to_le_bytes().into());
    let mut all = vec![
        neutral("general.name", Meta::Text("another name")),
        neutral("general.of_later", Meta::F32(2.0)),
        neutral("llama.context_length", Meta::U32(64)),
        neutral("llama.rope.scaling.factor", Meta::F32(1.0)),
        neutral("llama.rope.scaling.type", Meta::Text("none")),
        neutral("llama.rope.dimension_count", Meta::U32(32)),
        neutral("llama.attention.key_length", Meta::U32(32)),
        neutral("llama.attention.causal", Meta::Bool(true)),
        neutral("llama.logit_scale", Meta::F32(1.0)),
        neutral("llama.vocab_size", Meta::U32(40)),
        neutral("llama.block_count", wide(10, 1)),
        neutral("tokenizer.ggml.bos_token_id", wide(11, 1)),
        neutral("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        neutral("tokenizer.ggml.add_eos_token", Meta::Bool(false)),
        neutral("tokenizer.ggml.add_space_prefix", Meta::Bool(true)),
        neutral("tokenizer.ggml.padding_token_id", Meta::U32(7)),
        neutral("tokenizer.ggml.unknown_token_id", Meta::U32(7)),
        neutral("tokenizer.ggml.of_later", Meta::Bool(true)),
        ("version 2".into(), Writer { version: 2, ..small() }),
        ("an unused tensor".into(), small().counting("blk.0.attn_rot_embd.weight", &[4])),
        ("factors of 1".into(), small().tensor("rope_freqs.weight", &[16], 0, floats(16, 1.0))),
    ];
    let mut reordered = small();
    reordered.tensors.reverse();
    reordered.keys.reverse();
    all.push(("the other order".into(), reordered));
    let expected = names(&small());
    for (what, writer) in all {
        assert_eq!(names(&writer), expected, "{what}");
    }
    let expected = names(&sentence_piece());
    for (key, value) in [
        ("pre", Meta::Text("default")),
        ("merges", Meta::Texts(Vec::new())),
        ("add_space_prefix", Meta::Bool(true)),
        ("add_bos_token", Meta::Bool(true)),
        ("remove_extra_whitespaces", Meta::Bool(false)),
    ] {
        let writer = sentence_piece().key(&format!("tokenizer.ggml.{key}"), value);
        assert_eq!(names(&writer), expected, "{key}");
    }
}

#[test]
fn what_changes_a_result_changes_a_bases_name() {
    let key = |key: &str, value: Meta| (key.to_string(), small().key(key, value));
    let piece = |key: &str, value: Meta| (key.to_string(), sentence_piece().key(key, value));
    let texts = |n: usize| (0..n).map(|i| format!("s{i}")).collect();
    let mut types = vec![1; 40];
    types[3] = 4;
    let mut others = vec![
        ("the small model".into(), small()),
        ("SentencePiece".into(), sentence_piece()),
        key("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-6)),
        key("llama.rope.freq_base", Meta::F32(10_000.0)),
        key("llama.rope.scaling.factor", Meta::F32(2.0)),
        key("llama.rope.scaling.factor", Meta::F32(4.0)),
        key("tokenizer.ggml.pre", Meta::Text("gpt-2")),
        key("tokenizer.ggml.tokens", Meta::Texts(texts(40))),
        key("tokenizer.ggml.tokens", Meta::Texts(texts(39))),
        key("tokenizer.ggml.token_type", Meta::I32s(types)),
        key("tokenizer.ggml.merges", Meta::Texts(vec!["t 1".into(), "a b".into()])),
        key("tokenizer.ggml.merges", Meta::Texts(vec!["a bt".into(), " 1".into()])),
        key("tokenizer.ggml.bos_token_id", Meta::U32(3)),
        key("tokenizer.ggml.eos_token_id", Meta::U32(3)),
        key("tokenizer.ggml.eot_token_id", Meta::U32(3)),
        key("tokenizer.ggml.eom_token_id", Meta::U32(3)),
        key("tokenizer.ggml.add_bos_token", Meta::Bool(false)),
        key("tokenizer.ggml.add_eos_token", Meta::Bool(true)),
        key("tokenizer.chat_template", Meta::Text("{{ tools }}")),
        piece("tokenizer.ggml.unknown_token_id", Meta::U32(3)),
        piece("tokenizer.ggml.add_space_prefix", Meta::Bool(false)),
        piece("tokenizer.ggml.scores", Meta::Raw(9, array(6, 40, floats(40, 1.0)))),
        ("no template".into(), small().without("tokenizer.chat_template")),
        ("no types".into(), small().without("tokenizer.ggml.token_type")),
        ("tied".into(), small().without("output.weight")),
        ("factors".into(), small().tensor("rope_freqs.weight", &[16], 0, floats(16, 2.0))),
        ("other factors".into(), small().tensor("rope_freqs.weight", &[16], 0, floats(16, 3.0))),
    ];
    let untyped = small().without("tokenizer.ggml.token_type");
    others.push((
        "padding where tokens have no types".into(),
        untyped.key("tokenizer.ggml.padding_token_id", Meta::U32(7)),
    ));
    // Sizes: of heads, layers, widths and vocabulary.
    let q = |writer: Writer, heads: u32, kv: u64| {
        let width = u64::from(heads) * 32;
        let shaped =
            |writer: Writer, name: &str, dims: &[u64]| writer.without(name).counting(name, dims);
        let writer = writer.key("llama.attention.key_length", Meta::U32(32));
        let writer = writer.key("llama.attention.head_count", Meta::U32(heads));
        let writer = shaped(writer, "blk.0.attn_q.weight", &[64, width]);
        let writer = shaped(writer, "blk.0.attn_output.weight", &[width, 64]);
        let writer = writer.key("llama.attention.head_count_kv", Meta::U32(kv as u32));
        let writer = shaped(writer, "blk.0.attn_k.weight", &[64, 32 * kv]);
        shaped(writer, "blk.0.attn_v.weight", &[64, 32 * kv])
    };
    others.push(("query heads".into(), q(small(), 4, 1)));
    others.push(("key and value heads".into(), q(small(), 2, 2)));
    others.push((
        "wider heads".into(),
        small()
            .key("llama.attention.head_count", Meta::U32(1))
            .key("llama.attention.key_length", Meta::U32(64))
            .without("blk.0.attn_k.weight")
            .without("blk.0.attn_v.weight")
            .counting("blk.0.attn_k.weight", &[64, 64])
            .counting("blk.0.attn_v.weight", &[64, 64]),
    ));
    let mut all: Vec<[String; 2]> = Vec::new();
    let mut seen = |what: &str, writer: &Writer| {
        let found = names(writer);
        for (i, other) in all.iter().enumerate() {
            assert!(found[0] != other[0] && found[1] != other[1], "{what} is named as number {i}");
        }
        all.push(found);
    };
    others.iter().for_each(|(what, writer)| seen(what, writer));
    // Every tensor: its type, and its first and last bytes.
    for tensor in small().tensors {
        let name = String::from_utf8(tensor.name.clone()).unwrap();
        let end = if tensor.dims.len() == 1 { 1 } else { tensor.data.len() - 64 * 4 };
        for at in [0, end] {
            seen(&format!("{name}, byte {at}"), &small().edit(&name, |t| t.data[at] ^= 1));
        }
        let half = |t: &mut Tensor| {
            (t.ggml_type, t.data) = (1, t.data[t.data.len() / 2..].to_vec());
        };
        seen(&format!("{name} in f16"), &small().edit(&name, half));
    }
    // A byte that is not sampled is seen by the full hash alone.
    let deep = small().edit("output.weight", |t| t.data[64 * 4 * 7 + 5] ^= 1);
    let (found, expected) = (names(&deep), names(&small()));
    assert!(found[0] == expected[0] && found[1] != expected[1]);
}

const SHAPE: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Llama,
    num_hidden_layers: 1,
    hidden_size: 2,
    intermediate_size: 4,
    q_size: 2,
    kv_size: 2,
    vocab_size: 3,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    tie_word_embeddings: false,
};

/// That of docs/formats.md.
fn example() -> Adapter {
    let path = ModulePath::in_layer(0, Target::QProj);
    let module = LoraModule { path, rank: 1, a: vec![1.0, 2.0], b: vec![0.5, -1.0], scaling: 2.0 };
    let config = LoraConfig {
        r: 1,
        lora_alpha: 2.0,
        target_modules: Modules::Names(vec!["q_proj".into()]),
        ..LoraConfig::default()
    };
    Adapter::new(config, vec![module], None, &SHAPE).unwrap()
}

#[test]
fn an_adapters_digest_depends_on_what_it_computes_and_on_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, name) = (example(), example().digest());
    // These factors are exact in f16.
    for dtype in [DType::F32, DType::F16] {
        let (folder, file) = (dir.path().join("peft"), dir.path().join("lora.gguf"));
        adapter.save_peft(&folder, dtype, &SHAPE).unwrap();
        adapter.save_gguf(&file, dtype, &SHAPE).unwrap();
        assert_eq!(Adapter::load(&folder, &SHAPE).unwrap().digest(), name);
        assert_eq!(Adapter::load(&file, &SHAPE).unwrap().digest(), name);
    }
    let with = |change: &dyn Fn(&mut Adapter)| {
        let mut other = example();
        change(&mut other);
        other.digest()
    };
    assert_eq!(with(&|a| a.config.lora_dropout = 0.5), name);
    assert_eq!(with(&|a| a.config.base_model_name_or_path = Some("x".into())), name);
    assert_eq!(with(&|a| a.base_fingerprint = Some("x".into())), name);
    let other_path = ModulePath::in_layer(0, Target::KProj);
    let changes: [&dyn Fn(&mut Adapter); 6] = [
        &|a| a.modules[0].a[1] = 2.5,
        &|a| a.modules[0].b[0] = 0.25,
        &|a| a.modules[0].scaling = 1.0,
        &|a| a.modules[0].path = other_path,
        &|a| a.modules.push(LoraModule { path: other_path, ..a.modules[0].clone() }),
        &|a| {
            let module = &mut a.modules[0];
            (module.rank, module.a, module.b) = (2, module.a.repeat(2), module.b.repeat(2));
        },
    ];
    let mut all: Vec<_> = changes.iter().map(|change| with(*change)).chain([name]).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), changes.len() + 1);
}

#[test]
fn an_adapter_of_a_later_format_is_refused_by_that_name() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("peft"), dir.path().join("lora.gguf"));
    example().save_peft(&folder, DType::F32, &SHAPE).unwrap();
    example().save_gguf(&file, DType::F32, &SHAPE).unwrap();
    for path in [folder.join("adapter_model.safetensors"), file] {
        let mut bytes = std::fs::read(&path).unwrap();
        let format = b"epiphyte.adapter.1";
        let at = bytes.windows(format.len()).position(|window| window == format).unwrap();
        bytes[at + format.len() - 1] = b'2';
        std::fs::write(&path, bytes).unwrap();
        let error = Adapter::load(&path, &SHAPE).unwrap_err();
        assert!(
            matches!(&error, Error::FormatVersion { found, .. } if found == "epiphyte.adapter.2")
                && error.to_string().contains("update"),
            "{error}"
        );
    }
    assert!(matches!(Adapter::load(&folder, &SHAPE), Err(Error::FormatVersion { .. })));
}
