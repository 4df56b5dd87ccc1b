//! Time: what is due, and how long to bear with a server that gives no usable answer.

use std::time::Duration;

use super::call::Call;
use crate::identity::sha256;

/// A time to wait, by a clock that may be set meanwhile: back, and the time is over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer {
    from: Duration,
    lasts: Duration,
}

impl Timer {
    pub(super) fn new(from: Duration, lasts: Duration) -> Self {
        Self { from, lasts }
    }

    /// What is left of it.
    pub(super) fn left(self, now: Duration) -> Duration {
        let passed = now.checked_sub(self.from).unwrap_or(self.lasts);
        self.lasts.saturating_sub(passed)
    }
}

/// Attempts that failed since something went well.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    call: Option<Call>,
    attempts: u32,
    since: Duration,
    retry: Timer,
}

impl Trouble {
    /// One more. Twice as long as before until the next, `longest` at most, a little more or less
    /// by `seed`, so that not all nodes come back at once.
    pub(super) fn add(&mut self, call: Call, now: Duration, longest: Duration, seed: &str) {
        if self.attempts == 0 || now < self.since {
            self.since = now;
        }
        (self.call, self.attempts) = (Some(call), self.attempts.saturating_add(1));
        let doubled = Duration::from_secs(1 << self.attempts.saturating_sub(1).min(6)).min(longest);
        let spread = f64::from(sha256([format!("{seed} {}", self.attempts)])[0]) / 255.0;
        self.retry = Timer::new(now, doubled.mul_f64(0.8 + 0.4 * spread));
    }

    /// A call went well: if it was the one that did not, all is well.
    pub(super) fn clear(&mut self, call: Call) {
        if self.call == Some(call) {
            *self = Self::default();
        }
    }

    pub(super) fn is_none(&self) -> bool {
        self.attempts == 0
    }

    /// Until the next attempt.
    pub(super) fn left(&self, now: Duration) -> Duration {
        self.retry.left(now)
    }

    /// How long it has lasted.
    pub(super) fn lasted(&self, now: Duration) -> Duration {
        if self.attempts == 0 { Duration::ZERO } else { now.saturating_sub(self.since) }
    }
}
