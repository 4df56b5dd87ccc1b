//! Text that is pushed in pieces.

use std::sync::{Arc, LazyLock};

use epiphyte::format::gguf::Gguf;
use epiphyte::gpu::{Gpu, GpuOptions};
use epiphyte::tokenizer::EncodeOptions;
use epiphyte::{Engine, EngineOptions};
use proptest::prelude::*;

use super::{generate, greedy, prefill};
use crate::common::writer::{Meta, array, llama};

const PIECES: [&str; 13] =
    ["▁H", "el", "lo", "▁Hel", "▁Hello", "▁w", "or", "ld", "▁world", "H", "l", "▁", "o▁"];

/// A model of zeros with a `SentencePiece` vocabulary whose tokens join across any cut.
static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(|| {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(PIECES.map(String::from));
    let mut types = [&[2, 3, 3][..], &[6; 256]].concat();
    types.resize(tokens.len(), 1);
    let scores = (0..tokens.len()).flat_map(|id| (id as f32).to_le_bytes());
    let mut writer = llama()
        .key("tokenizer.ggml.model", Meta::Text("llama"))
        .key("tokenizer.ggml.scores", Meta::Raw(9, array(6, tokens.len(), scores)))
        .key("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .key("tokenizer.ggml.eos_token_id", Meta::U32(2))
        .edit("token_embd.weight", |t| t.dims[1] = tokens.len() as u64)
        .key("tokenizer.ggml.token_type", Meta::I32s(types))
        .key("tokenizer.ggml.tokens", Meta::Texts(tokens));
    for tensor in writer.tensors.iter_mut().filter(|t| t.dims.len() == 2) {
        // Q4_0: 18 bytes for 32 weights.
        tensor.ggml_type = 2;
        tensor.data = vec![0; tensor.dims.iter().product::<u64>() as usize / 32 * 18];
    }
    let gpu = Gpu::open(GpuOptions::default()).unwrap();
    let gguf = Gguf::from_bytes(writer.bytes()).unwrap();
    Engine::from_gguf(gpu, &gguf, &EngineOptions::default(), &mut |_| ()).unwrap()
});

fn encode(text: &str, options: EncodeOptions) -> Vec<u32> {
    ENGINE.base().tokenizer.encode(text, options).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_become_the_tokens_of_the_text_they_spell(pieces in prop::collection::vec("(Hel|lo|[Helo wrd€]){0,4}", 0..6)) {
        let mut session = ENGINE.session();
        for piece in &pieces {
            session.push_text(piece).unwrap();
        }
        let text = pieces.concat();
        let expected = if pieces.is_empty() { Vec::new() } else { encode(&text, EncodeOptions::default()) };
        prop_assert_eq!(session.tokens(), expected);
    }
}

#[test]
fn computed_tokens_change_too_and_their_keys_with_them() {
    let mut session = ENGINE.session();
    session.push_text("Hello Hel").unwrap();
    prefill(&mut session);
    let mut fork = session.fork();
    for session in [&mut session, &mut fork] {
        session.push_text("lo").unwrap();
        let whole = encode("Hello Hello", EncodeOptions::default());
        assert_eq!(session.tokens(), whole);
        session.truncate(1);
        session.push_text("Hello Hello").unwrap();
        assert_eq!(session.tokens(), whole, "after BOS alone a text begins");
        assert_eq!(generate(session, greedy(1)).ids.len(), 1);
    }
}

#[test]
fn tokens_from_elsewhere_stay_as_they_are() {
    let continued = EncodeOptions { continuation: true, ..EncodeOptions::default() };
    let mut session = ENGINE.session();
    session.push_text("Hel").unwrap();
    generate(&mut session, greedy(2));
    let mut ids = session.tokens().to_vec();
    session.push_text("lo").unwrap();
    // The model of zeros says token 0, which is a control token: the text after it is a new one.
    ids.extend(encode("lo", EncodeOptions { add_bos: Some(false), ..EncodeOptions::default() }));
    assert_eq!(session.tokens(), ids);
    session.push_tokens(&encode("Hel", continued)).unwrap();
    session.push_text("l").unwrap();
    session.push_text("o").unwrap();
    ids.extend(encode("Hel", continued));
    let boundary = ids.len();
    ids.extend(encode("lo", continued));
    assert_eq!(session.tokens(), ids, "nothing joins across the boundary, all after it does");
    // What was cut is no part of the text that goes on.
    session.truncate(boundary);
    session.push_text("lo").unwrap();
    assert_eq!(session.tokens(), ids);
    // A refusal changes nothing.
    assert!(session.push_text(&"€".repeat(128)).is_err());
    assert_eq!(session.tokens(), ids);
    session.push_text("").unwrap();
    assert_eq!(session.tokens(), ids);
}
