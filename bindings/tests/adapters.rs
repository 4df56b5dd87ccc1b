//! Adapters by path and from bytes; swapped between answers and in the middle of one; refused.

use std::sync::Arc;

use epiphyte_bindings::{
    AdapterFormat, AdapterSource, AdapterWeight, Engine, EpiphyteError, KvPolicy, Verdict,
};
use pollster::block_on;

use super::{engine, expected, golden, greedy, rest, session, text};

fn folder() -> AdapterSource {
    AdapterSource::Path { path: text(golden("peft_logits/plain")) }
}

fn load(engine: &Engine, id: &str, source: AdapterSource) -> Result<(), EpiphyteError> {
    block_on(engine.load_adapter(id.into(), source)).map(drop)
}

fn weights(ids: &[&str]) -> Vec<AdapterWeight> {
    ids.iter().map(|id| AdapterWeight { id: (*id).into(), weight: 1.0 }).collect()
}

fn adapted(engine: &Engine, ids: &[&str], tokens: i32) -> Vec<epiphyte_bindings::Token> {
    let session = session(engine);
    block_on(session.set_adapters(weights(ids), KvPolicy::Recompute)).unwrap();
    rest(&session.generate(greedy(tokens)).unwrap())
}

#[test]
fn path_and_bytes_give_the_same_adapter() {
    let engine = engine();
    let report = block_on(engine.load_adapter("path".into(), folder())).unwrap();
    assert_eq!(report.format, AdapterFormat::Peft);
    assert!(!report.modules.is_empty() && report.missing.is_empty());
    assert!(report.tensors.iter().all(|tensor| tensor.verdict == Verdict::Matched));
    assert_eq!(block_on(engine.adapter_report("path".into())).unwrap().unwrap(), report);
    assert!(block_on(engine.adapter_report("other".into())).unwrap().is_none());
    let read = |name| std::fs::read(golden("peft_logits/plain").join(name)).unwrap();
    let bytes = AdapterSource::Bytes {
        config_json: String::from_utf8(read("adapter_config.json")).unwrap(),
        safetensors: read("adapter_model.safetensors"),
    };
    load(&engine, "bytes", bytes).unwrap();
    let answer = adapted(&engine, &["path"], 8);
    assert_eq!(adapted(&engine, &["bytes"], 8), answer);
    assert_ne!(answer, expected(8), "the adapter changes the answer");
    let ids: Vec<_> = block_on(engine.adapters()).unwrap().into_iter().map(|s| s.id).collect();
    assert_eq!(ids, ["bytes", "path"]);
    let probe = block_on(engine.probe_adapter("path".into(), "the sea".into())).unwrap();
    assert!(probe.max_abs_difference > 0.0 && probe.tokens > 0);
}

#[test]
fn a_gguf_adapter_is_read_from_memory() {
    let engine = engine();
    load(&engine, "path", folder()).unwrap();
    let runtime = epiphyte::format::gguf::Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let shape = epiphyte::base::ModelConfig::from_gguf(&runtime).unwrap().base_shape();
    let adapter = epiphyte::adapter::Adapter::load(golden("peft_logits/plain"), &shape).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    adapter.save_gguf(&path, epiphyte::DType::F32, &shape).unwrap();
    let report =
        block_on(engine.load_adapter(
            "gguf".into(),
            AdapterSource::Gguf { bytes: std::fs::read(path).unwrap() },
        ));
    assert_eq!(report.unwrap().format, AdapterFormat::Gguf);
    assert_eq!(adapted(&engine, &["gguf"], 8), adapted(&engine, &["path"], 8));
}

#[test]
fn adapters_are_swapped_between_answers_and_taken_away() {
    let engine = engine();
    load(&engine, "a", folder()).unwrap();
    let session = session(&engine);
    let prompt = session.token_count();
    let answer = |ids: &[&str]| {
        block_on(session.truncate(prompt)).unwrap();
        block_on(session.set_adapters(weights(ids), KvPolicy::Recompute)).unwrap();
        rest(&session.generate(greedy(8)).unwrap())
    };
    let (base, with) = (answer(&[]), answer(&["a"]));
    assert_eq!((base.clone(), with.clone()), (expected(8), adapted(&engine, &["a"], 8)));
    assert_ne!(base, with);
    let error = block_on(engine.unload_adapter("a".into()));
    assert!(matches!(error, Err(EpiphyteError::AdapterInUse { .. })), "{error:?}");
    assert_eq!(answer(&[]), base);
    assert_eq!(block_on(session.adapters()).unwrap(), []);
    block_on(engine.unload_adapter("a".into())).unwrap();
    let error = block_on(session.set_adapters(weights(&["a"]), KvPolicy::Keep));
    assert!(matches!(error, Err(EpiphyteError::AdapterNotLoaded { .. })), "{error:?}");
}

/// As the runtime's own `Generation::set_adapters`.
#[test]
fn adapters_are_swapped_in_the_middle_of_an_answer() {
    let engine = engine();
    load(&engine, "a", folder()).unwrap();
    let session = session(&engine);
    let answer = session.generate(greedy(10)).unwrap();
    let mut tokens: Vec<_> = (0..4).map(|_| block_on(answer.next()).unwrap().unwrap()).collect();
    block_on(answer.set_adapters(weights(&["a"]), KvPolicy::Recompute)).unwrap();
    tokens.extend(rest(&answer));
    assert_eq!(tokens[..4], expected(4));
    // As if they had been there from the start of what the session holds.
    let fresh = engine.session().unwrap();
    let held = block_on(session.tokens()).unwrap();
    block_on(fresh.push_tokens(held[..held.len() - 6].to_vec())).unwrap();
    block_on(fresh.set_adapters(weights(&["a"]), KvPolicy::Recompute)).unwrap();
    assert_eq!(rest(&fresh.generate(greedy(6)).unwrap()).len(), 6);
    assert_eq!(block_on(fresh.tokens()).unwrap(), held);
    assert_eq!(block_on(session.adapters()).unwrap(), weights(&["a"]));
    let over = block_on(answer.set_adapters(weights(&[]), KvPolicy::Keep));
    assert!(matches!(over, Err(EpiphyteError::Closed { .. })), "{over:?}");
}

#[test]
fn with_keep_the_answer_goes_on_at_once() {
    let engine = engine();
    load(&engine, "a", folder()).unwrap();
    let session = session(&engine);
    let answer = session.generate(greedy(10)).unwrap();
    block_on(answer.next()).unwrap().unwrap();
    block_on(answer.set_adapters(weights(&["a"]), KvPolicy::Keep)).unwrap();
    let unknown = block_on(answer.set_adapters(weights(&["none"]), KvPolicy::Keep));
    assert!(matches!(unknown, Err(EpiphyteError::AdapterNotLoaded { .. })), "{unknown:?}");
    assert_eq!(rest(&answer).len(), 9);
    assert_eq!(block_on(session.adapters()).unwrap(), weights(&["a"]));
}

#[test]
fn what_can_not_be_an_adapter_is_refused() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.safetensors");
    std::fs::write(&file, b"nothing of the kind").unwrap();
    for path in [text(dir.path()), text(&file)] {
        let error = load(&engine, "a", AdapterSource::Path { path });
        assert!(matches!(error, Err(EpiphyteError::InvalidFile { .. })), "{error:?}");
    }
    let missing = AdapterSource::Path { path: text(dir.path().join("none")) };
    let error = load(&engine, "a", missing);
    assert!(matches!(error, Err(EpiphyteError::Io { .. })), "{error:?}");
    for bytes in [Vec::new(), b"GGUF".to_vec(), vec![0xff; 64]] {
        let error = load(&engine, "a", AdapterSource::Gguf { bytes });
        assert!(matches!(error, Err(EpiphyteError::InvalidFile { .. })), "{error:?}");
    }
    let empty = AdapterSource::Bytes { config_json: String::new(), safetensors: Vec::new() };
    assert!(load(&engine, "a", empty).is_err());
    assert!(block_on(engine.adapters()).unwrap().is_empty());
}

/// An adapter that is on the device stays usable without its file; one that has to be read again is
/// named.
#[test]
fn a_file_that_is_deleted_while_in_use_does_no_harm() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("adapter");
    std::fs::create_dir(&copy).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(golden("peft_logits/plain").join(name), copy.join(name)).unwrap();
    }
    load(&engine, "a", AdapterSource::Path { path: text(&copy) }).unwrap();
    let session = session(&engine);
    block_on(session.set_adapters(weights(&["a"]), KvPolicy::Recompute)).unwrap();
    let answer = session.generate(greedy(8)).unwrap();
    block_on(answer.next()).unwrap().unwrap();
    std::fs::remove_dir_all(&copy).unwrap();
    assert_eq!(rest(&answer).len(), 7);
    drop((session, Arc::clone(&answer)));
    assert_eq!(adapted(&engine, &["a"], 4).len(), 4);
}
