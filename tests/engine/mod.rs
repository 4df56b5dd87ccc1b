//! Sessions and generation on a tiny model: what is shared, continued, batched, stopped and
//! refused.

mod adapters;
mod batch;
mod context;
mod counters;
mod evaluate;
mod grammar;
pub(crate) mod lifecycle;
mod loading;
mod lookup;
mod refused;
mod registry;
mod sampling;
mod sessions;
mod snapshot;
mod snapshot_adapters;
mod soak;
mod stats;
mod stops;
mod text;
mod turns;
mod windows;

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use epiphyte::{
    CancelToken, Engine, EngineOptions, FinishReason, GenerateOptions, Sampling, Session,
};

use crate::common::{Random, golden};

/// The tiny model: 288 tokens, a context of 256, two layers.
const VOCAB: u32 = 288;
const CONTEXT: usize = 256;
/// Its end-of-generation token.
const EOS: u32 = 2;
/// Tokens of a page of the cache.
const PAGE: usize = epiphyte::model::pages::PAGE_LEN;

/// For tests that do not mind what others have left in the cache.
static SHARED: LazyLock<Arc<Engine>> = LazyLock::new(|| open(EngineOptions::default()));

fn open(options: EngineOptions) -> Arc<Engine> {
    Engine::open(golden("tiny_llama.gguf"), options).unwrap()
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| 3 + random.below(VOCAB - 3)).collect()
}

fn session(engine: &Arc<Engine>, ids: &[u32]) -> Session {
    let mut session = engine.session();
    session.push_tokens(ids).unwrap();
    session
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() }
}

fn sampled(max_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling =
        Sampling { temperature: 1.5, top_k: 100, top_p: 0.95, seed, ..Sampling::default() };
    GenerateOptions { sampling, ..greedy(max_tokens) }
}

/// A whole generation.
#[derive(Debug, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    reason: Option<FinishReason>,
}

fn generate(session: &mut Session, options: GenerateOptions) -> Answer {
    let before = session.tokens().to_vec();
    let mut answer = Answer { ids: Vec::new(), text: String::new(), reason: None };
    let mut generation = session.generate(options).unwrap();
    for token in generation.by_ref() {
        let token = token.unwrap();
        answer.ids.push(token.id);
        answer.text += &token.text;
    }
    answer.reason = generation.finish_reason();
    drop(generation);
    assert_eq!(
        session.tokens(),
        [before, answer.ids.clone()].concat(),
        "the session holds what was handed out"
    );
    answer
}

/// What a session of its own makes of `ids`.
fn alone(ids: &[u32], options: GenerateOptions) -> Answer {
    generate(&mut session(&SHARED, ids), options)
}

fn prefill(session: &mut Session) {
    session.prefill(&CancelToken::default()).unwrap();
}

fn dispatches(engine: &Engine) -> u64 {
    engine.gpu().counters.dispatches.load(Ordering::Relaxed)
}
