//! Training on a phone: the model makes room, the app goes to the background, the device is hot or
//! lost. "The same" is bit by bit.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use epiphyte::engine::plan::Class;
use epiphyte::engine::{MemoryLevel, ThermalState, TrainingPace};
use epiphyte::train::data::Validation;
use epiphyte::train::run::{End, TrainPhase, TrainProgress, ValidationData};
use epiphyte::train::{RunFolder, TrainControl, TrainRun, Trainer};
use epiphyte::{Engine, EngineOptions, Error};

use super::folder::given;
use super::runs::{assert_same, finish, six_steps, undisturbed};
use super::trainer::examples;
use crate::common::golden;
use crate::engine::lifecycle::{LEVELS, bytes, disturbed};

fn engine() -> Arc<Engine> {
    let options = EngineOptions { skip_self_test: true, ..EngineOptions::default() };
    Engine::open(golden("tiny_llama.gguf"), options).unwrap()
}

#[test]
fn each_level_between_two_steps_keeps_the_run() {
    let data = examples(41, 9);
    let whole = undisturbed(&data);
    for level in LEVELS {
        let engine = engine();
        let mut trainer = Trainer::new(&engine, Arc::clone(&data), six_steps(), None).unwrap();
        for step in 0.. {
            let gradients = bytes(&engine, Class::Gradients);
            let moments = bytes(&engine, Class::OptimizerStates);
            let report = engine.memory_pressure(level);
            let complete = level == MemoryLevel::Complete;
            assert_eq!(report.model_left, !complete);
            assert_eq!(report.freed_of(Class::Gradients), if complete { gradients } else { 0 });
            assert_eq!(bytes(&engine, Class::OptimizerStates), moments, "moments stay");
            assert!(moments > 0 && (step == 0 || gradients > 0));
            if trainer.step().unwrap().is_none() {
                break;
            }
        }
        assert_same(&whole, &trainer.adapter().unwrap(), &format!("{level:?}"));
    }
}

#[test]
fn pressure_from_another_thread_keeps_the_run() {
    let (data, engine) = (examples(42, 9), engine());
    let whole = undisturbed(&data);
    let (times, adapter) = disturbed(
        |time| drop(engine.memory_pressure(LEVELS[3 - time % 4])),
        || finish(&mut Trainer::new(&engine, Arc::clone(&data), six_steps(), None).unwrap()),
    );
    println!("memory was asked for {times} times, {} reloads", engine.state().reloads);
    assert!(times > 3 && engine.state().reloads > 0, "{times}");
    assert_same(&whole, &adapter, "disturbed");
}

#[test]
fn a_step_in_the_background_is_refused_and_taken_again() {
    let (data, engine) = (examples(43, 9), engine());
    let whole = undisturbed(&data);
    let mut trainer = Trainer::new(&engine, Arc::clone(&data), six_steps(), None).unwrap();
    let submits = || engine.gpu().counters.submits.load(Ordering::Relaxed);
    let (mut done, mut refused) = (false, 0);
    for wait in 0.. {
        let before = trainer.cursor();
        let taken = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(wait % 7 * 3));
                engine.background();
                let before = submits();
                thread::sleep(Duration::from_millis(10));
                assert_eq!(submits(), before, "nothing is submitted in the background");
            });
            trainer.step()
        });
        match taken {
            Err(Error::Background) => {
                refused += 1;
                assert_eq!(trainer.cursor(), before);
                assert!(matches!(trainer.adapter(), Err(Error::Background)));
            }
            taken => done = taken.unwrap().is_none(),
        }
        engine.foreground();
        if done {
            break;
        }
        // Not every step can be in time on a slow machine.
        if wait > 40 {
            finish(&mut trainer);
            break;
        }
    }
    println!("{refused} steps were refused");
    assert!(refused > 0);
    assert_same(&whole, &trainer.adapter().unwrap(), "with steps that were refused");
}

/// A run of six steps with a checkpoint every other one.
fn run(engine: &Arc<Engine>, dir: &Path, out: &str) -> TrainRun {
    let mut options = given(dir);
    options.checkpoint_every = 2;
    options.validation = Some(ValidationData::Part(Validation::Count(2)));
    options.evaluate_every = Some(2);
    TrainRun::open(engine, RunFolder::open(dir.join(out)).unwrap(), options).unwrap()
}

/// Adapter, log and losses of a run that was not disturbed.
fn left(run: &TrainRun) -> [Vec<u8>; 2] {
    let log = std::fs::read_to_string(run.folder().path().join("checkpoints/steps.jsonl")).unwrap();
    // How long a step took is another each time.
    let steps = log.lines().map(|line| {
        let mut step: serde_json::Value = serde_json::from_str(line).unwrap();
        step.as_object_mut().unwrap().remove("seconds");
        step.to_string()
    });
    let adapter = run.folder().path().join("adapter_model.safetensors");
    [std::fs::read(adapter).unwrap(), steps.collect::<Vec<_>>().join("\n").into_bytes()]
}

#[test]
fn a_run_waits_in_the_background_and_in_the_heat() {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine());
    let mut whole = run(&engine, dir.path(), "whole");
    whole.run(&TrainControl::default(), &mut |_| {}).unwrap();
    let mut disturbed = run(&engine, dir.path(), "disturbed");
    let (told, heard) = mpsc::channel();
    let other = Arc::clone(&engine);
    let waker = thread::spawn(move || {
        for step in heard {
            thread::sleep(Duration::from_millis(30));
            assert_eq!(other.state().training, TrainingPace::Paused, "after step {step}");
            other.foreground();
            other.thermal(ThermalState::Fair);
        }
    });
    let mut phases = Vec::new();
    let outcome = disturbed
        .run(&TrainControl::default(), &mut |progress| {
            phases.push((progress.phase, progress.step));
            match (progress.phase, progress.step) {
                (TrainPhase::Step, 1) => engine.background(),
                // Validation and a checkpoint wait, too.
                (TrainPhase::Validating, 2) => {
                    engine.background();
                    told.send(2).unwrap();
                }
                (TrainPhase::Saving, 4) => {
                    engine.background();
                    told.send(4).unwrap();
                }
                (TrainPhase::Step, 5) => engine.thermal(ThermalState::Serious),
                (TrainPhase::Paused, step) => told.send(step).unwrap(),
                _ => {}
            }
        })
        .unwrap();
    drop(told);
    waker.join().unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 6));
    let waits: Vec<u64> = phases
        .iter()
        .filter(|(phase, _)| *phase == TrainPhase::Paused)
        .map(|(_, step)| *step)
        .collect();
    assert_eq!(waits, [1, 5]);
    assert!(left(&disturbed) == left(&whole), "what is left is the same");
}

#[test]
fn a_hot_device_is_trained_on_half_of_the_time() {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine());
    let timed = |out: &str| {
        let mut run = run(&engine, dir.path(), out);
        let mut steps = Vec::new();
        let mut listener = |progress: &TrainProgress<'_>| {
            if progress.phase == TrainPhase::Step {
                steps.push(Instant::now());
            }
        };
        run.run(&TrainControl::default(), &mut listener).unwrap();
        (left(&run), steps)
    };
    let (whole, _) = timed("cool");
    engine.thermal(ThermalState::Fair);
    let (hot, steps) = timed("hot");
    assert!(hot == whole, "what is left is the same");
    // From one step's end to the next there is a rest as long as the first took.
    let log = std::fs::read_to_string(dir.path().join("hot/checkpoints/steps.jsonl")).unwrap();
    let took = log.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["seconds"].as_f64().unwrap()
    });
    let took: Vec<f64> = took.collect();
    for (i, pair) in steps.windows(2).enumerate() {
        let between = (pair[1] - pair[0]).as_secs_f64();
        assert!(between >= took[i] + took[i + 1], "{between} s between steps of {took:?}");
    }
}

#[test]
fn a_run_that_is_stopped_in_the_background_goes_on_from_its_last_checkpoint() {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine());
    let mut whole = run(&engine, dir.path(), "whole");
    whole.run(&TrainControl::default(), &mut |_| {}).unwrap();
    let (mut stopped, control) = (run(&engine, dir.path(), "out"), TrainControl::default());
    let outcome = stopped
        .run(&control, &mut |progress| match (progress.phase, progress.step) {
            (TrainPhase::Step, 3) => engine.background(),
            (TrainPhase::Paused, 3) => control.stop(),
            _ => {}
        })
        .unwrap();
    assert_eq!(outcome.end, End::Interrupted);
    drop(stopped);
    engine.foreground();
    let mut resumed = run(&engine, dir.path(), "out");
    assert_eq!(resumed.trainer().cursor().step, 2);
    resumed.run(&TrainControl::default(), &mut |_| {}).unwrap();
    assert!(left(&resumed) == left(&whole), "resumed");
}

#[test]
fn a_run_goes_on_from_its_last_checkpoint_when_the_device_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = run(&engine(), dir.path(), "whole");
    whole.run(&TrainControl::default(), &mut |_| {}).unwrap();
    let phases = [TrainPhase::Step, TrainPhase::Validating, TrainPhase::Saving];
    for (i, (phase, at)) in phases.into_iter().flat_map(|p| [(p, 2), (p, 4)]).enumerate() {
        let engine = engine();
        let mut run = run(&engine, dir.path(), &format!("lost-{i}"));
        let outcome = run.run(&TrainControl::default(), &mut |progress| {
            if (progress.phase, progress.step) == (phase, at) && engine.state().device_losses == 0 {
                engine.gpu().lose();
            }
        });
        assert_eq!(outcome.unwrap().end, End::Finished);
        assert_eq!(engine.state().device_losses, 1);
        assert!(left(&run) == left(&whole), "lost at {phase:?} of step {at}");
    }
}

#[test]
fn a_device_that_is_lost_twice_ends_a_run_and_leaves_its_checkpoints() {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine());
    let mut run = run(&engine, dir.path(), "out");
    let lost = run.run(&TrainControl::default(), &mut |progress| {
        if progress.phase == TrainPhase::Step && progress.step >= 3 {
            engine.gpu().lose();
        }
    });
    assert!(matches!(lost, Err(Error::DeviceLost(_))), "{lost:?}");
    drop(run);
    let again = self::engine();
    let mut resumed = self::run(&again, dir.path(), "out");
    assert_eq!(resumed.trainer().cursor().step, 2);
    resumed.run(&TrainControl::default(), &mut |_| {}).unwrap();
}
