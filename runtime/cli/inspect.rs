//! `epiphyte inspect`: what a model file or an adapter holds, and what of it would be refused.
//! Needs no GPU.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::adapter::inspect as adapter;
use super::{ModelFile, output};
use epiphyte::FileKind;
use epiphyte::base::{ModelConfig, fingerprint};
use epiphyte::chat::ChatTemplate;
use epiphyte::error::{Error, Result};
use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::{Tokenizer, TokenizerSpec};

/// Show what a model file or an adapter holds
#[derive(Args)]
pub(super) struct InspectArgs {
    /// Model file (GGUF; of several shards the first), or LoRA adapter (PEFT folder, safetensors or
    /// GGUF)
    file: PathBuf,
    /// The model that an adapter is for [default: the one that `make model` fetches]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Hash every byte of the weights, too
    #[arg(long)]
    full_hash: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    file: PathBuf,
    gguf_version: u32,
    bytes: u64,
    name: Option<String>,
    architecture: Option<String>,
    /// Null when refused.
    shape: Option<Shape>,
    parameters: u64,
    types: Vec<TypeReport>,
    tokenizer: Option<TokenizerReport>,
    chat_template: &'static str,
    ignored_tensors: Vec<String>,
    /// What adapters and sessions name their base by: over samples of the weights. Null when
    /// refused.
    fingerprint: Option<String>,
    /// Over all of the weights; null unless asked for.
    full_hash: Option<String>,
    /// What of it can't be used, though the model can.
    warnings: Vec<String>,
    /// Why the file can't be run; empty when it can.
    refused: Vec<String>,
}

/// Sizes under their names in `config.json`.
#[derive(Serialize)]
struct Shape {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rope_theta: f32,
    rope_scaling: String,
    rms_norm_eps: f32,
    tie_word_embeddings: bool,
    /// Tokens that one sees in layers with a window.
    #[serde(skip_serializing_if = "Option::is_none")]
    sliding_window: Option<usize>,
}

/// Tensors of one element type.
#[derive(Serialize)]
struct TypeReport {
    dtype: &'static str,
    tensors: usize,
    weights: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct TokenizerReport {
    model: String,
    pre: Option<String>,
    tokens: usize,
    merges: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: Option<bool>,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let adapter = || {
        let model = ModelFile { model: args.model.clone() };
        adapter::run(&adapter::InspectArgs { path: args.file.clone(), model, json: args.json })
    };
    let kind = FileKind::of(&args.file);
    if args.file.is_dir() || matches!(kind, FileKind::Safetensors | FileKind::GgufAdapter) {
        return adapter();
    }
    let gguf = Gguf::open(&args.file)?;
    let report = inspect(&gguf, args.full_hash);
    if args.json { output::json(&report) } else { print(&report) }?;
    match report.refused.len() {
        0 => Ok(()),
        n => {
            let reason = format!("it can't be run: {n} reasons are in the report");
            Err(Error::InvalidFile { path: report.file, reason })
        }
    }
}

fn inspect(gguf: &Gguf, full: bool) -> Report {
    let mut refused = Vec::new();
    let config = keep(ModelConfig::from_gguf(gguf), &mut refused);
    if let Some(config) = &config {
        keep(config.check_tensors(gguf), &mut refused);
    }
    let spec = keep(TokenizerSpec::from_gguf(gguf), &mut refused);
    let described = config.as_ref().zip(spec.as_ref());
    // What keeps a file from having a name is refused above.
    let names = |name: fn(&Gguf, &ModelConfig, &TokenizerSpec) -> Result<String>| {
        described.and_then(|(config, spec)| name(gguf, config, spec).ok())
    };
    let tokenizer = spec.clone().map(|spec| {
        let report = TokenizerReport {
            model: spec.model.clone(),
            pre: spec.pre.clone(),
            tokens: spec.tokens.len(),
            merges: spec.merges.len(),
            bos: spec.bos,
            eos: spec.eos,
            add_bos: spec.add_bos,
        };
        keep(Tokenizer::from_spec(spec), &mut refused);
        report
    });
    let text = |key: &str| gguf.find::<&str>(key).ok().flatten().map(String::from);
    let mut warnings = Vec::new();
    Report {
        file: gguf.path().into(),
        gguf_version: gguf.version(),
        bytes: gguf.n_bytes(),
        name: text("general.name"),
        architecture: text("general.architecture"),
        shape: config.as_ref().map(shape),
        parameters: gguf.tensors().map(|tensor| tensor.n_weights() as u64).sum(),
        types: types(gguf),
        tokenizer,
        chat_template: check_template(gguf, &mut warnings),
        ignored_tensors: gguf.ignored().map(String::from).collect(),
        fingerprint: names(fingerprint::fingerprint),
        full_hash: full.then(|| names(hash)).flatten(),
        warnings,
        refused,
    }
}

/// The value, or one more reason to refuse the file.
fn keep<T>(result: Result<T>, refused: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| refused.push(error.to_string())).ok()
}

/// The full hash, with a progress bar.
fn hash(gguf: &Gguf, config: &ModelConfig, tokenizer: &TokenizerSpec) -> Result<String> {
    let all = gguf.tensors().map(|tensor| tensor.n_bytes() as u64).sum();
    let bar = output::bar(all, "hashing {bytes}/{total_bytes} {wide_bar}");
    let hash = fingerprint::full_hash(gguf, config, tokenizer, &|done| bar.set_position(done));
    bar.finish_and_clear();
    hash
}

/// A template that can't be used refuses chats only.
fn check_template(gguf: &Gguf, warnings: &mut Vec<String>) -> &'static str {
    let source = gguf.find::<&str>("tokenizer.chat_template");
    if let Ok(None) = source {
        return "absent, ChatML is used";
    }
    match keep(ChatTemplate::unchecked(source, "", "").check(), warnings) {
        Some(()) => "present",
        None => "unusable",
    }
}

fn shape(config: &ModelConfig) -> Shape {
    Shape {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        rope_theta: config.rope_theta,
        rope_scaling: format!("{:?}", config.rope_scaling),
        rms_norm_eps: config.rms_norm_eps,
        tie_word_embeddings: config.tie_word_embeddings,
        sliding_window: config.window(),
    }
}

fn types(gguf: &Gguf) -> Vec<TypeReport> {
    let mut types = BTreeMap::new();
    for tensor in gguf.tensors() {
        let dtype = tensor.dtype.name();
        let entry = types.entry(tensor.dtype).or_insert(TypeReport {
            dtype,
            tensors: 0,
            weights: 0,
            bytes: 0,
        });
        entry.tensors += 1;
        entry.weights += tensor.n_weights() as u64;
        entry.bytes += tensor.n_bytes() as u64;
    }
    types.into_values().collect()
}

fn print(report: &Report) -> Result<()> {
    let unknown = || "unknown".to_string();
    let (name, architecture) = (report.name.clone(), report.architecture.clone());
    output::line(&format!("name           {}", name.unwrap_or_else(unknown)))?;
    let bytes = output::human_bytes(report.bytes);
    output::line(&format!("file           GGUF v{}, {bytes}", report.gguf_version))?;
    output::line(&format!("architecture   {}", architecture.unwrap_or_else(unknown)))?;
    output::line(&format!("parameters     {:.1} million", report.parameters as f64 / 1e6))?;
    if let Some(s) = &report.shape {
        output::line(&format!(
            "layers         {} of width {}, MLP {}",
            s.num_hidden_layers, s.hidden_size, s.intermediate_size
        ))?;
        let (heads, kv) = (s.num_attention_heads, s.num_key_value_heads);
        output::line(&format!(
            "heads          {heads} of width {}, {kv} for keys and values",
            s.head_dim
        ))?;
        let (theta, scaling) = (s.rope_theta, &s.rope_scaling);
        output::line(&format!(
            "context        {} (RoPE base {theta}, scaling {scaling})",
            s.max_position_embeddings
        ))?;
        if let Some(tokens) = s.sliding_window {
            output::line(&format!("window         {tokens} tokens, in most layers"))?;
        }
        let head = if s.tie_word_embeddings { "tied to the embedding" } else { "its own matrix" };
        output::line(&format!("vocabulary     {}, head {head}", s.vocab_size))?;
    }
    for t in &report.types {
        let bytes = output::human_bytes(t.bytes);
        output::line(&format!(
            "{:<14} {} tensors, {} weights, {bytes}",
            t.dtype, t.tensors, t.weights
        ))?;
    }
    if let Some(t) = &report.tokenizer {
        let pre = t.pre.as_deref().unwrap_or("default");
        output::line(&format!(
            "tokenizer      {} ({pre}), {} tokens, {} merges",
            t.model, t.tokens, t.merges
        ))?;
    }
    output::line(&format!("chat template  {}", report.chat_template))?;
    if let Some(fingerprint) = &report.fingerprint {
        output::line(&format!("fingerprint    {fingerprint} (sampled)"))?;
    }
    if let Some(hash) = &report.full_hash {
        output::line(&format!("full hash      {hash}"))?;
    }
    for tensor in &report.ignored_tensors {
        output::line(&format!("ignored        {tensor}"))?;
    }
    report
        .warnings
        .iter()
        .try_for_each(|reason| output::line(&format!("unusable       {reason}")))?;
    report.refused.iter().try_for_each(|reason| output::line(&format!("refused        {reason}")))
}
