//! An engine opens from a path, a part of a file and a descriptor, tells how far it is, and is
//! stopped by a listener that throws.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use epiphyte_bindings::{
    CancelToken, Engine, EngineOptions, EpiphyteError, LoadListener, LoadPhase, LoadProgress,
    ModelSource,
};
use pollster::block_on;

use super::{CONTEXT, engine, expected, golden, greedy, open, rest, session, text, tiny};

#[derive(Default)]
struct Heard(Mutex<Vec<LoadProgress>>);

impl LoadListener for Heard {
    fn on_progress(&self, progress: LoadProgress) -> Result<(), EpiphyteError> {
        self.0.lock().unwrap().push(progress);
        Ok(())
    }
}

#[test]
fn opening_tells_how_far_it_is() {
    let heard = Arc::new(Heard::default());
    let options = EngineOptions { cache_dir: Some(String::new()), ..EngineOptions::default() };
    block_on(Engine::open(tiny(), options, Some(Arc::<Heard>::clone(&heard)), None)).unwrap();
    let heard = heard.0.lock().unwrap();
    for phase in [LoadPhase::SelfTest, LoadPhase::Weights, LoadPhase::Shaders] {
        let of = |done: fn(&LoadProgress) -> i64| {
            heard.iter().any(|p| p.phase == phase && p.done == done(p))
        };
        assert!(of(|_| 0) && of(|p| p.total), "{phase:?}");
    }
}

#[test]
fn a_second_start_tests_and_compiles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let cache_dir = Some(text(dir.path()));
        let engine = open(EngineOptions { cache_dir, ..EngineOptions::default() }).unwrap();
        assert_eq!(rest(&session(&engine).generate(greedy(8)).unwrap()), expected(8));
        let work = engine.counters().unwrap();
        assert!(work.dispatches > 0 && work.submits > 0 && work.bytes > 0);
        (work.tested_kernels, work.compiled_kernels)
    };
    let (tested, compiled) = start();
    assert!(tested > 0 && compiled > 0);
    assert_eq!(start(), (0, 0));
}

#[test]
fn an_engine_tells_what_it_is() {
    let engine = engine();
    assert_eq!(engine.context().unwrap(), CONTEXT);
    assert!(engine.device().unwrap().contains("Vulkan"), "{:?}", engine.device());
    assert!(engine.trains().unwrap() && engine.device_bytes().unwrap() > 0);
    assert!(engine.fingerprint().unwrap().starts_with("epiphyte.base."));
}

/// An archive that holds the model as it is, from an odd byte on.
fn archive() -> (tempfile::NamedTempFile, i64, i64) {
    let model = std::fs::read(golden("tiny_llama.gguf")).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[b"PK\x03\x04".as_slice(), &[7; 12_345], &model, b"the rest"].concat())
        .unwrap();
    (file, 12_349, model.len() as i64)
}

fn answers_as_the_runtime(source: ModelSource) {
    let engine = block_on(Engine::open(source, EngineOptions::default(), None, None)).unwrap();
    let answer = session(&engine).generate(greedy(8)).unwrap();
    assert_eq!(rest(&answer), expected(8));
}

#[test]
fn a_model_is_read_from_a_part_of_a_file() {
    let (archive, offset, length) = archive();
    let path = text(archive.path());
    answers_as_the_runtime(ModelSource::Part { path, offset, length: Some(length) });
}

#[test]
fn a_model_is_read_from_a_descriptor_that_is_closed_afterwards() {
    let (archive, offset, length) = archive();
    let file = File::open(archive.path()).unwrap();
    let fd = file.as_raw_fd();
    let source = ModelSource::Descriptor { fd, offset, length: Some(length) };
    let engine = block_on(Engine::open(source, EngineOptions::default(), None, None)).unwrap();
    drop((file, archive));
    let answer = session(&engine).generate(greedy(8)).unwrap();
    assert_eq!(rest(&answer), expected(8));
}

#[test]
fn a_part_that_is_not_there_is_refused() {
    let (archive, offset, length) = archive();
    let path = text(archive.path());
    let source = |offset, length| ModelSource::Part { path: path.clone(), offset, length };
    let error = |source| block_on(Engine::open(source, EngineOptions::default(), None, None)).err();
    for source in [source(offset, Some(length + 9)), source(i64::MAX, None)] {
        let error = error(source);
        assert!(matches!(error, Some(EpiphyteError::InvalidFile { .. })), "{error:?}");
    }
    for source in [source(-1, None), source(0, Some(-1))] {
        let error = error(source);
        assert!(matches!(error, Some(EpiphyteError::InvalidArgument { .. })), "{error:?}");
    }
    for fd in [-1, -7, i32::MAX] {
        let error = error(ModelSource::Descriptor { fd, offset: 0, length: None });
        assert!(matches!(error, Some(EpiphyteError::Io { .. })), "{error:?}");
    }
    // Not where the model begins.
    let error = error(source(offset + 1, None));
    assert!(matches!(error, Some(EpiphyteError::InvalidFile { .. })), "{error:?}");
}

/// As uniffi reports what an app's own class threw.
struct Throws;

impl LoadListener for Throws {
    fn on_progress(&self, _: LoadProgress) -> Result<(), EpiphyteError> {
        Err(uniffi::UnexpectedUniFFICallbackError::new("java.lang.IllegalStateException").into())
    }
}

#[test]
fn a_listener_that_throws_stops_opening() {
    let options = EngineOptions::default();
    let opened = block_on(Engine::open(tiny(), options, Some(Arc::new(Throws)), None));
    match opened.err() {
        Some(error @ EpiphyteError::Callback { .. }) => {
            assert!(error.message().contains("IllegalStateException"));
        }
        other => panic!("{other:?}"),
    }
}

/// Stops it at the first word of the self-test.
struct Stops(Arc<CancelToken>, Heard);

impl LoadListener for Stops {
    fn on_progress(&self, progress: LoadProgress) -> Result<(), EpiphyteError> {
        self.0.cancel();
        self.1.on_progress(progress)
    }
}

#[test]
fn a_token_stops_opening() {
    let cancel = CancelToken::new();
    let listener = Arc::new(Stops(Arc::clone(&cancel), Heard::default()));
    let options = EngineOptions { cache_dir: Some(String::new()), ..EngineOptions::default() };
    let heard = Arc::<Stops>::clone(&listener);
    let opened = block_on(Engine::open(tiny(), options, Some(heard), Some(cancel)));
    let error = opened.err();
    assert!(matches!(error, Some(EpiphyteError::Cancelled { .. })), "{error:?}");
    assert_eq!(listener.1.0.lock().unwrap().len(), 1);
}

#[test]
fn opening_stops_when_nobody_waits_for_it() {
    let heard = Arc::new(Heard::default());
    let options = EngineOptions { cache_dir: Some(String::new()), ..EngineOptions::default() };
    let mut open = Box::pin(Engine::open(tiny(), options, Some(Arc::<Heard>::clone(&heard)), None));
    assert!(open.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let until = |done: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it goes on");
            thread::sleep(Duration::from_millis(1));
        }
    };
    until(&|| !heard.0.lock().unwrap().is_empty());
    drop(open);
    // The thread has let go of the listener.
    until(&|| Arc::strong_count(&heard) == 1);
    let heard = heard.0.lock().unwrap();
    let last = heard.last().unwrap();
    assert!(last.phase == LoadPhase::SelfTest && last.done < last.total, "{last:?}");
}
