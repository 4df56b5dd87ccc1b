//! The name of a base model: what makes it compute what it computes, however its file spells it.
//!
//! The order of tensors and keys in the file, its shards, keys that change nothing and unused
//! tensors leave it alone; sizes, vocabulary, template, and type and bytes of the weights do not.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{LongRope, ModelConfig, RopeScaling, SlidingWindow, Traits, Yarn};
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::gguf::Gguf;
use crate::identity::{self, Hash, Identity, bits, sha256};
use crate::parallel;
use crate::tokenizer::TokenizerSpec;

/// Kind and version of a [`fingerprint`].
const TAG: &str = "epiphyte.base.1";
/// Kind and version of a [`full_hash`].
const FULL_TAG: &str = "epiphyte.base-full.1";
/// Hexadecimal digits of a fingerprint without a tag, as it was before there were versions.
const UNTAGGED: usize = 32;

/// Most bytes that are sampled of a row.
const SAMPLE: usize = 1024;
/// Bytes hashed between two reports of progress, about.
const PIECE: usize = 4 << 20;

/// Names a base by sizes, vocabulary, chat template, and the weights' types, shapes and samples.
///
/// Sampled, so that it costs milliseconds: it tells models apart, it does not prove that none of
/// the weights changed.
///
/// Errors: [`Error::MissingTensor`] for one that [`ModelConfig::check_tensors`] would miss.
pub fn fingerprint(gguf: &Gguf, config: &ModelConfig, tokenizer: &TokenizerSpec) -> Result<String> {
    let mut identity = Identity::new(TAG);
    describe(&mut identity, config, tokenizer);
    for view in tensors(gguf, config)? {
        let last = view.n_rows() - 1;
        let rows = [0, view.n_rows() / 2, last].map(|row| view.rows(row, 1));
        add_weights(&mut identity, &view, sha256(rows.iter().map(|row| sample(row))));
    }
    Ok(identity.name())
}

/// As [`fingerprint`] over every byte of the weights, which it reads: equal for equal models only,
/// and never equal to a fingerprint. `progress` gets bytes done, from several threads.
///
/// Errors: as [`fingerprint`].
pub fn full_hash(
    gguf: &Gguf,
    config: &ModelConfig,
    tokenizer: &TokenizerSpec,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<String> {
    let mut identity = Identity::new(FULL_TAG);
    describe(&mut identity, config, tokenizer);
    let (views, done) = (tensors(gguf, config)?, AtomicU64::new(0));
    let hash = |view: &TensorView<'_>| {
        let (rows, at_once) = (view.n_rows(), (PIECE / view.row_bytes()).max(1));
        let pieces = (0..rows).step_by(at_once).map(|row| {
            let bytes = view.rows(row, at_once.min(rows - row));
            let n = bytes.len() as u64;
            progress(done.fetch_add(n, Ordering::Relaxed) + n);
            bytes
        });
        sha256(pieces)
    };
    let hashes = parallel::map_reporting(&views, hash, &mut |_| ());
    views.iter().zip(hashes).for_each(|(view, hash)| add_weights(&mut identity, view, hash));
    Ok(identity.name())
}

/// That something made for base `made_for` is for base `own`, both named by [`fingerprint`].
///
/// Errors: [`Error::BaseMismatch`]; [`Error::FingerprintVersion`] when it can't be told.
pub(crate) fn check(made_for: &str, own: &str) -> Result<()> {
    if made_for == own {
        return Ok(());
    }
    let (made_for, own) = (made_for.to_string(), own.to_string());
    Err(if is_of_another_version(&made_for) {
        Error::FingerprintVersion { found: made_for, own }
    } else {
        Error::BaseMismatch { expected: made_for, got: own }
    })
}

/// Whether `fingerprint` is one, but not of this version.
pub fn is_of_another_version(fingerprint: &str) -> bool {
    let untagged =
        |text: &str| text.len() == UNTAGGED && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match fingerprint.split_once(':') {
        Some((tag, _)) => tag != TAG && identity::version_of(tag, TAG).is_some(),
        None => untagged(fingerprint),
    }
}

/// The tensors that the model computes with.
fn tensors<'a>(gguf: &'a Gguf, config: &ModelConfig) -> Result<Vec<TensorView<'a>>> {
    config.tensors().iter().map(|(name, _)| gguf.require(name)).collect()
}

fn add_weights(identity: &mut Identity, view: &TensorView<'_>, hash: Hash) {
    let value = identity::tensor(view.dtype.name(), view.shape, hash);
    identity.add(format!("tensor.{}", view.name), value);
}

fn sample(row: &[u8]) -> &[u8] {
    &row[..row.len().min(SAMPLE)]
}

/// Everything but the weights.
fn describe(identity: &mut Identity, config: &ModelConfig, tokenizer: &TokenizerSpec) {
    add_config(identity, config);
    add_rope_scaling(identity, &config.rope_scaling);
    add_tokenizer(identity, tokenizer);
    let template = tokenizer.chat_template.as_deref();
    identity.add_unless("", "chat_template", template.unwrap_or_default());
}

/// The keys of Hugging Face's `config.json` that decide a result; how long a context may be does
/// not.
fn add_config(identity: &mut Identity, config: &ModelConfig) {
    // Named one by one: a new field has to be put here, or left out for a reason.
    let ModelConfig {
        architecture,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size,
        rms_norm_eps,
        rope_theta,
        rope_scaling: _,
        max_position_embeddings: _,
        tie_word_embeddings,
        traits,
    } = config;
    identity.add("config.model_type", architecture.family().model_types[0]);
    for (key, size) in [
        ("config.hidden_size", hidden_size),
        ("config.intermediate_size", intermediate_size),
        ("config.num_hidden_layers", num_hidden_layers),
        ("config.num_attention_heads", num_attention_heads),
        ("config.num_key_value_heads", num_key_value_heads),
        ("config.head_dim", head_dim),
        ("config.vocab_size", vocab_size),
    ] {
        identity.add(key, size);
    }
    identity.add("config.rms_norm_eps", bits(*rms_norm_eps));
    identity.add("config.rope_theta", bits(*rope_theta));
    identity.add_unless(false, "config.tie_word_embeddings", *tie_word_embeddings);
    add_traits(identity, traits);
}

/// Those that are not a plain llama's.
fn add_traits(identity: &mut Identity, traits: &Traits) {
    let Traits {
        attention_scale,
        embedding_scale,
        residual_scale,
        logit_scale,
        sliding_window,
        no_rope_every,
        rotary_dim,
    } = traits;
    identity.add_some("config.attention_scale", attention_scale.map(bits));
    for (key, scale) in [
        ("config.embedding_scale", embedding_scale),
        ("config.residual_scale", residual_scale),
        ("config.logit_scale", logit_scale),
    ] {
        identity.add_some(key, (*scale != 1.0).then(|| bits(*scale)));
    }
    if let Some(SlidingWindow { tokens, full_every, rope_theta }) = sliding_window {
        identity.add("config.sliding_window", tokens);
        identity.add_some("config.sliding_window_pattern", *full_every);
        identity.add_some("config.rope_local_base_freq", rope_theta.map(bits));
    }
    identity.add_some("config.no_rope_layer_interval", *no_rope_every);
    identity.add_some("config.rotary_dim", *rotary_dim);
}

fn add_rope_scaling(identity: &mut Identity, scaling: &RopeScaling) {
    let mut add = |key: &str, value: String| {
        identity.add(format!("config.rope_scaling.{key}"), value);
    };
    match scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            add("rope_type", "linear".into());
            add("factor", bits(*factor));
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            add("rope_type", "llama3".into());
            add("factor", bits(*factor));
            add("low_freq_factor", bits(*low_freq_factor));
            add("high_freq_factor", bits(*high_freq_factor));
            add("original_max_position_embeddings", original_max_position_embeddings.to_string());
        }
        RopeScaling::Yarn(yarn) => {
            let Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
            } = yarn;
            add("rope_type", "yarn".into());
            add("factor", bits(*factor));
            add("original_max_position_embeddings", original_max_position_embeddings.to_string());
            add("beta_fast", bits(*beta_fast));
            add("beta_slow", bits(*beta_slow));
            add("attention_factor", bits(*attention_factor));
        }
        RopeScaling::Long(long) => {
            let LongRope { short, long, original_max_position_embeddings, attention_factor } = long;
            add("rope_type", "longrope".into());
            for (key, factors) in [("short_factor", short), ("long_factor", long)] {
                let hash = identity::hash_floats(factors);
                add(key, identity::tensor("F32", &[factors.len()], hash));
            }
            add("original_max_position_embeddings", original_max_position_embeddings.to_string());
            add("attention_factor", bits(*attention_factor));
        }
        RopeScaling::Factors(factors) if factors.iter().all(|factor| *factor == 1.0) => {}
        RopeScaling::Factors(factors) => {
            let hash = identity::hash_floats(factors);
            add("rope_freqs", identity::tensor("F32", &[factors.len()], hash));
        }
    }
}

/// What decides which ids a text becomes, under the names of `tokenizer.ggml.…`.
fn add_tokenizer(identity: &mut Identity, spec: &TokenizerSpec) {
    let TokenizerSpec {
        model,
        pre,
        tokens,
        merges,
        scores,
        token_types,
        bos,
        eos,
        pad,
        eot,
        eom,
        unk,
        add_bos: _,
        add_eos: _,
        add_space_prefix: _,
        chat_template: _,
    } = spec;
    identity.add("tokenizer.model", model);
    identity.add_unless("default", "tokenizer.pre", pre.as_deref().unwrap_or("default"));
    identity.add("tokenizer.tokens", identity::list(tokens));
    if !merges.is_empty() {
        identity.add("tokenizer.merges", identity::list(merges));
    }
    if let Some(scores) = scores {
        identity.add("tokenizer.scores", identity::hex(identity::hash_floats(scores)));
    }
    if let Some(types) = token_types {
        let hash = sha256(types.iter().map(|kind| kind.to_le_bytes()));
        identity.add("tokenizer.token_type", identity::hex(hash));
    }
    // Padding says something only where the tokens have no types.
    let pad = pad.filter(|&id| token_types.is_none() && (id as usize) < tokens.len());
    for (key, id) in [
        ("tokenizer.bos_token_id", *bos),
        ("tokenizer.eos_token_id", *eos),
        ("tokenizer.padding_token_id", pad),
        ("tokenizer.eot_token_id", *eot),
        ("tokenizer.eom_token_id", *eom),
        ("tokenizer.unknown_token_id", *unk),
    ] {
        identity.add_some(key, id);
    }
    identity.add_unless(false, "tokenizer.add_bos_token", spec.adds_bos());
    identity.add_unless(false, "tokenizer.add_eos_token", spec.adds_eos());
    identity.add_unless(false, "tokenizer.add_space_prefix", spec.adds_space_prefix());
}
