//! Sessions in files with adapters: the same set comes back, or the restore is refused by name.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use epiphyte::engine::{Change, KvPolicy};
use epiphyte::{Engine, EngineOptions, Error, Session};
use safetensors::tensor::{SafeTensors, serialize};

use super::{PAGE, dispatches, generate, greedy, open, prefill, prompt, sampled, session};
use crate::model::adapted::random_adapter;

/// An engine with adapters of these ids, each from its seed.
fn with_adapters(adapters: &[(&str, u64)]) -> Arc<Engine> {
    let engine = open(EngineOptions::default());
    for (id, seed) in adapters {
        engine
            .add_adapter(id, &random_adapter(&engine.base().adapter_shape(), *seed, |_| true))
            .unwrap();
    }
    engine
}

fn set(session: &mut Session, adapters: &[(&str, f32)], history: KvPolicy) {
    session.set_adapters(&Change { adapters, history }).unwrap();
}

/// The metadata of a saved session, changed and written again.
fn edited(path: &Path, key: &str, value: Option<&str>) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata: HashMap<String, String> = header.metadata().clone().unwrap();
    match value {
        Some(value) => metadata.insert(key.into(), value.into()),
        None => metadata.remove(key),
    };
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    std::fs::write(path, serialize(tensors.tensors(), Some(metadata)).unwrap()).unwrap();
}

fn metadata(path: &Path, key: &str) -> String {
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::read_metadata(&bytes).unwrap().1.metadata().as_ref().unwrap()[key].clone()
}

#[test]
fn a_restored_session_has_its_adapters_and_goes_on_identically() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let engine = with_adapters(&[("a", 1), ("b", 2)]);
    // A third of this weight is no number of f64's either; every bit has to come back.
    let weights = [("b", -1.0 / 3.0), ("a", 0.7)];
    let mut original = session(&engine, &prompt(100, PAGE + 7));
    set(&mut original, &weights, KvPolicy::Recompute);
    generate(&mut original, greedy(5));
    original.save(&path).unwrap();
    assert_eq!(metadata(&path, "mixed"), "false");
    let before = dispatches(&engine);
    let mut restored = engine.restore(&path).unwrap();
    prefill(&mut restored);
    assert_eq!(dispatches(&engine), before, "nothing is computed again");
    assert_eq!(restored.adapters(), weights.map(|(id, weight)| (id.to_string(), weight)));
    assert_eq!(restored.tokens(), original.tokens());
    let mut base = session(&engine, original.tokens());
    let with = generate(&mut original, sampled(20, 4));
    assert_eq!(generate(&mut restored, sampled(20, 4)), with);
    assert_ne!(generate(&mut base, sampled(20, 4)), with, "the adapters do something");
}

#[test]
fn a_history_of_several_sets_stays_mixed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let engine = with_adapters(&[("a", 1), ("b", 2)]);
    let ids = prompt(101, 2 * PAGE + 3);
    let mut original = session(&engine, &ids);
    set(&mut original, &[("a", 1.0)], KvPolicy::Recompute);
    prefill(&mut original);
    set(&mut original, &[("b", 1.0)], KvPolicy::Keep);
    generate(&mut original, greedy(3));
    original.save(&path).unwrap();
    let mut restored = engine.restore(&path).unwrap();
    let again = dir.path().join("again");
    restored.save(&again).unwrap();
    assert_eq!(
        (metadata(&path, "mixed"), metadata(&again, "mixed")),
        ("true".into(), "true".into())
    );
    let mut fresh = session(&engine, original.tokens());
    set(&mut fresh, &[("b", 1.0)], KvPolicy::Recompute);
    // Logits, since tokens might agree by chance.
    let last = |session: &mut Session| {
        session.push_tokens(&[7]).unwrap();
        let (mut logits, at) = (Vec::new(), session.tokens().len() - 1);
        session.logits(at, |_, row| logits = row.to_vec()).unwrap();
        logits
    };
    let mixed = last(&mut original);
    assert_eq!(last(&mut restored), mixed);
    assert_ne!(last(&mut fresh), mixed, "the first set's keys are still there");
}

#[test]
fn another_set_of_adapters_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let engine = with_adapters(&[("a", 1), ("b", 2)]);
    let mut original = session(&engine, &prompt(102, 40));
    set(&mut original, &[("a", 1.0), ("b", 0.5)], KvPolicy::Recompute);
    generate(&mut original, greedy(2));
    original.save(&path).unwrap();
    let refusal = |engine: &Arc<Engine>| engine.restore(&path).err().unwrap();
    let missing = with_adapters(&[("a", 1), ("c", 2)]);
    let error = refusal(&missing);
    assert!(matches!(&error, Error::AdapterNotLoaded { id } if id == "b"), "{error:?}");
    let other = with_adapters(&[("a", 1), ("b", 3)]);
    let error = refusal(&other);
    let is_digest = |text: &str| text.strip_prefix("epiphyte.factors.1:").map(str::len) == Some(64);
    let digests =
        |expected: &str, got: &str| is_digest(expected) && is_digest(got) && expected != got;
    assert!(
        matches!(&error, Error::AdapterMismatch { id, expected, got } if id == "b" && digests(expected, got)),
        "{error:?}"
    );
    // Nothing is held by what was refused.
    other.unload_adapter("a").unwrap();
    other.unload_adapter("b").unwrap();
    // The same factors under the same ids, loaded by another engine.
    let same = with_adapters(&[("b", 2), ("a", 1)]);
    assert_eq!(
        generate(&mut same.restore(&path).unwrap(), greedy(5)),
        generate(&mut original, greedy(5))
    );
}

#[test]
fn damaged_adapter_entries_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let engine = with_adapters(&[("a", 1)]);
    let mut original = session(&engine, &prompt(103, 40));
    set(&mut original, &[("a", 1.0)], KvPolicy::Recompute);
    prefill(&mut original);
    original.save(&path).unwrap();
    let (whole, list) = (std::fs::read(&path).unwrap(), metadata(&path, "adapters"));
    drop(original);
    let twice = format!("[{0},{0}]", list.trim_matches(['[', ']']));
    let cases = [
        ("adapters", None, false),
        ("adapters", Some("a"), false),
        ("adapters", Some(r#"[{"id":"a"}]"#), false),
        ("mixed", None, false),
        ("mixed", Some("perhaps"), false),
        ("format", Some("epiphyte.session.1"), false),
        ("adapters", Some(twice.as_str()), true),
    ];
    for (key, value, is_argument) in cases {
        std::fs::write(&path, &whole).unwrap();
        edited(&path, key, value);
        match engine.restore(&path).err() {
            Some(Error::FormatVersion { .. }) if key == "format" => {}
            Some(Error::InvalidFile { .. }) if !is_argument && key != "format" => {}
            Some(Error::InvalidArgument { name: "adapters", .. }) if is_argument => {}
            other => panic!("{key} {value:?}: {other:?}"),
        }
    }
    let large = list.replace("1.0", "1e300");
    assert_ne!(large, list);
    std::fs::write(&path, &whole).unwrap();
    edited(&path, "adapters", Some(&large));
    let error = engine.restore(&path).err();
    assert!(matches!(&error, Some(Error::InvalidArgument { name: "adapters", .. })), "{error:?}");
    engine.unload_adapter("a").unwrap();
}
