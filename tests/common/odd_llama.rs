//! A small model of random weights whose sizes are no powers of two.

use half::f16;

use super::Random;
use super::writer::{Meta, Writer};

/// A llama of odd sizes in random blocks: 3 heads of 64 on one, 41 tokens.
pub(crate) fn odd_llama(random: &mut Random) -> Writer {
    sized_llama(random, 96, 160)
}

/// As [`odd_llama`], of `hidden` and `inner` columns.
pub(crate) fn sized_llama(random: &mut Random, hidden: u64, inner: u64) -> Writer {
    let (heads, head_dim, vocab) = (3, 64, 41);
    let mut writer = Writer::new();
    for (key, n) in [
        ("embedding_length", hidden),
        ("feed_forward_length", inner),
        ("block_count", 2),
        ("attention.head_count", heads),
        ("attention.head_count_kv", 1),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("context_length", 192),
    ] {
        writer = writer.key(&format!("llama.{key}"), Meta::U32(n as u32));
    }
    writer = writer
        .key("general.architecture", Meta::Text("llama"))
        .key("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-6))
        .key("tokenizer.ggml.model", Meta::Text("gpt2"))
        .key("tokenizer.ggml.merges", Meta::Texts(vec![]))
        .key("tokenizer.ggml.tokens", Meta::Texts((0..vocab).map(|i| format!("t{i}")).collect()))
        .key("tokenizer.ggml.token_type", Meta::I32s(vec![1; vocab as usize]));
    let mut matrix = |writer: Writer, name: &str, dims: [u64; 2], kind: u32| {
        let size = (3.0 / dims[0] as f32).sqrt();
        let n = (dims[0] * dims[1]) as usize;
        writer.tensor(&format!("{name}.weight"), &dims, kind, random_weights(random, n, kind, size))
    };
    writer = matrix(writer, "token_embd", [hidden, vocab], F16);
    for i in 0..2 {
        for (name, dims, kind) in [
            ("attn_q", [hidden, heads * head_dim], Q4_0),
            ("attn_k", [hidden, head_dim], Q4_0),
            ("attn_v", [hidden, head_dim], [F32, Q8_0][i]),
            ("attn_output", [heads * head_dim, hidden], Q8_0),
            ("ffn_gate", [hidden, inner], Q4_0),
            ("ffn_up", [hidden, inner], [Q4_0, F16][i]),
            ("ffn_down", [inner, hidden], F32),
            ("attn_norm", [hidden, 0], F32),
            ("ffn_norm", [hidden, 0], F32),
        ] {
            writer = if dims[1] > 0 {
                matrix(writer, &format!("blk.{i}.{name}"), dims, kind)
            } else {
                norm(writer, &format!("blk.{i}.{name}"), hidden)
            };
        }
    }
    norm(writer, "output_norm", hidden)
}

/// GGML's numbers of the types.
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const Q8_0: u32 = 8;

fn norm(writer: Writer, name: &str, len: u64) -> Writer {
    let gain = (0..len).flat_map(|i| (0.5 + (i % 7) as f32 / 6.0).to_le_bytes()).collect();
    writer.tensor(&format!("{name}.weight"), &[len], F32, gain)
}

/// `n` weights about uniform in [-size, size), as the bytes of a GGML type.
fn random_weights(random: &mut Random, n: usize, kind: u32, size: f32) -> Vec<u8> {
    let mut block = |scale: f32, bytes: usize| {
        let mut block = f16::from_f32(scale).to_le_bytes().to_vec();
        block.extend((0..bytes).map(|_| random.below(256) as u8));
        block
    };
    match kind {
        F32 => (0..n).flat_map(|_| random.signed(size).to_le_bytes()).collect(),
        F16 => (0..n).flat_map(|_| f16::from_f32(random.signed(size)).to_le_bytes()).collect(),
        Q4_0 => (0..n / 32).flat_map(|_| block(size / 8.0, 16)).collect(),
        Q8_0 => (0..n / 32).flat_map(|_| block(size / 128.0, 32)).collect(),
        other => panic!("type {other} is not written here"),
    }
}
