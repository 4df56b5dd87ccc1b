//! Closed handles, closing under load, and that nothing is left behind.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use epiphyte_bindings::{
    AdapterSource, BatchSequence, EpiphyteError, KvPolicy, PromptOptions, TrainData, TrainOptions,
};
use pollster::block_on;

use super::{PROMPT, SHARED, engine, greedy, session};

fn is_closed<T>(result: Result<T, EpiphyteError>) -> bool {
    matches!(result, Err(EpiphyteError::Closed { .. }))
}

#[test]
fn a_closed_session_says_so() {
    let session = session(&SHARED);
    session.close();
    session.close();
    assert!(is_closed(block_on(session.push_text(PROMPT.into()))));
    assert!(is_closed(block_on(session.set_messages(Vec::new()))));
    assert!(is_closed(block_on(session.set_prompt(Vec::new(), PromptOptions::default()))));
    assert!(is_closed(block_on(session.tokens())));
    assert!(is_closed(block_on(session.push_tokens(Vec::new()))));
    assert!(is_closed(block_on(session.truncate(0))));
    assert!(is_closed(session.generate(greedy(1))));
    assert!(is_closed(block_on(session.set_adapters(Vec::new(), KvPolicy::Keep))));
    assert!(is_closed(block_on(session.adapters())));
    assert!(is_closed(block_on(session.fork())));
    assert!(is_closed(block_on(session.save("/tmp/none".into()))));
    let sequence = BatchSequence { session, options: greedy(1) };
    assert!(is_closed(SHARED.batch(vec![sequence])));
}

#[test]
fn a_closed_engine_says_so_and_closes_its_sessions() {
    let engine = engine();
    let (session, other) = (session(&engine), session(&engine));
    let fork = block_on(session.fork()).unwrap();
    let answer = other.generate(greedy(200)).unwrap();
    block_on(answer.next()).unwrap().unwrap();
    let options = TrainOptions::new("/tmp/none", TrainData::Examples { examples: Vec::new() });
    let trainer = engine.trainer(options.clone()).unwrap();
    engine.close();
    engine.close();
    block_on(engine.closed());
    assert!(is_closed(engine.session()));
    assert!(is_closed(block_on(engine.restore("/tmp/none".into()))));
    let source = AdapterSource::Gguf { bytes: Vec::new() };
    assert!(is_closed(block_on(engine.load_adapter("a".into(), source))));
    assert!(is_closed(block_on(engine.unload_adapter("a".into()))));
    assert!(is_closed(block_on(engine.adapters())));
    assert!(is_closed(block_on(engine.adapter_report("a".into()))));
    assert!(is_closed(block_on(engine.probe_adapter("a".into(), PROMPT.into()))));
    assert!(is_closed(block_on(engine.count_tokens(PROMPT.into()))));
    assert!(is_closed(block_on(engine.render_chat(Vec::new(), PromptOptions::default()))));
    assert!(is_closed(engine.batch(Vec::new())));
    assert!(is_closed(engine.trainer(options)));
    assert!(is_closed(engine.context()) && is_closed(engine.device()));
    assert!(is_closed(engine.device_bytes()) && is_closed(engine.fingerprint()));
    assert!(is_closed(engine.trains()) && is_closed(engine.counters()));
    for session in [&session, &fork, &other] {
        assert!(is_closed(block_on(session.push_text(PROMPT.into()))));
    }
    assert!(is_closed(block_on(answer.next())));
    assert_eq!(block_on(answer.next()), Ok(None), "said once");
    assert!(is_closed(block_on(trainer.run(None))));
}

/// Whatever runs ends; nothing hangs, and the memory goes.
#[test]
fn closing_under_load_ends_everything() {
    for delay in [0, 5, 20, 60] {
        let engine = engine();
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || {
                    loop {
                        let Ok(session) = engine.session() else { return };
                        let pushed = block_on(session.push_text(PROMPT.repeat(1 + i)));
                        let Ok(answer) = pushed.and_then(|()| session.generate(greedy(40))) else {
                            return;
                        };
                        loop {
                            match block_on(answer.next()) {
                                Ok(Some(_)) => {}
                                Ok(None) => break,
                                Err(error) => {
                                    assert!(is_closed::<()>(Err(error)));
                                    return;
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(delay));
        engine.close();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        block_on(engine.closed());
    }
}

#[test]
fn an_engine_that_is_dropped_is_closed() {
    let engine = engine();
    let session = session(&engine);
    let answer = session.generate(greedy(4)).unwrap();
    drop(engine);
    while let Ok(Some(_)) = block_on(answer.next()) {}
    assert!(is_closed(block_on(session.tokens())));
}
