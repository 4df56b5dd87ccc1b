//! Every error is a case with its data, a message and a hint.

use epiphyte_bindings::{Engine, EngineOptions, EpiphyteError, ModelSource};
use pollster::block_on;

use super::{SHARED, open, text};

fn opened(source: ModelSource) -> EpiphyteError {
    block_on(Engine::open(source, EngineOptions::default(), None)).err().unwrap()
}

#[test]
fn a_model_that_is_not_there_is_named() {
    for path in ["", "/no/such.gguf"] {
        let error = opened(ModelSource::Path { path: path.into() });
        assert!(error.message().contains(path), "{error}");
        assert!(!error.hint().is_empty(), "{error}");
        assert!(matches!(error, EpiphyteError::Io { .. }), "{error:?}");
    }
}

#[test]
fn a_model_path_that_is_a_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = opened(ModelSource::Path { path: text(dir.path()) });
    assert!(matches!(error, EpiphyteError::InvalidFile { .. }), "{error:?}");
    assert!(!error.hint().is_empty());
}

#[test]
fn settings_out_of_range_are_named() {
    let named = |options| match open(options).err() {
        Some(EpiphyteError::InvalidArgument { name, hint, .. }) => {
            assert!(!hint.is_empty(), "{name}");
            name
        }
        other => panic!("{other:?}"),
    };
    let defaults = EngineOptions::default();
    assert_eq!(named(EngineOptions { context: Some(-1), ..defaults.clone() }), "context");
    assert_eq!(named(EngineOptions { context: Some(0), ..defaults.clone() }), "context");
    assert_eq!(named(EngineOptions { context: Some(1 << 20), ..defaults.clone() }), "context");
    let options = EngineOptions { adapter_budget_bytes: Some(-1), ..defaults.clone() };
    assert_eq!(named(options), "adapter_budget_bytes");
    let error = open(EngineOptions { gpu: Some("no such".into()), ..defaults }).err().unwrap();
    assert!(matches!(error, EpiphyteError::NoGpu { .. }), "{error:?}");
}

#[test]
fn a_context_that_is_full_says_how_large_it_is() {
    let session = SHARED.session().unwrap();
    let error = block_on(session.push_text("the sea ".repeat(400))).err().unwrap();
    match &error {
        EpiphyteError::ContextFull { needed, capacity, .. } => {
            assert!(needed > capacity && *capacity == super::CONTEXT);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((error.hint().is_empty(), session.token_count()), (false, 0));
    let error = block_on(session.generate(super::greedy(1)).unwrap().next());
    match error {
        Err(EpiphyteError::InvalidArgument { name, .. }) => assert_eq!(name, "session"),
        other => panic!("an empty session has nothing to go on from: {other:?}"),
    }
}
