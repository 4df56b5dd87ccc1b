//! What is opened and closed a thousand times leaves nothing behind. The C library counts what the
//! whole process holds, the driver included, so each test is a process of its own.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use epiphyte_bindings::{Engine, EngineOptions, GenerateOptions, ModelSource};
use pollster::block_on;

/// Each thread's cache of freed blocks counts as in use, up to 230 KiB a thread: none is kept.
const NO_CACHE: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");

/// Runs this binary's test `name` by itself, without the allocator's caches. Says whether it did:
/// in that process the test itself is to run.
fn ran_alone(name: &str) -> bool {
    if std::env::var(NO_CACHE.0).is_ok_and(|tunables| tunables == NO_CACHE.1) {
        return false;
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", name, "--nocapture"]).env(NO_CACHE.0, NO_CACHE.1);
    assert!(test.status().unwrap().success(), "{name} by itself");
    true
}

fn open() -> Arc<Engine> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny_llama.gguf");
    let source = ModelSource::Path { path: path.to_str().unwrap().into() };
    block_on(Engine::open(source, EngineOptions::default(), None, None)).unwrap()
}

fn answer(engine: &Engine) {
    let session = engine.session().unwrap();
    block_on(session.push_text("the sea".into())).unwrap();
    let answer = session
        .generate(GenerateOptions { max_tokens: 2, ignore_eos: true, ..Default::default() })
        .unwrap();
    while block_on(answer.next()).unwrap().is_some() {}
    assert_eq!(answer.stats().generated_tokens, 2);
    session.close();
}

/// Bytes that are allocated and not freed.
fn heap_bytes() -> usize {
    // SAFETY: it takes nothing and reads the allocator's counters.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Threads that have not ended yet.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// More than what one thread holds that has not ended yet (35 KB were seen).
const THREAD: usize = 64 << 10;

/// Runs `cycle` `times` after as many to warm up, and says what is left of them.
fn left(what: &str, times: usize, cycle: impl Fn()) -> usize {
    (0..times / 5).for_each(|_| cycle());
    let (heap, before) = (heap_bytes(), threads());
    (0..times).for_each(|_| cycle());
    let left = heap_bytes().saturating_sub(heap);
    println!("{times} {what}: {left} bytes and {} threads left", threads().saturating_sub(before));
    assert!(threads() <= before + 1, "threads are used again");
    left
}

#[test]
fn a_thousand_sessions_leave_nothing() {
    if ran_alone("a_thousand_sessions_leave_nothing") {
        return;
    }
    let engine = open();
    answer(&engine);
    let device = engine.device_bytes().unwrap();
    let left = left("sessions", 1000, || answer(&engine));
    // Whoever heard of an answer's end finds free what it took.
    assert_eq!(engine.device_bytes().unwrap(), device);
    assert!(left < THREAD, "{left} bytes are left");
}

#[test]
fn fifty_engines_leave_nothing() {
    if ran_alone("fifty_engines_leave_nothing") {
        return;
    }
    let left = left("engines", 50, || {
        let engine = open();
        answer(&engine);
        engine.close();
        block_on(engine.closed());
    });
    assert!(left < THREAD, "{left} bytes are left");
}
