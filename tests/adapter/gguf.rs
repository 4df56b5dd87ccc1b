//! llama.cpp's spelling of an adapter.

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, ModulePath, Modules, Target, Verdict};
use epiphyte::format::gguf::Gguf;
use epiphyte::{DType, Error};

use super::{SHAPE, adapter, all, names, verdict};
use crate::common::writer::{Meta, Writer};

fn raw(gguf: &Gguf, name: &str) -> (Vec<usize>, Vec<f32>) {
    let view = gguf.tensor(name).unwrap();
    (
        view.shape.to_vec(),
        view.bytes().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    )
}

#[test]
fn q_and_k_are_interleaved_and_the_embedding_is_transposed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lora.gguf");
    let saved = adapter(all(), &SHAPE, 11);
    saved.save_gguf(&file, DType::F32, &SHAPE).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let module = |path| saved.module(path).unwrap();

    for (target, name, heads) in [(Target::QProj, "attn_q", 4), (Target::KProj, "attn_k", 2)] {
        let m = module(ModulePath::in_layer(1, target));
        let (shape, b) = raw(&gguf, &format!("blk.1.{name}.weight.lora_b"));
        assert_eq!((shape, b.len()), (vec![32 * heads, 3], 32 * heads * 3));
        for (head, half, i) in (0..heads).flat_map(|h| (0..32).map(move |j| (h, j / 16, j % 16))) {
            let (hf, file) = (head * 32 + half * 16 + i, head * 32 + 2 * i + half);
            assert_eq!(b[file * 3..][..3], m.b[hf * 3..][..3]);
        }
        assert_eq!(raw(&gguf, &format!("blk.1.{name}.weight.lora_a")), (vec![3, 64], m.a.clone()));
    }
    let embed = module(ModulePath { layer: None, target: Target::EmbedTokens });
    let (shape, a) = raw(&gguf, "token_embd.weight.lora_a");
    assert_eq!(shape, [291, 3]);
    assert!((0..291).all(|token| (0..3).all(|i| a[token * 3 + i] == embed.a[i * 291 + token])));
    assert_eq!(raw(&gguf, "token_embd.weight.lora_b"), (vec![64, 3], embed.b.clone()));
    let head = module(ModulePath { layer: None, target: Target::LmHead });
    assert_eq!(raw(&gguf, "output.weight.lora_b"), (vec![291, 3], head.b.clone()));
    let down = module(ModulePath::in_layer(0, Target::DownProj));
    assert_eq!(raw(&gguf, "blk.0.ffn_down.weight.lora_a"), (vec![3, 96], down.a.clone()));
    assert_eq!(gguf.get::<&str>("general.type").unwrap(), "adapter");
    assert_eq!(gguf.get::<&str>("adapter.type").unwrap(), "lora");
    assert_eq!(gguf.get::<f32>("adapter.lora.alpha").unwrap(), 5.0);
}

/// As `convert_lora_to_gguf.py` writes it: rank 2 on `v_proj` of layer 1.
fn lora() -> Writer {
    Writer::new()
        .key("general.architecture", Meta::Text("llama"))
        .key("general.type", Meta::Text("adapter"))
        .key("adapter.type", Meta::Text("lora"))
        .key("general.name", Meta::Text("mine"))
        .key("adapter.lora.alpha", Meta::F32(3.0))
        .counting("blk.1.attn_v.weight.lora_a", &[64, 2])
        .counting("blk.1.attn_v.weight.lora_b", &[2, 64])
}

fn load(writer: &Writer) -> Result<Adapter, Error> {
    Adapter::from_bytes(writer.bytes(), &SHAPE)
}

#[test]
fn alpha_is_divided_by_each_rank_and_none_means_one() {
    let loaded = load(&lora()).unwrap();
    let expected = LoraConfig {
        r: 2,
        lora_alpha: 3.0,
        target_modules: names(&["model.layers.1.self_attn.v_proj"]),
        ..LoraConfig::default()
    };
    assert_eq!(
        (loaded.config, loaded.modules[0].scaling, loaded.base_fingerprint),
        (expected, 1.5, None)
    );
    assert_eq!(verdict(&loaded.report.keys, "general.name"), Verdict::Ignored);
    assert_eq!(verdict(&loaded.report.keys, "adapter.lora.alpha"), Verdict::Matched);

    let two = lora()
        .counting("blk.0.ffn_up.weight.lora_a", &[64, 5])
        .counting("blk.0.ffn_up.weight.lora_b", &[5, 96]);
    let scalings = |writer: &Writer| {
        load(writer).unwrap().modules.iter().map(|m| (m.rank, m.scaling)).collect::<Vec<_>>()
    };
    assert_eq!(scalings(&two), [(5, 3.0 / 5.0), (2, 1.5)]);
    assert_eq!(scalings(&two.clone().without("adapter.lora.alpha")), [(5, 1.0), (2, 1.0)]);
    assert_eq!(scalings(&two.key("adapter.lora.alpha", Meta::F32(0.0))), [(5, 1.0), (2, 1.0)]);

    let every = lora()
        .counting("blk.0.attn_v.weight.lora_a", &[64, 2])
        .counting("blk.0.attn_v.weight.lora_b", &[2, 64]);
    assert_eq!(load(&every).unwrap().config.target_modules, Modules::Names(vec!["v_proj".into()]));
}

#[test]
fn what_is_no_lora_for_a_llama_is_refused() {
    let metadata = |writer: Writer, key: &str| match load(&writer) {
        Err(Error::InvalidMetadata { key: found, reason }) if found == key => reason,
        other => panic!("{key}: {other:?}"),
    };
    assert!(
        metadata(lora().key("general.architecture", Meta::Text("qwen2")), "general.architecture")
            .contains("`qwen2`")
    );
    metadata(lora().without("general.architecture"), "general.architecture");
    metadata(lora().without("general.type"), "general.type");
    metadata(lora().key("adapter.type", Meta::Text("control")), "adapter.type");
    metadata(lora().key("adapter.lora.alpha", Meta::F32(f32::NAN)), "adapter.lora.alpha");
    metadata(lora().key("adapter.lora.alpha", Meta::Text("8")), "adapter.lora.alpha");
    metadata(crate::common::writer::llama(), "general.type");

    let tokens = || Meta::I32s(vec![1, 2]);
    let adapter = |writer: Writer, what: &str, reason: &str| {
        let (found, why) = super::refusal(load(&writer));
        assert!(found == what && why.contains(reason), "{found}: {why}");
    };
    adapter(
        lora().key("adapter.alora.invocation_tokens", tokens()),
        "adapter.alora.invocation_tokens",
        "activated LoRA",
    );
    adapter(lora().key("adapter.lora.task", Meta::U32(1)), "adapter.lora.task", "unknown");
    let (a, b) = ("blk.1.attn_v.weight.lora_a", "blk.1.attn_v.weight.lora_b");
    adapter(lora().without(b), a, "B factor");
    adapter(lora().without(a), b, "A factor");
    adapter(lora().without(a).without(b), "lora_A", "no LoRA tensors");
    adapter(lora().edit(b, |t| t.dims = vec![64, 2]), b, "[64, 2] is needed");
    adapter(lora().edit(a, |t| t.dims = vec![128]), a, "a matrix is needed");
    adapter(
        lora().counting("blk.1.attn_norm.weight", &[64]),
        "model.layers.1.input_layernorm.weight",
        "frozen",
    );
    adapter(
        lora().counting("blk.1.attn_norm.weight.lora_a", &[64, 2]),
        "blk.1.attn_norm.weight.lora_a",
        "no such module",
    );
    let name = "blk.2.attn_v.weight.lora_a";
    adapter(lora().counting(name, &[64, 2]), name, "2 layers");
    let nan = f32::NAN.to_le_bytes().repeat(128);
    adapter(lora().edit(a, |t| t.data = nan), a, "NaN");
}

#[test]
fn factors_may_be_quantised() {
    // Q8_0 has a scale, in f16, for 32 weights; rows of B are moved whole.
    let (dir, config) = (tempfile::tempdir().unwrap(), LoraConfig { r: 32, ..all() });
    let saved = adapter(config, &SHAPE, 21);
    let file = dir.path().join("lora.gguf");
    saved.save_gguf(&file, DType::F32, &SHAPE).unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let mut writer = Writer::new()
        .key("general.architecture", Meta::Text("llama"))
        .key("general.type", Meta::Text("adapter"))
        .key("adapter.type", Meta::Text("lora"))
        .key("adapter.lora.alpha", Meta::F32(5.0));
    for i in 0..gguf.tensors().len() {
        let raw = gguf.tensors().nth(i).unwrap();
        // The file's own order and name: written as an adapter, they are not those of a model.
        let (name, values) = (raw.name.to_string(), floats(&raw.bytes()));
        let dims: Vec<u64> = raw.shape.iter().rev().map(|&n| n as u64).collect();
        let (kind, data) = if i % 3 == 0 { (0, raw.bytes().to_vec()) } else { (8, q8_0(&values)) };
        writer = writer.tensor(&name, &dims, kind, data);
    }
    let loaded = load(&writer).unwrap();
    assert_eq!(loaded.modules.len(), saved.modules.len());
    for (a, b) in loaded.modules.iter().zip(&saved.modules) {
        assert_eq!((a.path, a.rank, a.scaling), (b.path, b.rank, b.scaling));
        let error = a.a.iter().chain(&a.b).zip(b.a.iter().chain(&b.b)).map(|(a, b)| (a - b).abs());
        // Half of 1/127 of at most 0.5.
        assert!(error.fold(0.0, f32::max) < 0.5 / 127.0 * 0.51, "{}", a.path);
    }
    let damaged = load(&writer.edit("blk.0.attn_q.weight.lora_b", |t| t.data[1] = 0x7e));
    let (what, why) = super::refusal(damaged);
    assert!(what == "blk.0.attn_q.weight.lora_b" && why.contains("NaN"), "{what}: {why}");
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// By the definition: the largest weight of 32 becomes 127.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let scale =
            half::f16::from_f32(block.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / 127.0);
        let round = |v: &f32| (v / scale.to_f32()).round().clamp(-127.0, 127.0) as i8 as u8;
        [&scale.to_le_bytes()[..], &block.iter().map(round).collect::<Vec<_>>()].concat()
    };
    values.chunks(32).flat_map(block).collect()
}

#[test]
fn llama_cpp_can_not_load_lora_on_tied_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let tied = BaseShape { tie_word_embeddings: true, ..SHAPE };
    for target in ["lm_head", "embed_tokens"] {
        let config =
            LoraConfig { target_modules: names(&["q_proj", target]), ..LoraConfig::default() };
        let saved = adapter(config, &tied, 12);
        let result = saved.save_gguf(dir.path().join("lora.gguf"), DType::F32, &tied);
        assert!(
            matches!(&result, Err(Error::Unsupported { what, .. }) if what.contains(target)),
            "{result:?}"
        );
        saved.save_peft(dir.path().join(target), DType::F32, &tied).unwrap();
        assert_eq!(Adapter::load(dir.path().join(target), &tied).unwrap().modules, saved.modules);
    }
    assert!(!dir.path().join("lora.gguf").exists());
}
