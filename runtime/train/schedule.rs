//! The learning rate of each step, by the formulas of transformers'
//! `get_{constant,linear,cosine}_schedule_with_warmup`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the rate goes on after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// It stays.
    Constant,
    /// In a straight line to 0 at the last step.
    Linear,
    /// Along half a cosine to 0 at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983, eq.
    /// 5 without restarts).
    #[default]
    Cosine,
}

/// Steps in which the rate rises in a straight line from 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// This many.
    Steps(u64),
    /// This part of all steps, 0 to 1, rounded up; none of a single step, which would learn
    /// nothing.
    Fraction(f64),
}

/// The rate as a function of the step: nothing to save but the step.
///
/// ```
/// use epiphyte::train::schedule::{Decay, Schedule, Warmup};
/// let schedule = Schedule::new(Decay::Linear, 1e-3, Warmup::Steps(2), 6)?;
/// let rates = (0..=6).map(|step| schedule.lr(step)).collect::<Vec<_>>();
/// assert_eq!(rates, [0.0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0.0]);
/// # Ok::<(), epiphyte::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    decay: Decay,
    peak: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// `peak` is the rate after the warm-up.
    ///
    /// Errors: [`Error::InvalidArgument`] for a rate that is not a number of at least 0, a fraction
    /// outside 0 to 1, a decay whose warm-up takes longer than all steps, or a warm-up of a single
    /// step, whose rate would be 0.
    pub fn new(decay: Decay, peak: f64, warmup: Warmup, total_steps: u64) -> Result<Self> {
        let invalid = |name, reason: String| Err(Error::InvalidArgument { name, reason });
        if !(peak.is_finite() && peak >= 0.0) {
            return invalid("learning_rate", format!("{peak} is not a number of at least 0"));
        }
        let warmup_steps = match warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Fraction(part) if !(0.0..=1.0).contains(&part) => {
                return invalid("warmup", format!("{part} is not between 0 and 1"));
            }
            // It would be all of it, at a rate of 0.
            Warmup::Fraction(_) if total_steps == 1 => 0,
            Warmup::Fraction(part) => (total_steps as f64 * part).ceil() as u64,
        };
        if decay != Decay::Constant && warmup_steps > total_steps {
            return invalid(
                "warmup",
                format!("{warmup_steps} steps, but there are {total_steps} in all"),
            );
        }
        if total_steps == 1 && warmup_steps > 0 {
            return invalid(
                "warmup",
                "the only step would have a rate of 0; set it to 0, or take more steps".into(),
            );
        }
        Ok(Self { decay, peak, warmup_steps, total_steps })
    }

    /// The rate of `step`, from 0. With a warm-up that of step 0 is 0.
    pub fn lr(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => self.total_steps.saturating_sub(step) as f64 / length,
            // The cosine would rise again beyond the end.
            Decay::Cosine if step >= self.total_steps => 0.0,
            Decay::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / length;
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}
