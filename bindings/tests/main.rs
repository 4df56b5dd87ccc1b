//! What crosses the border, seen from this side, one file for each of its rooms: on lavapipe and a
//! tiny model. One binary, so that everything is linked once.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod adapters;
mod answers;
mod batch;
mod closing;
mod errors;
mod federated;
mod flower;
mod lifecycle;
mod mobile_api;
mod opening;
mod overhead;
mod plan;
mod sessions;
mod training;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use epiphyte_bindings::{
    Engine, EngineOptions, EpiphyteError, Example, GenerateOptions, Generation, Message,
    ModelSource, Session, Token, TrainData,
};
use pollster::block_on;

const PROMPT: &str = "the sea";
const CONTEXT: i32 = 256;

/// For tests that do not mind what others have left in it.
static SHARED: LazyLock<Arc<Engine>> = LazyLock::new(engine);

/// A file of the repository's `tests/golden`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().into()
}

fn tiny() -> ModelSource {
    ModelSource::Path { path: text(golden("tiny_llama.gguf")) }
}

fn engine() -> Arc<Engine> {
    open(EngineOptions::default()).unwrap()
}

fn open(options: EngineOptions) -> Result<Arc<Engine>, EpiphyteError> {
    block_on(Engine::open(tiny(), options, None, None))
}

/// A session that holds [`PROMPT`].
fn session(engine: &Engine) -> Arc<Session> {
    let session = engine.session().unwrap();
    block_on(session.push_text(PROMPT.into())).unwrap();
    session
}

fn greedy(max_tokens: i32) -> GenerateOptions {
    GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() }
}

/// All tokens that are left of an answer.
fn rest(answer: &Generation) -> Vec<Token> {
    std::iter::from_fn(|| block_on(answer.next()).unwrap()).collect()
}

fn ids(tokens: &[Token]) -> Vec<i32> {
    tokens.iter().map(|token| token.id).collect()
}

fn chat() -> Vec<Message> {
    vec![Message::new("system", "Be brief."), Message::new("user", "Hi")]
}

/// The tiny model without the border.
static RUNTIME: LazyLock<Arc<epiphyte::Engine>> = LazyLock::new(|| {
    let options = epiphyte::EngineOptions {
        gpu: epiphyte::GpuOptions::from_env().unwrap(),
        ..Default::default()
    };
    epiphyte::Engine::open(golden("tiny_llama.gguf"), options).unwrap()
});

/// What is learnt where it matters little what.
fn examples(count: usize) -> TrainData {
    let pair = |i: usize| Example::Pair {
        prompt: format!("the sea is {i}"),
        completion: " and the moon is blue".into(),
    };
    TrainData::Examples { examples: (0..count).map(pair).collect() }
}

/// What the runtime itself answers to [`PROMPT`].
fn expected(tokens: usize) -> Vec<Token> {
    let mut session = RUNTIME.session();
    session.push_text(PROMPT).unwrap();
    let options =
        epiphyte::GenerateOptions { max_tokens: tokens, ignore_eos: true, ..Default::default() };
    session.generate(options).unwrap().map(|token| token.unwrap().into()).collect()
}
