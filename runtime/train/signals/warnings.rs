//! The textbook signs that a run goes wrong, each by a rule that can be read off the loss curve.

use std::fmt;

use serde::Serialize;

use super::History;

/// Steps that a mean is taken over.
const WINDOW: usize = 32;
/// Part of the loss that it may jump from step to step, on average, or rise within a window.
const JUMP: f64 = 0.2;
/// Part of the loss by which half a window must fall for jumps to be forgiven.
const FALL: f64 = 0.1;
/// Part of the loss that has to be gone after two windows.
const PROGRESS: f64 = 0.02;
/// Steps in all under which a run can't learn: of fewer, the rate's rise and fall leave hardly any
/// at its height.
const LEAST_STEPS: u64 = 16;
/// A loss under this has nothing left to show, in nats a token.
const LEARNT: f64 = 0.05;

/// A sign of trouble; displays as what was seen and what to change.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// The run has fewer than 16 steps in all.
    TooFewSteps,
    /// The last loss is infinite or no number.
    NotFinite,
    /// In the last 32 steps the loss jumps by more than 20 % of itself from step to step, on
    /// average, without its second half being 10 % lower than the first; or the second half is 20 %
    /// higher.
    Oscillating,
    /// The last two validation losses each rose, and between the last two the mean training loss
    /// was lower than between the two before.
    OverFitting,
    /// After 64 steps or more, the mean of the last 32 losses is within 2 % of that of the first
    /// 32.
    Flat,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooFewSteps => {
                "the run is too short to learn from: give it more passes over the data \
                (`--epochs`) or more steps (`--steps`)"
            }
            Self::NotFinite => {
                "the loss is not a finite number: the learning rate is too high; lower it and \
                start from the last good adapter"
            }
            Self::Oscillating => {
                "the loss jumps without falling: the learning rate is too high or the batch too \
                small; lower the one, raise \
                 the accumulation"
            }
            Self::OverFitting => {
                "the validation loss rises while the training loss falls: over-fitting; stop \
                here, or use more data or a \
                 lower rank"
            }
            Self::Flat => "the loss has hardly moved: the learning rate is too low; raise it",
        })
    }
}

/// The sign that a run shows before it begins: whether `total_steps` are too few to learn.
pub fn too_few_steps(total_steps: u64) -> Option<Warning> {
    (total_steps < LEAST_STEPS).then_some(Warning::TooFewSteps)
}

/// The signs that `history` shows now.
pub fn warnings(history: &History) -> Vec<Warning> {
    let losses = history.training.iter().map(|&(_, loss)| loss).collect::<Vec<_>>();
    if losses.last().is_some_and(|loss| !loss.is_finite()) {
        return vec![Warning::NotFinite];
    }
    let oscillating = is_oscillating(&losses);
    let all = [
        (oscillating, Warning::Oscillating),
        (is_over_fitting(history), Warning::OverFitting),
        (!oscillating && is_flat(&losses), Warning::Flat),
    ];
    all.into_iter().filter_map(|(seen, warning)| seen.then_some(warning)).collect()
}

fn is_oscillating(losses: &[f64]) -> bool {
    let Some(window) = losses.last_chunk::<WINDOW>() else { return false };
    let (first, second) = window.split_at(WINDOW / 2);
    let (first, second, all) = (mean(first), mean(second), mean(window));
    let jumps = window.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect::<Vec<_>>();
    let jumpy = mean(&jumps) > JUMP * all && second > (1.0 - FALL) * first;
    all > LEARNT && (jumpy || second > (1.0 + JUMP) * first)
}

fn is_flat(losses: &[f64]) -> bool {
    match (losses.first_chunk::<WINDOW>(), losses.last_chunk::<WINDOW>()) {
        (Some(first), Some(last)) if losses.len() >= 2 * WINDOW => {
            let (first, last) = (mean(first), mean(last));
            last > LEARNT && (last - first).abs() < PROGRESS * first
        }
        _ => false,
    }
}

fn is_over_fitting(history: &History) -> bool {
    let Some(&[(s0, v0), (s1, v1), (s2, v2)]) = history.validation.last_chunk() else {
        return false;
    };
    let between = |after: u64, until: u64| {
        let steps = history.training.iter().filter(|(step, _)| (after + 1..=until).contains(step));
        mean(&steps.map(|&(_, loss)| loss).collect::<Vec<_>>())
    };
    v0 < v1 && v1 < v2 && between(s1, s2) < between(s0, s1)
}

/// Not a number for none.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
