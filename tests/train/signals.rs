//! Losses: their log, their picture, the warnings and the early stop.

use std::f64::consts::PI;

use epiphyte::Error;
use epiphyte::train::signals::{
    EarlyStop, History, StepLog, StepRecord, StopDecision, Warning, too_few_steps, warnings,
};

use crate::common::Random;

/// Losses by step from 1, with noise of `noise` times the loss, evenly spread.
fn history(steps: u64, noise: f32, loss: impl Fn(f64) -> f64) -> History {
    let mut random = Random::new(steps);
    let noisy = |step: u64| (step, loss(step as f64) * (1.0 + f64::from(random.signed(noise))));
    History { training: (1..=steps).map(noisy).collect(), validation: Vec::new() }
}

fn falling(step: f64) -> f64 {
    1.0 + 2.0 * (-step / 60.0).exp()
}

#[test]
fn a_healthy_run_gives_no_warning() {
    for steps in 1..400 {
        let mut history = history(steps, 0.15, falling);
        history.validation =
            (1..=steps / 20).map(|n| (20 * n, falling(20.0 * n as f64) + 0.1)).collect();
        assert_eq!(warnings(&history), [], "after {steps} steps");
    }
    // Nothing left to learn is no trouble either.
    assert_eq!(warnings(&history(400, 0.5, |step| 3.0 * (-step / 20.0).exp() + 0.01)), []);
}

#[test]
fn a_loss_that_jumps_without_falling_means_a_high_rate() {
    let jumping = |step: f64| 2.0 + 0.6 * (PI * step).cos();
    assert_eq!(warnings(&history(31, 0.0, jumping)), []);
    assert_eq!(warnings(&history(32, 0.0, jumping)), [Warning::Oscillating]);
    assert_eq!(warnings(&history(100, 0.1, jumping)), [Warning::Oscillating]);
    assert_eq!(
        warnings(&history(64, 0.05, |step| 2.0 * (step / 40.0).exp())),
        [Warning::Oscillating]
    );
    // Large jumps on the way down are forgiven.
    let on_the_way = |step: f64| 3.0 * (-step / 60.0).exp() * (1.0 + 0.2 * (PI * step).cos());
    assert_eq!(warnings(&history(64, 0.0, on_the_way)), []);
}

#[test]
fn a_loss_that_never_moves_means_a_low_rate() {
    assert_eq!(warnings(&history(63, 0.02, |_| 2.5)), []);
    assert_eq!(warnings(&history(64, 0.02, |_| 2.5)), [Warning::Flat]);
    assert_eq!(warnings(&history(500, 0.02, |step| 2.5 - step * 1e-5)), [Warning::Flat]);
    // Flat now, but it has fallen: it has converged.
    assert_eq!(warnings(&history(1000, 0.02, falling)), []);
}

#[test]
fn a_run_that_is_too_short_to_learn_is_told_before_it_begins() {
    assert_eq!([1, 15].map(too_few_steps), [Some(Warning::TooFewSteps); 2]);
    assert_eq!([16, 10_000].map(too_few_steps), [None; 2]);
    assert!(Warning::TooFewSteps.to_string().contains("--epochs"));
}

#[test]
fn validation_that_rises_while_training_falls_is_over_fitting() {
    let mut run = history(100, 0.02, falling);
    run.validation = vec![(20, 2.6), (40, 2.2), (60, 2.3), (80, 2.2), (100, 2.3)];
    assert_eq!(warnings(&run), [], "one rise is chance");
    run.validation = vec![(40, 2.2), (60, 2.1), (80, 2.2), (100, 2.3)];
    assert_eq!(warnings(&run), [Warning::OverFitting]);
    // Both rise: that is something else.
    let mut rising = history(100, 0.0, |step| 1.0 + step / 1000.0);
    rising.validation.clone_from(&run.validation);
    assert!(!warnings(&rising).contains(&Warning::OverFitting));
}

#[test]
fn a_loss_that_is_no_number_is_said_first() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut run = history(100, 0.02, |_| 2.5);
        run.training.push((101, bad));
        assert_eq!(warnings(&run), [Warning::NotFinite]);
    }
    assert_eq!(warnings(&History::default()), []);
    assert!(Warning::OverFitting.to_string().contains("over-fitting"));
}

#[test]
fn training_stops_when_validation_has_not_improved_for_long() {
    let mut stop = EarlyStop::new(3, 0.01);
    use StopDecision::{Best, Continue, Stop};
    let verdicts = [
        (2.0, Best),
        (1.9, Best),
        (1.895, Continue),
        (f64::NAN, Continue),
        (1.85, Best),
        (1.9, Continue),
    ];
    for (loss, verdict) in verdicts {
        assert_eq!(stop.observe(loss), verdict, "{loss}");
    }
    let saved = serde_json::to_string(&stop).unwrap();
    let mut stop: EarlyStop = serde_json::from_str(&saved).unwrap();
    assert_eq!([stop.observe(1.86), stop.observe(1.85)], [Continue, Stop]);
    assert_eq!(stop.best(), Some(1.85));
    let mut never = EarlyStop::new(0, 0.0);
    assert_eq!(never.observe(f64::NAN), Continue);
    assert!((0..100).all(|_| never.observe(f64::INFINITY) == Continue));
    assert_eq!(never.observe(1.0), Best);
}

fn step(step: u64, loss: f64, validation_loss: Option<f64>) -> StepRecord {
    StepRecord {
        step,
        loss,
        validation_loss,
        lr: 1e-4,
        tokens: 100,
        seconds: 0.5,
        ..StepRecord::default()
    }
}

#[test]
fn the_log_survives_a_crash_and_a_resumption() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("steps.jsonl");
    let mut log = StepLog::open(&path, 0).unwrap();
    for record in [step(1, 3.0, None), step(2, 2.5, Some(2.75)), step(3, f64::NAN, None)] {
        log.write(&record).unwrap();
    }
    drop(log);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 3);
    std::fs::write(&path, text.clone() + "{\"step\":4,\"lo").unwrap();
    let history = History::read(&path).unwrap();
    assert_eq!(history.training[..2], [(1, 3.0), (2, 2.5)]);
    assert!(history.training[2].1.is_nan());
    assert_eq!(history.validation, [(2, 2.75)]);
    // Resumed after step 1.
    let mut log = StepLog::open(&path, 1).unwrap();
    log.write(&step(2, 2.0, None)).unwrap();
    let resumed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        (resumed.lines().count(), resumed.lines().next()),
        (2, text.lines().next()),
        "each step has one line"
    );
    drop(log);
    let history = History::read(&path).unwrap();
    assert_eq!((history.training, history.validation), (vec![(1, 3.0), (2, 2.0)], vec![]));
    // A log that has steps twice, as older versions left it, is mended.
    std::fs::write(&path, text.clone() + &text).unwrap();
    drop(StepLog::open(&path, 2).unwrap());
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(kept.lines().count() == 2 && text.starts_with(&kept));
    std::fs::write(&path, "{}\n").unwrap();
    assert!(matches!(StepLog::open(&path, 0), Err(Error::InvalidFile { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
    assert!(History::read(&path).unwrap_err().to_string().contains("line 1"));
    assert!(matches!(History::read(dir.path().join("none")), Err(Error::Io { .. })));
}
