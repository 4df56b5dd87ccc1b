//! The learning rate against transformers' formulas.

use epiphyte::Error;
use epiphyte::train::schedule::{Decay, Schedule, Warmup};

fn schedule(decay: Decay, warmup: Warmup) -> Schedule {
    Schedule::new(decay, 3e-4, warmup, 100).unwrap()
}

/// `step, linear, cosine` for a peak of 3e-4, 10 steps of warm-up, 100 in all; computed in Python
/// from the bodies of `_get_linear_schedule_with_warmup_lr_lambda` and
/// `_get_cosine_schedule_with_warmup_lr_lambda`.
const RATES: [(u64, f64, f64); 8] = [
    (0, 0.0, 0.0),
    (1, 2.999_999_999_999_999_7e-5, 2.999_999_999_999_999_7e-5),
    (9, 2.7e-4, 2.7e-4),
    (10, 3e-4, 3e-4),
    (37, 2.099_999_999_999_999_8e-4, 2.381_677_878_438_709_4e-4),
    (55, 1.5e-4, 1.5e-4),
    (99, 3.333_333_333_333_333_3e-6, 9.137_594_713_563_568e-8),
    (100, 0.0, 0.0),
];

#[test]
fn rates_are_those_of_transformers() {
    let (linear, cosine) = (
        schedule(Decay::Linear, Warmup::Steps(10)),
        schedule(Decay::Cosine, Warmup::Fraction(0.1)),
    );
    let constant = schedule(Decay::Constant, Warmup::Steps(10));
    for (step, line, curve) in RATES {
        // The cosine is the C library's in either; the last bit is its own.
        assert!(
            (linear.lr(step) - line).abs() <= line * f64::EPSILON,
            "{step}: {}",
            linear.lr(step)
        );
        assert!(
            (cosine.lr(step) - curve).abs() <= 3e-4 * f64::EPSILON,
            "{step}: {}",
            cosine.lr(step)
        );
        assert_eq!(constant.lr(step), if step < 10 { 3e-4 * (step as f64 / 10.0) } else { 3e-4 });
    }
}

#[test]
fn beyond_the_end_the_rate_is_zero() {
    for decay in [Decay::Linear, Decay::Cosine] {
        assert_eq!(schedule(decay, Warmup::Steps(0)).lr(0), 3e-4);
        assert_eq!(schedule(decay, Warmup::Steps(0)).lr(150), 0.0);
        assert!((0..100).all(
            |step| schedule(decay, Warmup::Steps(100)).lr(step) == 3e-4 * (step as f64 / 100.0)
        ));
    }
}

#[test]
fn fractions_of_steps_are_rounded_up() {
    let schedule = Schedule::new(Decay::Constant, 1.0, Warmup::Fraction(0.03), 101).unwrap();
    assert_eq!((schedule.lr(3), schedule.lr(4)), (0.75, 1.0));
    // A run of one step learns.
    let single = |warmup| Schedule::new(Decay::Linear, 1.0, warmup, 1);
    assert_eq!(single(Warmup::Fraction(0.05)).unwrap().lr(0), 1.0);
    // Or is refused.
    let refused = single(Warmup::Steps(1)).unwrap_err();
    assert!(matches!(refused, Error::InvalidArgument { name: "warmup", .. }), "{refused}");
}

#[test]
fn bad_schedules_are_refused() {
    let name = |decay, peak, warmup| match Schedule::new(decay, peak, warmup, 10) {
        Err(Error::InvalidArgument { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    for peak in [-1e-3, f64::NAN, f64::INFINITY] {
        assert_eq!(name(Decay::Linear, peak, Warmup::Steps(0)), "learning_rate");
    }
    for part in [-0.1, 1.1, f64::NAN] {
        assert_eq!(name(Decay::Constant, 1e-3, Warmup::Fraction(part)), "warmup");
    }
    assert_eq!(name(Decay::Cosine, 1e-3, Warmup::Steps(11)), "warmup");
    assert!(Schedule::new(Decay::Constant, 1e-3, Warmup::Steps(11), 10).is_ok());
}
