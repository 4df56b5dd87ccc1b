//! Runs in a folder, as a program has them: paused and stopped from another thread, gone on with,
//! and heard of. What the command line shows of them is in `tests/cli`.

use std::path::Path;
use std::sync::mpsc;
use std::thread;

use epiphyte::Error;
use epiphyte::adapter::Adapter;
use epiphyte::train::data::TrainLength;
use epiphyte::train::run::{End, RunNote, TrainPhase};
use epiphyte::train::{RunFolder, RunOptions, TrainControl, TrainOptions, TrainRun};

use super::trainer::{ENGINE, options};

const STEPS: u64 = 6;

/// A run over a few lines of text.
pub(super) fn given(folder: &Path) -> RunOptions {
    let data = folder.join("data.jsonl");
    let line = |i: u32| format!("{{\"text\": \"the {i} and the {} of it\"}}\n", i * 7 % 10);
    std::fs::write(&data, (0..12).map(line).collect::<String>()).unwrap();
    let mut given = RunOptions::new(data);
    given.train = TrainOptions { duration: TrainLength::Steps(STEPS), batch_size: 4, ..options() };
    given
}

fn open(dir: &Path, out: &str) -> TrainRun {
    let folder = RunFolder::open(dir.join(out)).unwrap();
    TrainRun::open(&ENGINE, folder, given(dir)).unwrap()
}

fn factors(folder: &Path) -> Vec<(Vec<f32>, Vec<f32>)> {
    let adapter = Adapter::load(folder, ENGINE.base().adapted()).unwrap();
    adapter.modules.into_iter().map(|module| (module.a, module.b)).collect()
}

#[test]
fn a_run_waits_and_stops_when_another_thread_says_so_and_goes_on_to_the_same_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let whole = open(dir.path(), "whole").run(&TrainControl::default(), &mut |_| {}).unwrap();
    assert_eq!((whole.end, whole.steps, whole.resumed_from), (End::Finished, STEPS, None));

    let (control, mut phases) = (TrainControl::default(), Vec::new());
    let (paused, told) = mpsc::channel();
    let other = control.clone();
    let waker = thread::spawn(move || {
        told.recv().unwrap();
        assert!(other.is_paused());
        other.resume();
    });
    let mut run = open(dir.path(), "out");
    let stopped = run
        .run(&control, &mut |progress| {
            phases.push((progress.phase, progress.step));
            match (progress.phase, progress.step) {
                (TrainPhase::Step, 2) => control.pause(),
                (TrainPhase::Paused, _) => paused.send(()).unwrap(),
                (TrainPhase::Step, 4) => control.stop(),
                _ => {}
            }
        })
        .unwrap();
    waker.join().unwrap();
    assert_eq!((stopped.end, stopped.steps, stopped.total_steps), (End::Interrupted, 4, STEPS));
    let around: Vec<_> = phases.iter().skip_while(|(_, step)| *step < 2).take(4).collect();
    assert_eq!(
        around,
        [
            &(TrainPhase::Step, 2),
            &(TrainPhase::Paused, 2),
            &(TrainPhase::Training, 2),
            &(TrainPhase::Step, 3)
        ]
    );
    // Whoever has the folder keeps others out.
    let taken = RunFolder::open(dir.path().join("out")).err();
    assert!(matches!(taken, Some(Error::InvalidArgument { name: "out", .. })));
    drop(run);

    let mut run = open(dir.path(), "out");
    let goes_on = RunNote::GoesOn { step: 4, steps: STEPS, rate: None };
    assert_eq!(run.notes(), [goes_on]);
    let mut losses = Vec::new();
    let done = run.run(&TrainControl::default(), &mut |progress| {
        losses.extend(progress.loss.filter(|_| progress.phase == TrainPhase::Step));
    });
    let done = done.unwrap();
    assert_eq!((done.end, done.steps, done.resumed_from), (End::Finished, STEPS, Some(4)));
    assert_eq!((losses.len(), losses.last().copied()), (2, done.loss.last));
    assert_eq!((done.loss.first, done.loss.last), (whole.loss.first, whole.loss.last));
    assert!(factors(&done.out) == factors(&whole.out));
    assert!(RunFolder::create(&whole.out).is_err(), "it holds a run");
    assert!(RunFolder::resume(dir.path().join("none")).is_err(), "there is none");
}

#[test]
fn a_stop_ends_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let control = TrainControl::default();
    control.pause();
    let other = control.clone();
    let outcome = open(dir.path(), "out").run(&control, &mut |progress| {
        if progress.phase == TrainPhase::Paused {
            other.stop();
        }
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Interrupted, 0));
}
