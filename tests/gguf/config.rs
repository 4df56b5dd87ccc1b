//! A model's sizes: read from a file, checked against its tensors, or refused.

use std::f64::consts::PI;

use epiphyte::Error;
use epiphyte::base::{Architecture, ModelConfig, RopeScaling, Yarn};
use serde::Deserialize;

use super::open;
use crate::common::golden;
use crate::common::writer::{Meta, Writer, llama};

fn config(writer: &Writer) -> ModelConfig {
    ModelConfig::from_gguf(&open(writer)).unwrap()
}

#[test]
fn a_small_llama() {
    let config = config(&llama());
    let expected = ModelConfig {
        architecture: Architecture::Llama,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 32,
        vocab_size: 40,
        rms_norm_eps: 1e-5,
        rope_theta: 100_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 128,
        tie_word_embeddings: true,
        traits: epiphyte::base::Traits::default(),
    };
    assert_eq!(config, expected);
    config.check_tensors(&open(&llama())).unwrap();
    let weights: u64 = open(&llama()).tensors().map(|t| t.n_weights() as u64).sum();
    assert_eq!(config.n_params(), weights);
}

#[test]
fn a_head_of_its_own() {
    let gguf = open(&llama().counting("output.weight", &[64, 40]));
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    assert!(!config.tie_word_embeddings);
    config.check_tensors(&gguf).unwrap();
    assert_eq!(config.n_params(), gguf.tensors().map(|t| t.n_weights() as u64).sum::<u64>());
}

#[test]
fn head_width_by_key() {
    let writer = llama().key("llama.attention.key_length", Meta::U32(64));
    let error = config(&writer).check_tensors(&open(&writer)).unwrap_err().to_string();
    assert!(
        error.contains("q_proj.weight`: its shape is [64, 64], the metadata imply [128, 64]"),
        "{error}"
    );
}

/// A test a line: a file, the variant it must be refused with, and words of the message.
macro_rules! refused {
    ($($test:ident: $writer:expr => $variant:ident, $words:literal;)+) => {$(
        #[test]
        fn $test() {
            let gguf = open(&$writer);
            let error = ModelConfig::from_gguf(&gguf).and_then(|config| config.check_tensors(&gguf)).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::$variant { .. }), "{error:?}");
            assert!(message.contains($words), "{message}");
        }
    )+};
}

fn number(key: &str, value: u32) -> Writer {
    llama().key(&format!("llama.{key}"), Meta::U32(value))
}

fn real(key: &str, value: f32) -> Writer {
    llama().key(&format!("llama.{key}"), Meta::F32(value))
}

/// `YaRN`, of a context of 64 tokens before.
fn yarn(more: &[(&str, f32)]) -> Writer {
    let writer = llama()
        .key("llama.rope.scaling.type", Meta::Text("yarn"))
        .key("llama.rope.scaling.original_context_length", Meta::U32(64));
    more.iter().fold(writer, |writer, (key, value)| {
        writer.key(&format!("llama.rope.scaling.{key}"), Meta::F32(*value))
    })
}

fn tokens(n: usize) -> Writer {
    llama().key("tokenizer.ggml.tokens", Meta::Texts(vec![String::new(); n]))
}

fn factors(values: &[f32]) -> Writer {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    llama().tensor("rope_freqs.weight", &[values.len() as u64], 0, data)
}

refused! {
    architecture_missing: llama().without("general.architecture") => InvalidMetadata, "general.architecture`: missing";
    architecture_other: llama().key("general.architecture", Meta::Text("mamba")) => Unsupported, "architecture `mamba`";
    adapter: llama().key("general.type", Meta::Text("adapter")) => Unsupported, "type `adapter`";
    experts: number("expert_count", 8) => Unsupported, "mixture of 8 experts";
    scaled_attention: real("attention.scale", 0.5) => Unsupported, "`llama.attention.scale` = 0.5";
    scaled_attention_nan: real("attention.scale", f32::NAN) => Unsupported, "`llama.attention.scale` = NaN";
    output_scaled: real("attention.output_scale", 2.0) => Unsupported, "`llama.attention.output_scale` = 2";
    embedding_scaled: real("embedding_scale", 12.0) => Unsupported, "`llama.embedding_scale` = 12";
    residual_scaled: real("residual_scale", 0.22) => Unsupported, "`llama.residual_scale` = 0.22";
    logits_scaled: real("logit_scale", 8.0) => Unsupported, "`llama.logit_scale` = 8";
    logits_capped: real("attn_logit_softcapping", 50.0) => Unsupported, "`llama.attn_logit_softcapping` = 50";
    clamped: real("attention.clamp_kqv", 8.0) => Unsupported, "clamp_kqv` = 8";
    magnitude: real("rope.scaling.attn_factor", 1.2) => Unsupported, "attn_factor` = 1.2";
    low_frequencies: real("rope.scaling.low_freq_factor", 1.0) => Unsupported, "low_freq_factor` \
        = 1";
    sections: llama().key("llama.rope.dimension_sections", Meta::I32s(vec![8, 0, 8])) => Unsupported, "dimension_sections` = [3 x i32]";
    unknown_number: number("new_trick", 3) => Unsupported, "`llama.new_trick` = 3";
    unknown_switch: llama().key("llama.use_parallel_residual", Meta::Bool(true)) => Unsupported, "parallel_residual` = true";
    scale_of_another_type: llama().key("llama.attention.scale", Meta::Text("x")) => InvalidMetadata, "attention.scale`: a number";
    scaling_of_another_type: llama().key("llama.rope.scaling.factor", Meta::Bool(true)) => InvalidMetadata, "factor`: a number";
    scaling_nan: real("rope.scaling.factor", f32::NAN) => InvalidMetadata, "NaN is not a number \
        above 0";
    not_causal: llama().key("llama.attention.causal", Meta::Bool(false)) => Unsupported, "attention.causal";
    window_of_another_type: real("attention.sliding_window", 0.5) => InvalidMetadata, "sliding_window`";
    window_pattern_zero: number("attention.sliding_window", 64).key("llama.attention.sliding_window_pattern", Meta::U32(0)) => InvalidMetadata, "pattern`: 0 is not";
    hidden_missing: llama().without("llama.embedding_length") => InvalidMetadata, "embedding_length`: missing";
    hidden_zero: number("embedding_length", 0) => InvalidMetadata, "0 is not between 1";
    hidden_huge: number("embedding_length", u32::MAX) => InvalidMetadata, "4294967295 is not \
        between 1";
    hidden_odd: number("embedding_length", 66) => InvalidMetadata, "embedding_length`: 66 is not \
        a multiple of 32";
    inner_odd: number("feed_forward_length", 97) => InvalidMetadata, "feed_forward_length`: 97 is \
        not a multiple of 32";
    inner_per_layer: llama().key("llama.feed_forward_length", Meta::I32s(vec![96])) => InvalidMetadata, "found [1 x i32]";
    layers_zero: number("block_count", 0) => InvalidMetadata, "block_count`: 0 is not";
    layers_huge: number("block_count", 1 << 20) => InvalidMetadata, "block_count`: 1048576 is not";
    layers_more_than_there: number("block_count", 2) => MissingTensor, "model.layers.1.input_layernorm.weight";
    groups_uneven: number("attention.head_count_kv", 4) => InvalidMetadata, "head_count_kv`: 4 \
        does not divide 2";
    head_too_narrow: number("attention.key_length", 16) => InvalidMetadata, "head width 16";
    head_too_wide: number("attention.key_length", 288) => InvalidMetadata, "288 is not between 1 \
        and 256";
    head_uneven: number("attention.key_length", 48) => InvalidMetadata, "head width 48";
    value_width: number("attention.value_length", 64) => InvalidMetadata, "value_length`: 64, but \
        heads are 32 wide";
    partial_rotation: number("rope.dimension_count", 16) => InvalidMetadata, "dimension_count`: \
        16, but heads are 32";
    eps_zero: real("attention.layer_norm_rms_epsilon", 0.0) => InvalidMetadata, "0 is not a number above 0";
    theta_nan: real("rope.freq_base", f32::NAN) => InvalidMetadata, "NaN is not a number above 0";
    context_zero: number("context_length", 0) => InvalidMetadata, "context_length`: 0 is not";
    scaling_other: llama().key("llama.rope.scaling.type", Meta::Text("other")) => Unsupported, "rope scaling `other`";
    yarn_without_factor: yarn(&[]) => InvalidMetadata, "factor`: missing";
    yarn_of_another_kind: yarn(&[("factor", 2.0), ("yarn_ext_factor", 0.5)]) => Unsupported, "yarn_ext_factor` = 0.5";
    scaling_factor_missing: llama().key("llama.rope.scaling.type", Meta::Text("linear")) => InvalidMetadata, "factor`: missing";
    scaling_factor_negative: real("rope.scale_linear", -1.0) => InvalidMetadata, "-1 is not a number above 0";
    scaling_twice: factors(&[1.0; 16]).key("llama.rope.scale_linear", Meta::F32(2.0)) => Unsupported, "together with";
    factors_too_few: factors(&[1.0; 15]) => InvalidTensor, "F32 [16] is needed, found F32 [15]";
    factors_zero: factors(&[0.0; 16]) => InvalidTensor, "not all numbers above 0";
    embedding_missing: llama().without("token_embd.weight") => MissingTensor, "model.embed_tokens.weight";
    tokens_more_than_rows: tokens(41) => InvalidTensor, "40 rows, but the tokenizer has 41 tokens";
    vocab_other: number("vocab_size", 39) => InvalidTensor, "40 rows, but `llama.vocab_size` is 39";
    tensor_missing: llama().without("blk.0.ffn_up.weight") => MissingTensor, "model.layers.0.mlp.up_proj.weight";
    tensor_misshapen: llama().edit("blk.0.ffn_up.weight", |t| t.dims = vec![96, 64]) => InvalidTensor, "up_proj.weight`: its shape is [64, 96], the metadata imply [96, 64]";
    bias: llama().counting("blk.0.attn_v.bias", &[32]) => Unsupported, "self_attn.v_proj.bias` in \
        a llama model";
    tensor_unknown: llama().counting("blk.0.attn_sinks.weight", &[2]) => Unsupported, "blk.0.attn_sinks.weight";
}

#[test]
fn a_window_is_in_every_layer_or_in_all_but_every_so_many() {
    let windows = |writer: &Writer| {
        let config = ModelConfig { num_hidden_layers: 6, ..config(writer) };
        (0..6).map(|layer| config.attention(layer).window).collect::<Vec<_>>()
    };
    let writer = number("attention.sliding_window", 64);
    assert_eq!(windows(&writer), [Some(64); 6]);
    let writer = writer.key("llama.attention.sliding_window_pattern", Meta::U32(3));
    let [some, none] = [Some(64), None];
    assert_eq!(windows(&writer), [some, some, none, some, some, none]);
    assert_eq!(windows(&number("attention.sliding_window", 128)), [None; 6]);
    assert_eq!(windows(&number("attention.sliding_window", u32::MAX)), [None; 6]);
}

#[test]
fn fewer_tokens_than_rows_and_harmless_extras_are_fine() {
    let writer = tokens(39)
        .counting("blk.0.attn_rot_embd.weight", &[16])
        .key("llama.expert_count", Meta::U32(0));
    let writer = writer.key("llama.attention.sliding_window", Meta::U32(128));
    config(&writer).check_tensors(&open(&writer)).unwrap();
}

#[test]
fn keys_that_are_off_or_cannot_matter_are_fine() {
    let writer = [
        "embedding_scale",
        "residual_scale",
        "logit_scale",
        "attention.output_scale",
        "rope.scaling.attn_factor",
    ]
    .iter()
    .fold(llama(), |writer, key| writer.key(&format!("llama.{key}"), Meta::F32(1.0)))
    .key("llama.final_logit_softcapping", Meta::F32(0.0))
    .key("llama.attention.scale", Meta::F32(32_f32.sqrt().recip()))
    .key("llama.expert_used_count", Meta::U32(0))
    .key("llama.leading_dense_block_count", Meta::U32(0))
    .key("llama.rope.scaling.original_context_length", Meta::U32(8192))
    .key("llama.rope.scaling.finetuned", Meta::Bool(true))
    .key("llama.rope.scaling.yarn_beta_fast", Meta::F32(32.0))
    .key("llama.tensor_data_layout", Meta::Text("Meta AI original pth"))
    .key("llama.note", Meta::Text("mine"))
    .key("llama.rope.dimension_sections", Meta::I32s(vec![0; 4]))
    .key("general.type", Meta::U32(7))
    .key("general.name", Meta::I32s(vec![1]))
    .key("general.something", Meta::F32(7.0))
    .key("quantize.imatrix.entries_count", Meta::Text("many"))
    .key("mistral.logit_scale", Meta::F32(8.0));
    assert_eq!(config(&writer), config(&llama()));
}

#[test]
fn a_factor_without_a_type_is_linear_as_in_llama_cpp() {
    let linear = |writer: Writer| config(&writer).rope_scaling;
    let factor = |factor| RopeScaling::Linear { factor };
    assert_eq!(linear(real("rope.scaling.factor", 4.0)), factor(4.0));
    assert_eq!(linear(real("rope.scale_linear", 2.0)), factor(2.0));
    let both = real("rope.scaling.factor", 4.0).key("llama.rope.scale_linear", Meta::F32(2.0));
    assert_eq!(linear(both.clone()), factor(4.0));
    assert_eq!(linear(both.key("llama.rope.scaling.type", Meta::Text("none"))), RopeScaling::None);
    let old = real("rope.scale_linear", 2.0).key("llama.rope.scaling.type", Meta::Text("linear"));
    assert_eq!(linear(old), factor(2.0));
    assert_eq!(linear(real("rope.scaling.factor", 1.0)), RopeScaling::None);
    assert_eq!(linear(real("rope.scaling.factor", 0.0)), RopeScaling::None);
}

fn close(a: &[f32], b: impl Iterator<Item = f64>) {
    let b: Vec<_> = b.collect();
    assert_eq!(a.len(), b.len());
    for (i, (&a, &b)) in a.iter().zip(&b).enumerate() {
        assert!((f64::from(a) - b).abs() <= b * f64::from(f32::EPSILON), "{i}: {a} and {b}");
    }
}

/// Frequencies by repeated multiplication.
fn plain(n: usize, theta: f64) -> impl Iterator<Item = f64> {
    let ratio = theta.powf(-1.0 / n as f64);
    std::iter::successors(Some(1.0), move |f| Some(f * ratio)).take(n)
}

#[test]
fn rotary_frequencies() {
    close(&config(&llama()).rope_frequencies(0), plain(16, 1e5));
    let linear = llama().key("llama.rope.scaling.type", Meta::Text("linear"));
    let linear = config(&linear.key("llama.rope.scaling.factor", Meta::F32(4.0)));
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    close(&linear.rope_frequencies(0), plain(16, 1e5).map(|f| f / 4.0));
    let divisors: Vec<f32> = (1..=16_u8).map(f32::from).collect();
    let explicit = config(&factors(&divisors));
    close(
        &explicit.rope_frequencies(0),
        plain(16, 1e5).zip(&divisors).map(|(f, &d)| f / f64::from(d)),
    );
}

/// Llama 3.2's published values, against the paper's cases by wavelength.
#[test]
fn rotary_frequencies_of_llama_3() {
    let (factor, low, high, original) = (32.0, 1.0, 4.0, 8192.0);
    let scaled = |f: f64| match 2.0 * PI / f {
        short if short < original / high => f,
        long if long > original / low => f / factor,
        wavelength => {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    let rope_scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let config = ModelConfig { head_dim: 64, rope_theta: 5e5, rope_scaling, ..config(&llama()) };
    close(&config.rope_frequencies(0), plain(32, 5e5).map(scaled));
}

#[derive(Deserialize)]
struct Golden {
    name: String,
    config: serde_json::Value,
    frequencies: Vec<f64>,
    scale: f32,
    /// Length of the text, where it matters.
    #[serde(default)]
    positions: usize,
}

/// Of `tests/golden/rope.py`, which computes in f32: a power, a few products and sums.
#[test]
fn scaled_frequencies_are_those_of_transformers() {
    let bytes = std::fs::read(golden("rope.json")).unwrap();
    let cases: Vec<Golden> = serde_json::from_slice(&bytes).unwrap();
    for Golden { name, config, frequencies, scale, positions } in cases {
        let config = ModelConfig::from_json(&config.to_string()).unwrap();
        let rotaries = config.rotaries(positions);
        let [rotary] = &rotaries[..] else { panic!("{name}: {}", rotaries.len()) };
        assert!((rotary.scale - scale).abs() <= f32::EPSILON, "{name}: {}", rotary.scale);
        assert_eq!(config.rotary_dim(), 2 * frequencies.len(), "{name}");
        assert_eq!(rotary.frequencies.len(), config.head_dim / 2, "{name}");
        assert!(rotary.frequencies[frequencies.len()..].iter().all(|&f| f == 0.0), "{name}");
        for (i, (&ours, theirs)) in rotary.frequencies.iter().zip(frequencies).enumerate() {
            let off = (f64::from(ours) / theirs - 1.0).abs();
            assert!(off <= 8.0 * f64::from(f32::EPSILON), "{name}, {i}: {ours}, {theirs}: {off}");
        }
    }
}

fn filled(writer: Writer, name: &str, n: usize, value: f32) -> Writer {
    let data = std::iter::repeat_n(value.to_le_bytes(), n).flatten().collect();
    writer.tensor(name, &[n as u64], 0, data)
}

#[test]
fn factors_for_long_contexts_come_in_pairs_and_alone() {
    let short = |writer| filled(writer, "rope_factors_short.weight", 16, 1.5);
    let long = |writer| filled(writer, "rope_factors_long.weight", 16, 4.0);
    let original = |n| llama().key("llama.rope.scaling.original_context_length", Meta::U32(n));
    let config = config(&long(short(original(32))));
    // 128 positions are four times as many.
    let RopeScaling::Long(found) = &config.rope_scaling else { panic!("{config:?}") };
    assert_eq!((found.short[3], found.long[15]), (1.5, 4.0));
    assert_eq!(found.attention_factor, 1.4_f64.sqrt() as f32);
    assert_eq!(config.usual_context(), 32);
    close(&config.rope_frequencies(32), plain(16, 1e5).map(|f| f / 1.5));
    close(&config.rope_frequencies(33), plain(16, 1e5).map(|f| f / 4.0));
    let refused = |writer: Writer, says: &str| {
        let error = ModelConfig::from_gguf(&open(&writer)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let kind = |kind| original(32).key("llama.rope.scaling.type", Meta::Text(kind));
    refused(short(original(32)), "rope_factors_short.weight");
    refused(kind("longrope"), "rope_factors_short.weight");
    refused(long(short(kind("yarn").key("llama.rope.scaling.factor", Meta::F32(2.0)))), "short");
    refused(long(short(real("rope.scaling.factor", 4.0))), "rope_factors_short.weight");
    refused(long(short(original(1))), "original_context_length");
    for (n, value) in [(8, 1.0), (16, 0.0)] {
        let other = filled(original(32), "rope_factors_short.weight", n, value);
        refused(long(other), "rope_factors_short.weight");
    }
    refused(real("rope.scaling.attn_factor", 1.5), "rope.scaling.attn_factor` = 1.5");
}

#[test]
fn yarn_is_the_same_in_both_kinds_of_file() {
    let said = |keys: &[(&str, f32)]| config(&yarn(keys)).rope_scaling;
    let usual = Yarn {
        factor: 4.0,
        original_max_position_embeddings: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.138_629_4,
    };
    assert_eq!(said(&[("factor", 4.0)]), RopeScaling::Yarn(usual));
    let turns = [("factor", 4.0), ("yarn_beta_fast", 24.0), ("yarn_beta_slow", 2.0)];
    let expected = Yarn { beta_fast: 24.0, beta_slow: 2.0, ..usual };
    assert_eq!(said(&turns), RopeScaling::Yarn(expected));
    let json = |more: &str| {
        let text = format!(
            r#"{{"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 256,
            "rope_scaling": {{"type": "yarn", "factor": 4.0{more}}}}}"#
        );
        ModelConfig::from_json(&text)
    };
    let original = r#", "original_max_position_embeddings": 64"#;
    assert_eq!(json(original).unwrap().rope_scaling, RopeScaling::Yarn(usual));
    for (more, says) in [
        ("", "original_max_position_embeddings"),
        (r#", "original_max_position_embeddings": 64, "truncate": false"#, "truncate"),
        (r#", "original_max_position_embeddings": 64, "mscale": 0.7"#, "mscale"),
        (r#", "original_max_position_embeddings": 64, "beta_fast": -1"#, "beta_fast"),
    ] {
        let error = json(more).unwrap_err().to_string();
        assert!(error.contains(says), "{more}: {error}");
    }
}
