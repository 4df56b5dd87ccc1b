//! What crosses the border, seen from this side: a model loads, answers, is stopped, and fails with
//! a kind.

use std::sync::{Arc, Mutex};

use epiphyte_bindings::{
    Engine, EngineOptions, EpiphyteError, ErrorKind, FinishReason, GenerateOptions, LoadListener,
    LoadPhase, LoadProgress, Sampling, Session, Token, TokenSink,
};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny_llama.gguf");
const PROMPT: &str = "the sea";

/// Takes at most this many tokens.
struct Sink(usize, Mutex<Vec<Token>>);

impl TokenSink for Sink {
    fn on_token(&self, token: Token) -> bool {
        let mut tokens = self.1.lock().unwrap();
        tokens.push(token);
        tokens.len() < self.0
    }
}

fn engine() -> Arc<Engine> {
    Engine::open(TINY.into(), EngineOptions { context: Some(64) }).unwrap()
}

/// Up to 8 greedy tokens for a sink of `most`.
fn answer(session: &Session, most: usize) -> (Vec<Token>, FinishReason) {
    let sink = Arc::new(Sink(most, Mutex::default()));
    let options =
        GenerateOptions { max_tokens: 8, sampling: Sampling::default(), stop: Vec::new() };
    let reason = session.generate(options, Arc::<Sink>::clone(&sink)).unwrap();
    let tokens = sink.1.lock().unwrap().clone();
    (tokens, reason)
}

fn kind<T>(result: Result<T, EpiphyteError>) -> Option<(ErrorKind, String)> {
    result.err().map(|EpiphyteError::Failed { kind, text }| (kind, text))
}

#[test]
fn a_model_answers_as_in_the_runtime() {
    let runtime = epiphyte::Engine::open(TINY, epiphyte::EngineOptions::default()).unwrap();
    let mut expected = runtime.session();
    expected.push_text(PROMPT).unwrap();
    let options = epiphyte::GenerateOptions { max_tokens: 8, ..Default::default() };
    let expected: Vec<Token> = expected
        .generate(options)
        .unwrap()
        .map(|token| token.map(|epiphyte::Token { id, text, .. }| Token { id, text }).unwrap())
        .collect();

    let session = engine().session();
    session.push_text(PROMPT.into()).unwrap();
    let fork = session.fork();
    assert_eq!(answer(&session, usize::MAX), (expected.clone(), FinishReason::MaxTokens));
    assert_eq!(answer(&fork, 3), (expected[..3].to_vec(), FinishReason::Cancelled));
    assert_eq!(session.len() - fork.len(), 5);
    let (whole, cut) = (session.stats().unwrap(), fork.stats().unwrap());
    assert_eq!((whole.generated_tokens, whole.finish_reason), (8, Some(FinishReason::MaxTokens)));
    assert_eq!((cut.generated_tokens, cut.finish_reason), (3, None));
    assert!(whole.first_token_seconds > Some(0.0) && whole.decode_tps > Some(0.0));
}

#[derive(Default)]
struct Heard(Mutex<Vec<LoadProgress>>);

impl LoadListener for Heard {
    fn on_progress(&self, progress: LoadProgress) {
        self.0.lock().unwrap().push(progress);
    }
}

#[test]
fn opening_tells_how_far_it_is() {
    let heard = Arc::new(Heard::default());
    let options = EngineOptions { context: Some(64) };
    Engine::open_with(TINY.into(), options, Arc::<Heard>::clone(&heard)).unwrap();
    let heard = heard.0.lock().unwrap();
    for phase in [LoadPhase::SelfTest, LoadPhase::Weights, LoadPhase::Shaders] {
        let of = |done: fn(&LoadProgress) -> u64| {
            heard.iter().any(|p| p.phase == phase && p.done == done(p))
        };
        assert!(of(|_| 0) && of(|p| p.total), "{phase:?}");
    }
}

#[test]
fn errors_cross_as_a_kind_and_a_text() {
    let (kind_, text) =
        kind(Engine::open("/no/such.gguf".into(), EngineOptions::default())).unwrap();
    assert!(kind_ == ErrorKind::File && text.contains("/no/such.gguf"), "{kind_:?} {text}");
    let session = engine().session();
    let (kind_, _) = kind(session.push_text(PROMPT.repeat(64))).unwrap();
    assert_eq!((kind_, session.is_empty()), (ErrorKind::ContextFull, true));
    let sink = Arc::new(Sink(1, Mutex::default()));
    let options =
        GenerateOptions { max_tokens: 1, sampling: Sampling::default(), stop: Vec::new() };
    let (kind_, _) = kind(session.generate(options, sink)).unwrap();
    assert_eq!(kind_, ErrorKind::InvalidArgument, "an empty session has nothing to go on from");
}
