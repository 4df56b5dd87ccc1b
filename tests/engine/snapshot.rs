//! Sessions in files: the round trip, and files that are not what they claim.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use epiphyte::{Engine, EngineOptions, Error, Session};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::{
    CONTEXT, PAGE, SHARED, VOCAB, alone, dispatches, generate, greedy, open, prefill, prompt,
    sampled, session,
};
use crate::common::{ends, golden};

struct Saved {
    path: PathBuf,
    dir: tempfile::TempDir,
}

fn save(session: &Session) -> Saved {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.safetensors");
    session.save(&path).unwrap();
    Saved { path, dir }
}

#[test]
fn a_restored_session_goes_on_identically() {
    let engine = open(EngineOptions::default());
    for len in [1, PAGE, PAGE + 1, 100] {
        let ids = prompt(90, len);
        let mut original = session(&engine, &ids);
        let first = generate(&mut original, greedy(5));
        let saved = save(&original);
        assert_eq!(saved.dir.path().read_dir().unwrap().count(), 1, "no temporary file is left");
        let before = dispatches(&engine);
        let mut restored = engine.restore(&saved.path).unwrap();
        prefill(&mut restored);
        assert_eq!(dispatches(&engine), before, "nothing is computed again");
        assert_eq!(restored.tokens(), [ids, first.ids].concat());
        assert_eq!(
            generate(&mut restored, sampled(20, 4)),
            generate(&mut original, sampled(20, 4))
        );
    }
}

#[test]
fn sessions_are_saved_at_any_stage() {
    let empty = SHARED.restore(save(&SHARED.session()).path).err();
    assert!(empty.is_none(), "{empty:?}");
    let ids = prompt(91, 50);
    let pending =
        SHARED.restore(save(&session(&SHARED, &ids)).path).map(|mut s| generate(&mut s, greedy(5)));
    assert_eq!(pending.unwrap(), alone(&ids, greedy(5)));
    let mut whole = session(&SHARED, &ids);
    whole.logits(0, |_, _| {}).unwrap();
    let mut restored = SHARED.restore(save(&whole).path).unwrap();
    assert_eq!(generate(&mut restored, greedy(5)), alone(&ids, greedy(5)));
    let mut full = session(&SHARED, &prompt(92, CONTEXT - 3));
    generate(&mut full, greedy(10));
    let mut restored = SHARED.restore(save(&full).path).unwrap();
    restored.truncate(CONTEXT - 3);
    assert_eq!(generate(&mut restored, greedy(3)), alone(&prompt(92, CONTEXT - 3), greedy(3)));
}

#[test]
fn a_cache_in_another_type_is_computed_anew() {
    let ids = prompt(93, 70);
    let mut original = session(&SHARED, &ids);
    let answer = generate(&mut original, greedy(5));
    let exact = open(EngineOptions { kv_f32: true, ..EngineOptions::default() });
    let mut restored = exact.restore(save(&original).path).unwrap();
    assert_eq!(restored.tokens(), [ids.clone(), answer.ids].concat());
    let before = dispatches(&exact);
    prefill(&mut restored);
    assert!(!SHARED.gpu().caps().f16 || dispatches(&exact) > before);
    restored.truncate(70);
    assert_eq!(generate(&mut restored, greedy(5)), generate(&mut session(&exact, &ids), greedy(5)));
}

#[test]
fn another_base_is_refused() {
    let other = Engine::open(golden("tiny_llama_linear.gguf"), EngineOptions::default()).unwrap();
    let saved = save(&session(&SHARED, &prompt(94, 5)));
    match other.restore(&saved.path).err() {
        Some(Error::BaseMismatch { expected, got }) => {
            assert_eq!(
                (expected, got),
                (SHARED.base().fingerprint.clone(), other.base().fingerprint.clone())
            );
        }
        found => panic!("{found:?}"),
    }
}

/// The parts of a saved session, to be put together otherwise.
#[derive(Clone)]
struct Parts {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl Parts {
    fn of(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let part = |(name, view): (String, TensorView<'_>)| {
            (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        Self {
            tensors: file.tensors().into_iter().map(part).collect(),
            metadata: header.metadata().clone().unwrap(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let view = |(name, dtype, shape, data): &(String, Dtype, Vec<usize>, Vec<u8>)| {
            (
                name.clone(),
                TensorView::new(*dtype, shape.clone(), data)
                    .map(|v| (v.dtype(), v.shape().to_vec())),
            )
        };
        assert!(self.tensors.iter().map(view).all(|(_, view)| view.is_ok()));
        let views = self.tensors.iter().map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        serialize(views, Some(self.metadata.clone())).unwrap()
    }

    fn with(&self, key: &str, value: &str) -> Vec<u8> {
        let mut parts = self.clone();
        parts.metadata.insert(key.into(), value.into());
        parts.bytes()
    }

    fn edit(
        &self,
        name: &str,
        change: impl FnOnce(&mut Dtype, &mut Vec<usize>, &mut Vec<u8>),
    ) -> Vec<u8> {
        let mut parts = self.clone();
        let (_, dtype, shape, data) = parts.tensors.iter_mut().find(|t| t.0 == name).unwrap();
        change(dtype, shape, data);
        parts.bytes()
    }

    fn without(&self, name: &str) -> Vec<u8> {
        let tensors = self.tensors.iter().filter(|t| t.0 != name).cloned().collect();
        Self { tensors, ..self.clone() }.bytes()
    }

    fn tokens(&self, tokens: &[u32]) -> Vec<u8> {
        self.edit("tokens", |_, shape, data| {
            *shape = vec![tokens.len()];
            *data = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        })
    }
}

fn refusal(bytes: &[u8]) -> Option<Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile");
    std::fs::write(&path, bytes).unwrap();
    ends("a refusal", || SHARED.restore(&path).err())
}

fn saved_parts() -> (Parts, Vec<u8>) {
    let mut original = session(&SHARED, &prompt(95, 70));
    prefill(&mut original);
    let saved = save(&original);
    (Parts::of(&saved.path), std::fs::read(&saved.path).unwrap())
}

/// Files that are no saved session, each for a reason of its own.
fn invalid(parts: &Parts, whole: &[u8]) -> [(&'static str, Vec<u8>); 17] {
    let length = |n: u64| [&n.to_le_bytes()[..], &whole[8..]].concat();
    [
        ("nothing", vec![]),
        ("no safetensors", b"GGUF, of all things".to_vec()),
        ("header of no length", length(0)),
        ("header beyond the file", length(1 << 40)),
        ("header of all there is", length(u64::MAX)),
        ("other format", parts.with("format", "epiphyte.checkpoint.3")),
        ("kv_len too long", parts.with("kv_len", "71")),
        ("kv_len overflows", parts.with("kv_len", "99999999999999999999")),
        ("kv_len negative", parts.with("kv_len", "-1")),
        ("kv_len shorter than the pages", parts.with("kv_len", "3")),
        ("keys of another shape", parts.edit("layers.1.keys", |_, shape, _| shape.reverse())),
        ("keys of another type", parts.edit("layers.0.keys", |dtype, _, _| *dtype = Dtype::I8)),
        (
            "values cut",
            parts.edit("layers.1.values", |_, shape, data| {
                shape[0] -= 1;
                data.truncate(shape[0] * shape[1]);
            }),
        ),
        ("a layer missing", parts.without("layers.1.keys")),
        ("no tokens", parts.without("tokens")),
        ("tokens of another type", parts.edit("tokens", |dtype, _, _| *dtype = Dtype::F32)),
        ("no metadata", Parts { metadata: HashMap::new(), ..parts.clone() }.bytes()),
    ]
}

#[test]
fn hostile_files_are_refused_by_type() {
    let (parts, whole) = saved_parts();
    for (what, bytes) in invalid(&parts, &whole) {
        match refusal(&bytes) {
            Some(Error::InvalidFile { path, .. }) => assert!(path.ends_with("hostile")),
            other => panic!("{what}: {other:?}"),
        }
    }
    let long = refusal(&parts.tokens(&vec![5; CONTEXT + 1]));
    assert!(matches!(long, Some(Error::ContextFull { needed: 257, capacity: 256 })), "{long:?}");
    let mut outside = prompt(95, 70);
    outside[30] = VOCAB;
    let outside = refusal(&parts.tokens(&outside));
    assert!(matches!(outside, Some(Error::InvalidArgument { name: "ids", .. })), "{outside:?}");
    let other = refusal(&parts.with("base_fingerprint", ""));
    assert!(matches!(other, Some(Error::BaseMismatch { .. })), "{other:?}");
    for version in ["epiphyte.session.2", "epiphyte.session.99"] {
        let other = refusal(&parts.with("format", version));
        let is_named =
            matches!(&other, Some(Error::FormatVersion { found, .. }) if found == version);
        assert!(is_named, "{other:?}");
    }
    assert!(refusal(&whole).is_none());
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (_, whole) = saved_parts();
    for len in (0..whole.len()).step_by(whole.len() / 60) {
        let refusal = refusal(&whole[..len]);
        assert!(matches!(refusal, Some(Error::InvalidFile { .. })), "{len} bytes: {refusal:?}");
    }
}

#[test]
fn files_that_cannot_be_read_or_written_name_their_path() {
    let dir = tempfile::tempdir().unwrap();
    let missing = SHARED.restore(dir.path().join("absent")).err();
    assert!(
        matches!(&missing, Some(Error::Io { path, .. }) if path.ends_with("absent")),
        "{missing:?}"
    );
    assert!(matches!(SHARED.restore(dir.path()).err(), Some(Error::Io { .. })));
    let nowhere = session(&SHARED, &[5]).save(dir.path().join("no/such/folder/session"));
    assert!(matches!(&nowhere, Err(Error::Io { .. })), "{nowhere:?}");
}

#[test]
fn a_saved_cache_serves_its_own_session_only() {
    let engine = open(EngineOptions::default());
    let ids = prompt(96, 4 * PAGE);
    let mut part = session(&engine, &ids[..50]);
    part.logits(0, |_, _| {}).unwrap(); // publishes nothing
    let saved = save(&part);
    drop(part);
    let parts = Parts::of(&saved.path);
    std::fs::write(&saved.path, parts.edit("layers.0.values", |_, _, data| data.fill(0x11)))
        .unwrap();
    let mut restored = engine.restore(&saved.path).unwrap();
    restored.push_tokens(&ids[50..]).unwrap();
    let wrong = generate(&mut restored, greedy(10));
    let right = generate(&mut session(&engine, &ids), greedy(10));
    assert_ne!(wrong, right, "the cache was read from the file");
    // The second time it takes over whatever pages are offered.
    let reused = generate(&mut session(&engine, &ids), greedy(10));
    assert_eq!((&right, &reused), (&alone(&ids, greedy(10)), &right));
}

/// A saved session of `len` tokens whose keys and values are made up.
fn made_up(engine: &std::sync::Arc<Engine>, len: usize) -> Saved {
    let saved = save(&session(engine, &prompt(97, len)));
    let mut parts = Parts::of(&saved.path);
    parts.metadata.insert("kv_len".into(), len.to_string());
    let config = &engine.base().config;
    let element = if engine.gpu().caps().f16 { 2 } else { 4 };
    let page_bytes = config.num_key_value_heads * config.head_dim * PAGE * element;
    let pages = len.div_ceil(PAGE);
    for (i, (name, _, shape, data)) in parts.tensors.iter_mut().enumerate() {
        if name != "tokens" {
            *shape = vec![pages, page_bytes];
            *data = (0..pages * page_bytes).map(|at| (at * 31 + i) as u8).collect();
        }
    }
    std::fs::write(&saved.path, parts.bytes()).unwrap();
    saved
}

#[test]
fn a_session_is_copied_in_few_reads_and_writes() {
    let Some(path) = crate::common::model_path() else { return };
    let options =
        EngineOptions { context: Some(1000), skip_self_test: true, ..EngineOptions::default() };
    let engine = Engine::open(path, options).unwrap();
    let saved = made_up(&engine, 1000);
    let counters = &engine.gpu().counters;
    let counts = || [&counters.reads, &counters.writes].map(|count| count.load(Ordering::Relaxed));
    let before = counts();
    let restored = engine.restore(&saved.path).unwrap();
    let [_, writes] = std::array::from_fn(|i| counts()[i] - before[i]);
    let before = counts();
    let again = save(&restored);
    let [reads, _] = std::array::from_fn(|i| counts()[i] - before[i]);
    println!("1,000 tokens: {writes} writes to restore, {reads} reads to save");
    assert!(
        (1..=3).contains(&reads) && (1..=3).contains(&writes),
        "{reads} reads, {writes} writes"
    );
    let [first, second] = [&saved, &again].map(|saved| Parts::of(&saved.path));
    assert_eq!(first.metadata, second.metadata);
    let sorted = |mut parts: Parts| {
        parts.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        parts.tensors
    };
    assert!(sorted(first) == sorted(second), "every byte comes back");
}

#[test]
fn sessions_are_saved_at_once_under_names_that_differ_in_their_extension() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for (seed, name) in [(98, "session.a"), (99, "session.b"), (100, "session")] {
            let path = dir.path().join(name);
            scope.spawn(move || {
                let saved = session(&SHARED, &prompt(seed, 40));
                for _ in 0..20 {
                    saved.save(&path).unwrap();
                    assert_eq!(SHARED.restore(&path).unwrap().tokens(), saved.tokens());
                }
            });
        }
    });
    assert_eq!(dir.path().read_dir().unwrap().count(), 3, "no temporary file is left");
}
