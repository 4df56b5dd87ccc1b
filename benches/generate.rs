//! Prompt and decode of the default model, in tokens a second: `cargo bench --bench generate`.
//! `EPIPHYTE_TEST_MODEL` names another file.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::print_stdout, reason = "a benchmark says what it measured on, or why not")]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use epiphyte::{
    CancelToken, Engine, EngineOptions, GenerateOptions, Result, Sequence, Session, generate_batch,
};

use common::{MODEL_FILE, model_path};

const DECODED: usize = 32;

/// A session of `tokens` tokens that none before it began with: what is known would not be computed
/// again.
fn session(engine: &Arc<Engine>, tokens: usize, count: &mut u32) -> Result<Session> {
    let vocab = engine.base().tokenizer.vocab_size() as u32;
    *count += 1;
    let first = count.wrapping_mul(0x9E37_79B9);
    let ids = (0..tokens as u32)
        .map(|i| first.wrapping_add(i.wrapping_mul(7919)) % vocab)
        .collect::<Vec<_>>();
    let mut session = engine.session();
    session.push_tokens(&ids)?;
    Ok(session)
}

fn prefill(engine: &Arc<Engine>, mut session: Session) -> Result<()> {
    session.prefill(&CancelToken::default())?;
    engine.gpu().wait(None)
}

fn decode(mut sessions: Vec<Session>) -> Result<()> {
    let options = GenerateOptions {
        max_tokens: DECODED,
        ignore_eos: true,
        prompt_lookup_num_tokens: Some(0),
        ..Default::default()
    };
    let batch =
        sessions.iter_mut().map(|session| Sequence { session, options: options.clone() }).collect();
    generate_batch(batch, |_, _| ControlFlow::Continue(())).map(drop)
}

fn generate(c: &mut Criterion) {
    let Some(path) = model_path() else {
        println!("skipped: {MODEL_FILE} is not there; run `make model`");
        return;
    };
    let engine = Engine::open(path, EngineOptions::default()).expect("the model opens");
    let mut count = 0;
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10);
    for tokens in [128, 512] {
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(BenchmarkId::from_parameter(tokens), |b| {
            // The last token of a session waits for the first decode step, so there is one more.
            let setup = || session(&engine, tokens + 1, &mut count).expect("room for a session");
            b.iter_batched(
                setup,
                |session| prefill(&engine, session).expect("prefill"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    let mut group = c.benchmark_group("decode");
    group.sample_size(10);
    for sequences in [1, 4, 8] {
        group.throughput(Throughput::Elements((sequences * DECODED) as u64));
        group.bench_function(BenchmarkId::from_parameter(sequences), |b| {
            let setup = || {
                (0..sequences)
                    .map(|_| session(&engine, 1, &mut count).expect("room for it"))
                    .collect()
            };
            b.iter_batched(
                setup,
                |sessions| decode(sessions).expect("decode"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, generate);
criterion_main!(benches);
