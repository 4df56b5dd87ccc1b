//! Texts' vectors: the head turns a last state into the logits that the model gives.

use std::sync::Arc;

use epiphyte::adapter::{ModulePath, Target};
use epiphyte::classify::{Features, Pooling};
use epiphyte::engine::EmbedOptions;
use epiphyte::format::gguf::Gguf;
use epiphyte::{CancelToken, Engine, Error, Session};

use super::reference::Reference;
use super::{logits, tiers};
use crate::common::{Random, golden};

fn vector(session: &mut Session, pooling: Pooling, normalize: bool) -> Vec<f32> {
    let features = Features { pooling, normalize };
    session.embed(&EmbedOptions { features, ..EmbedOptions::default() }).unwrap()
}

fn of(engine: &Arc<Engine>, ids: &[u32], pooling: Pooling) -> Vec<f32> {
    let mut session = engine.session();
    session.push_tokens(ids).unwrap();
    vector(&mut session, pooling, false)
}

fn ids(len: usize) -> Vec<u32> {
    let mut random = Random::new(len as u64);
    (0..len).map(|_| 3 + random.below(285)).collect()
}

fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let off =
        found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
    assert!(found.len() == expected.len() && off <= 2e-3 * largest, "{what}: {off} of {largest}");
}

#[test]
fn a_last_state_is_what_the_head_makes_logits_of() {
    let path = golden("tiny_llama.gguf");
    let mut reference = Reference::new(&Gguf::open(&path).unwrap());
    let head = reference.weights(ModulePath { layer: None, target: Target::LmHead }).to_vec();
    for (tier, options) in tiers() {
        let engine = Engine::open(&path, options).unwrap();
        // Few rows, many, and more than one pass.
        for len in [1, 5, 40, 150] {
            let ids = ids(len);
            let state = of(&engine, &ids, Pooling::Last);
            let rows = head.chunks_exact(state.len());
            let product =
                |row: &[f64]| row.iter().zip(&state).map(|(w, x)| w * f64::from(*x)).sum();
            let expected: Vec<f64> = rows.map(product).collect();
            let found = logits(&engine, &ids, &[len]).pop().unwrap();
            assert_near(&found, &expected, &format!("{tier}, {len} tokens"));
        }
    }
}

#[test]
fn a_mean_is_that_of_the_last_states_of_all_beginnings() {
    let engine = Engine::open(golden("tiny_llama.gguf"), tiers()[1].1.clone()).unwrap();
    let ids = ids(70);
    let mut mean = vec![0.0; of(&engine, &ids, Pooling::Last).len()];
    for end in 1..=ids.len() {
        let state = of(&engine, &ids[..end], Pooling::Last);
        mean.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(x) / ids.len() as f64);
    }
    assert_near(&of(&engine, &ids, Pooling::Mean), &mean, "mean");
}

#[test]
fn a_vector_is_the_same_again_and_of_length_one_if_asked_for() {
    let engine = Engine::open(golden("tiny_llama.gguf"), tiers()[0].1.clone()).unwrap();
    let mut session = engine.session();
    session.push_tokens(&ids(40)).unwrap();
    let first = vector(&mut session, Pooling::Mean, false);
    assert_eq!(first, vector(&mut session, Pooling::Mean, false));
    assert_eq!(session.tokens().len(), 40);
    let unit = vector(&mut session, Pooling::Mean, true);
    let length = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert!((length(&unit) - 1.0).abs() < 1e-6);
    let scaled: Vec<f64> = first.iter().map(|x| f64::from(*x) / length(&first)).collect();
    assert_near(&unit, &scaled, "of length 1");
    // And the session goes on as if nothing had been.
    let expected = logits(&engine, &ids(40), &[40]).pop().unwrap();
    let mut found = Vec::new();
    session.truncate(39);
    session.push_tokens(&ids(40)[39..]).unwrap();
    session.logits(39, |_, logits| found = logits.to_vec()).unwrap();
    assert_near(&found, &expected.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), "logits");

    let empty = engine.session().embed(&EmbedOptions::default());
    assert!(matches!(empty, Err(Error::InvalidArgument { name: "session", .. })), "{empty:?}");
    let cancel = CancelToken::default();
    cancel.cancel();
    let cancelled = session.embed(&EmbedOptions { cancel, ..EmbedOptions::default() });
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
}
