//! Every error is a case with its data, a message and a hint.

use epiphyte_bindings::{
    AdapterSource, Engine, EngineOptions, EpiphyteError, ModelSource, TrainData, TrainOptions,
};
use pollster::block_on;

use super::{SHARED, open, text};

fn opened(source: ModelSource) -> EpiphyteError {
    block_on(Engine::open(source, EngineOptions::default(), None, None)).err().unwrap()
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let path = "/no/such.gguf";
    let error = opened(ModelSource::Path { path: path.into() });
    assert!(error.message().contains(path) && !error.hint().is_empty(), "{error}");
    assert!(matches!(error, EpiphyteError::Io { .. }), "{error:?}");
}

#[test]
fn an_empty_path_is_not_the_folder_one_happens_to_be_in() {
    let empty = String::new;
    let named = |error| match error {
        EpiphyteError::InvalidArgument { name, .. } => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(opened(ModelSource::Path { path: empty() })), "path");
    let part = ModelSource::Part { path: empty(), offset: 0, length: None };
    assert_eq!(named(opened(part)), "path");
    let source = AdapterSource::Path { path: empty() };
    assert_eq!(named(block_on(SHARED.load_adapter("a".into(), source)).unwrap_err()), "path");
    assert_eq!(named(block_on(SHARED.restore(empty())).err().unwrap()), "path");
    let session = SHARED.session().unwrap();
    assert_eq!(named(block_on(session.save(empty())).unwrap_err()), "path");
    let run = |folder, path| {
        let trainer = SHARED.trainer(TrainOptions::new(folder, TrainData::Jsonl { path })).unwrap();
        named(block_on(trainer.run(None)).unwrap_err())
    };
    assert_eq!(run(empty(), "/no/such".into()), "folder");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(text(dir.path().join("run")), empty()), "data");
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
