//! Training: examples in memory and from files, progress, pause, stop, and going on.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use epiphyte_bindings::{
    AdapterSource, Engine, EpiphyteError, Example, Message, TrainData, TrainDuration, TrainEnd,
    TrainListener, TrainOptions, TrainOutcome, TrainPhase, TrainProgress, Trainer,
};
use pollster::block_on;

use super::{engine, examples, text};

fn options(folder: &std::path::Path, steps: i64) -> TrainOptions {
    TrainOptions {
        duration: Some(TrainDuration::Steps { steps }),
        rank: Some(4),
        seq_len: Some(64),
        batch_size: Some(2),
        checkpoint_every: Some(2),
        ..TrainOptions::new(text(folder), examples(6))
    }
}

fn run(
    engine: &Engine,
    options: TrainOptions,
    listener: Option<Arc<dyn TrainListener>>,
) -> Result<TrainOutcome, EpiphyteError> {
    block_on(engine.trainer(options).unwrap().run(listener))
}

#[derive(Default)]
struct Heard {
    progress: Mutex<Vec<TrainProgress>>,
    /// Told to stop after this many steps.
    stop: Option<(i64, Mutex<Option<Arc<Trainer>>>)>,
}

impl Heard {
    fn stopping(step: i64, trainer: &Arc<Trainer>) -> Arc<Self> {
        let stop = Some((step, Mutex::new(Some(Arc::clone(trainer)))));
        Arc::new(Self { stop, ..Self::default() })
    }

    fn steps(&self) -> Vec<i64> {
        let heard = self.progress.lock().unwrap();
        heard.iter().filter(|p| p.phase == TrainPhase::Step).map(|p| p.step).collect()
    }
}

impl TrainListener for Heard {
    fn on_progress(&self, progress: TrainProgress) -> Result<(), EpiphyteError> {
        if let Some((step, trainer)) = &self.stop
            && progress.phase == TrainPhase::Step
            && progress.step == *step
        {
            trainer.lock().unwrap().as_ref().unwrap().stop();
        }
        self.progress.lock().unwrap().push(progress);
        Ok(())
    }
}

fn adapter(folder: &std::path::Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn five_steps_make_an_adapter_that_loads() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("run");
    let heard = Arc::new(Heard::default());
    let outcome = run(&engine, options(&folder, 5), Some(Arc::<Heard>::clone(&heard))).unwrap();
    assert_eq!((outcome.end, outcome.steps, outcome.total_steps), (TrainEnd::Finished, 5, 5));
    assert_eq!((outcome.resumed_from, outcome.data.records), (None, 6));
    assert!(outcome.loss.last < outcome.loss.first, "{:?}", outcome.loss);
    assert_eq!(heard.steps(), [1, 2, 3, 4, 5]);
    let source = AdapterSource::Path { path: outcome.folder };
    block_on(engine.load_adapter("learnt".into(), source)).unwrap();
    assert!(block_on(engine.probe_adapter("learnt".into(), "the sea is 1".into())).is_ok());
}

#[test]
fn a_run_that_is_stopped_goes_on_to_the_same_bits() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    run(&engine, options(&whole, 6), None).unwrap();
    let trainer = engine.trainer(options(&parts, 6)).unwrap();
    let heard = Heard::stopping(3, &trainer);
    let outcome = block_on(trainer.run(Some(Arc::<Heard>::clone(&heard)))).unwrap();
    *heard.stop.as_ref().unwrap().1.lock().unwrap() = None;
    assert_eq!((outcome.end, outcome.steps), (TrainEnd::Interrupted, 3));
    // The same trainer, and then another one as after a start of the app.
    let outcome = block_on(trainer.run(None)).unwrap();
    assert_eq!((outcome.end, outcome.resumed_from), (TrainEnd::Finished, Some(3)));
    assert!(adapter(&whole) == adapter(&parts), "bit by bit");
    let again = run(&engine, options(&parts, 6), None).unwrap();
    assert_eq!((again.end, again.steps), (TrainEnd::Finished, 6));
}

#[test]
fn a_stop_before_the_start_is_not_lost() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let trainer = engine.trainer(options(&dir.path().join("run"), 4)).unwrap();
    trainer.stop();
    let outcome = block_on(trainer.run(None)).unwrap();
    assert_eq!((outcome.end, outcome.steps), (TrainEnd::Interrupted, 0));
    assert_eq!(block_on(trainer.run(None)).unwrap().end, TrainEnd::Finished);
}

#[test]
fn a_run_waits_while_it_is_paused() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let trainer = engine.trainer(options(&dir.path().join("run"), 4)).unwrap();
    trainer.pause();
    assert!(trainer.is_paused() && !trainer.is_running());
    let heard = Arc::new(Heard::default());
    let thread = {
        let (trainer, heard) = (Arc::clone(&trainer), Arc::clone(&heard));
        thread::spawn(move || block_on(trainer.run(Some(heard))))
    };
    while !heard.progress.lock().unwrap().iter().any(|p| p.phase == TrainPhase::Paused) {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(trainer.is_running() && heard.steps().is_empty());
    let busy = block_on(trainer.run(None));
    assert!(matches!(busy, Err(EpiphyteError::Busy { .. })), "{busy:?}");
    trainer.resume();
    assert_eq!(thread.join().unwrap().unwrap().end, TrainEnd::Finished);
    assert_eq!(heard.steps(), [1, 2, 3, 4]);
}

/// What a cancelled coroutine does.
#[test]
fn a_run_whose_caller_goes_away_stops_with_a_checkpoint() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("run");
    let trainer = engine.trainer(options(&folder, 500)).unwrap();
    let heard = Arc::new(Heard::default());
    let mut future = Box::pin(trainer.run(Some(Arc::<Heard>::clone(&heard))));
    let waker = std::task::Waker::noop();
    let polled = future.as_mut().poll(&mut std::task::Context::from_waker(waker));
    assert!(polled.is_pending());
    while heard.steps().len() < 2 {
        thread::sleep(Duration::from_millis(5));
    }
    drop(future);
    while trainer.is_running() {
        thread::sleep(Duration::from_millis(5));
    }
    let steps = heard.steps().len() as i64;
    assert!(steps < 500);
    trainer.stop();
    let outcome = block_on(trainer.run(None)).unwrap();
    assert_eq!(outcome.resumed_from, Some(steps));
}

struct Throws;

impl TrainListener for Throws {
    fn on_progress(&self, _: TrainProgress) -> Result<(), EpiphyteError> {
        Err(uniffi::UnexpectedUniFFICallbackError::new("Boom").into())
    }
}

#[test]
fn a_listener_that_throws_stops_the_run() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("run");
    let thrown = run(&engine, options(&folder, 4), Some(Arc::new(Throws)));
    assert!(matches!(thrown, Err(EpiphyteError::Callback { .. })), "{thrown:?}");
    assert_eq!(run(&engine, options(&folder, 4), None).unwrap().end, TrainEnd::Finished);
}

#[test]
fn chats_and_files_are_learnt_from() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let chat = Example::Chat {
        messages: vec![Message::new("user", "the sea"), Message::new("assistant", "is blue")],
    };
    let data =
        TrainData::Examples { examples: vec![chat, Example::Text { text: "a moon".into() }] };
    let folder = dir.path().join("chats");
    let with = |data, folder: &std::path::Path| TrainOptions { data, ..options(folder, 2) };
    assert_eq!(run(&engine, with(data, &folder), None).unwrap().data.records, 2);
    let file = dir.path().join("data.jsonl");
    let line = r#"{"prompt": "the sea", "completion": " is blue"}"#;
    std::fs::write(&file, format!("{line}\n{{\"prompt\": \"\\ud800\", \"completion\": 1}}\n"))
        .unwrap();
    let data = TrainData::Jsonl { path: text(&file) };
    let folder = dir.path().join("file");
    let error = run(&engine, with(data.clone(), &folder), None);
    match error {
        Err(EpiphyteError::InvalidFile { text, .. }) => assert!(text.contains("line 2"), "{text}"),
        other => panic!("{other:?}"),
    }
    let options = TrainOptions { skip_bad: true, ..with(data, &folder) };
    let data = run(&engine, options, None).unwrap().data;
    assert_eq!((data.records, data.skipped), (1, 1));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let mut number = 0;
    let mut refused = |change: &dyn Fn(&mut TrainOptions)| {
        number += 1;
        let mut options = options(&dir.path().join(number.to_string()), 2);
        change(&mut options);
        run(&engine, options, None).unwrap_err()
    };
    let argument = |error| match error {
        EpiphyteError::InvalidArgument { name, .. } => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(refused(&|o| o.rank = Some(-1))), "rank");
    assert_eq!(argument(refused(&|o| o.learning_rate = Some(f64::NAN))), "learning_rate");
    assert_eq!(argument(refused(&|o| o.target_modules = Some(vec!["all".into()]))), "targets");
    assert_eq!(argument(refused(&|o| o.seq_len = Some(100_000))), "seq_len");
    assert_eq!(argument(refused(&|o| o.folder = text(super::golden("tiny_llama.gguf")))), "out");
    let empty = TrainData::Examples { examples: Vec::new() };
    let error = refused(&|o| o.data = empty.clone());
    assert!(matches!(error, EpiphyteError::InvalidFile { .. }), "{error:?}");
    let error = refused(&|o| o.data = TrainData::Jsonl { path: "/no/such.jsonl".into() });
    assert!(matches!(error, EpiphyteError::Io { .. }), "{error:?}");
    let error = refused(&|o| o.init = Some("/no/such".into()));
    assert!(matches!(error, EpiphyteError::Io { .. }), "{error:?}");
}
