//! What a decoded token costs.

use std::sync::atomic::Ordering;

use epiphyte::base::layout::SiteKind;
use epiphyte::{EngineOptions, GenerateOptions, GpuOptions, Sampling};

use super::{PAGE, VOCAB, dispatches, greedy, open, prompt, session};

/// Per layer: q k v in three formats, rope and cache, attention, o, norm, gate and up in two,
/// SwiGLU, down; per token: embedding, head, the two sampling kernels that greedy needs.
const DISPATCHES: u64 = 2 * (3 + 1 + 1 + 1 + 1 + 2 + 1 + 1) + 4;

#[test]
fn a_token_is_one_submission_and_allocates_nothing() {
    for (immediates, sampling, more) in [
        (true, Sampling::default(), 0),
        (false, Sampling::default(), 0),
        (
            true,
            Sampling {
                temperature: 1.0,
                top_p: 0.9,
                repetition_penalty: 1.1,
                ..Sampling::default()
            },
            // The penalty, and the passes of the threshold.
            1 + 7,
        ),
    ] {
        let gpu = GpuOptions { immediates, ..GpuOptions::default() };
        let engine = open(EngineOptions { gpu, ..EngineOptions::default() });
        let counters = &engine.gpu().counters;
        let mut session = session(&engine, &prompt(1, 10));
        // The first one allocates its readbacks and compiles.
        let options = GenerateOptions { sampling, prompt_lookup_num_tokens: Some(0), ..greedy(50) };
        let mut generation = session.generate(options).unwrap();
        generation.next().unwrap().unwrap();
        let (allocated, submits, dispatched) = (
            engine.gpu().allocated_bytes(),
            counters.submits.load(Ordering::Relaxed),
            dispatches(&engine),
        );
        let ahead = 2; // submitted already
        let mut tokens = 0;
        for token in generation.by_ref() {
            token.unwrap();
            tokens += 1;
            assert_eq!(engine.gpu().allocated_bytes(), allocated, "after {tokens} tokens");
        }
        assert_eq!(tokens, 49);
        assert_eq!(
            counters.submits.load(Ordering::Relaxed) - submits,
            tokens - ahead,
            "submissions"
        );
        assert_eq!(
            dispatches(&engine) - dispatched,
            (tokens - ahead) * (DISPATCHES + more),
            "dispatches"
        );
    }
}

#[test]
fn a_token_reads_the_weights_once_and_the_cache_so_far() {
    let engine = open(EngineOptions::default());
    let bytes = || engine.gpu().counters.bytes.load(Ordering::Relaxed);
    let weights = engine.weights().unwrap();
    let layers = weights.layers.iter().flat_map(|l| SiteKind::IN_LAYER.map(|kind| l.linear(kind)));
    let all: u64 = layers.chain([weights.head()]).map(|linear| linear.bytes()).sum();
    let cost = |len: usize| {
        let mut session = session(&engine, &prompt(2, len));
        super::prefill(&mut session);
        let before = bytes();
        super::generate(&mut session, greedy(1));
        bytes() - before
    };
    let element = if engine.gpu().caps().f16 { 2 } else { 4 };
    // Two layers, keys and values, two heads of 32; and the embedding's row may count.
    let cache = |len: u64| 2 * 2 * 2 * 32 * element * len;
    for len in [1, 40, 200] {
        let extra = cost(len as usize).checked_sub(all + cache(len)).unwrap();
        assert!(extra <= 256, "{extra} bytes too many after {len} tokens");
    }
}

#[test]
fn memory_is_given_back() {
    let engine = open(EngineOptions::default());
    let work = || {
        let mut session = session(&engine, &prompt(3, 3 * PAGE));
        super::generate(&mut session, greedy(5));
        session.logits(0, |_, logits| assert_eq!(logits.len(), VOCAB as usize)).unwrap();
    };
    work();
    let after_one = engine.gpu().allocated_bytes();
    for _ in 0..10 {
        work();
    }
    assert_eq!(engine.gpu().allocated_bytes(), after_one);
}
