//! Files, options and devices that an engine is not opened with: one typed error each.

use std::path::Path;

use epiphyte::{Engine, EngineOptions, Error, GpuOptions};

use super::{SHARED, alone, greedy, open, prompt};
use crate::common::odd_llama::odd_llama;
use crate::common::writer::{Meta, Writer};
use crate::common::{Random, ends, golden};

/// What opening `path` says.
fn refusal(path: &Path) -> Option<Error> {
    ends("a refusal", || Engine::open(path, EngineOptions::default()).err())
}

fn refusal_of(bytes: &[u8]) -> Option<Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.gguf");
    std::fs::write(&path, bytes).unwrap();
    refusal(&path)
}

fn llama() -> Writer {
    odd_llama(&mut Random::new(1))
}

/// `refused!(bytes => Variant, "part of the message")`
macro_rules! refused {
    ($bytes:expr => $variant:ident, $part:expr) => {
        match refusal_of(&$bytes) {
            Some(error @ Error::$variant { .. }) => {
                let message = error.to_string();
                assert!(message.contains($part), "{message}");
            }
            other => panic!("{}: {:?}", $part, other),
        }
    };
}

#[test]
fn hostile_models_are_refused_by_name() {
    assert!(refusal_of(&llama().bytes()).is_none(), "it is whole before it is damaged");
    refused!([0_u8; 0] => InvalidFile, "hostile.gguf");
    refused!(*b"not a model" => InvalidFile, "hostile.gguf");
    refused!(Writer { n_tensors: Some(u64::MAX), ..llama() }.bytes() => InvalidFile, "hostile.gguf");
    refused!(llama().key("general.architecture", Meta::Text("mamba")).bytes() => Unsupported, "mamba");
    refused!(llama().without("blk.1.ffn_up.weight").bytes() => MissingTensor, "model.layers.1.mlp.up_proj.weight");
    refused!(llama().key("llama.block_count", Meta::U32(1000)).bytes() => MissingTensor, "model.layers.2.");
    refused!(llama().key("llama.block_count", Meta::U32(u32::MAX)).bytes() => InvalidMetadata, "llama.block_count");
    refused!(llama().edit("blk.0.ffn_down.weight", |t| t.dims.swap(0, 1)).bytes() => InvalidTensor, "down_proj");
    refused!(llama().edit("blk.0.ffn_down.weight", |t| t.ggml_type = 77).bytes() => Unsupported, "77");
    refused!(llama().edit("token_embd.weight", |t| t.offset = Some(1 << 60)).bytes() => InvalidTensor, "token_embd");
    refused!(llama().counting("blk.0.attn_q.bias", &[192]).bytes() => Unsupported, "q_proj.bias");
    let many = (0..5000).map(|i| format!("t{i}")).collect();
    refused!(llama().key("tokenizer.ggml.tokens", Meta::Texts(many)).bytes() => InvalidTensor, "5000 tokens");
    refused!(llama().key("tokenizer.ggml.model", Meta::Text("unheard-of")).bytes() => Unsupported, "unheard-of");
    refused!(llama().key("tokenizer.ggml.bos_token_id", Meta::U32(1 << 30)).bytes() => InvalidMetadata, "bos_token_id");
    let merges = Meta::Texts(vec!["no such".into()]);
    refused!(llama().key("tokenizer.ggml.merges", merges).bytes() => InvalidMetadata, "tokenizer.ggml.merges");
    // Chats alone need a template.
    for template in [Meta::Text("{% if"), Meta::U32(3)] {
        assert!(refusal_of(&llama().key("tokenizer.chat_template", template).bytes()).is_none());
    }
    refused!(llama().key("llama.rope.freq_base", Meta::F32(f32::NAN)).bytes() => InvalidMetadata, "freq_base");
    let whole = llama().bytes();
    for cut in (0..whole.len()).step_by(whole.len() / 40) {
        assert!(refusal_of(&whole[..cut]).is_some(), "{cut} of {} bytes", whole.len());
    }
    assert!(matches!(refusal(Path::new("/no/such/model.gguf")), Some(Error::Io { .. })));
    assert!(matches!(refusal(&std::env::temp_dir()), Some(Error::InvalidFile { .. })));
}

#[test]
fn open_sessions_are_unharmed_by_refusals() {
    let mut session = super::session(&SHARED, &prompt(1, 20));
    let mut generation = session.generate(greedy(10)).unwrap();
    let first = generation.next().unwrap().unwrap().id;
    assert!(refusal_of(&llama().without("output_norm.weight").bytes()).is_some());
    let rest = generation.map(|token| token.unwrap().id);
    assert_eq!(
        [first].into_iter().chain(rest).collect::<Vec<_>>(),
        alone(&prompt(1, 20), greedy(10)).ids
    );
}

#[test]
fn options_out_of_range_are_refused() {
    for context in [0, 257, usize::MAX] {
        let options = EngineOptions { context: Some(context), ..EngineOptions::default() };
        let refusal = Engine::open(golden("tiny_llama.gguf"), options).err();
        assert!(
            matches!(&refusal, Some(Error::InvalidArgument { name: "context", .. })),
            "{refusal:?}"
        );
    }
    for context in [1, 33, 256] {
        assert_eq!(
            open(EngineOptions { context: Some(context), ..EngineOptions::default() }).context(),
            context
        );
    }
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_a_list() {
    let gpu = GpuOptions { name: Some("Voodoo 2".into()), ..GpuOptions::default() };
    let refusal =
        Engine::open(golden("tiny_llama.gguf"), EngineOptions { gpu, ..EngineOptions::default() })
            .err();
    let Some(Error::NoGpu(message)) = refusal else { panic!("{refusal:?}") };
    assert!(message.contains("voodoo 2") || message.contains("Voodoo 2"), "{message}");
    assert!(message.contains("EPIPHYTE_GPU"), "{message}");
    assert!(message.contains(&SHARED.gpu().info().name), "it lists what there is: {message}");
}
