//! A run's pause and stop, from another thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cancel::CancelToken;

/// How often a paused run looks whether it is stopped by a token of somebody else's.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// Pauses and stops [`super::TrainRun::run`] from another thread. Clones control the same run.
#[derive(Clone, Debug, Default)]
pub struct TrainControl {
    stop: CancelToken,
    pause: Arc<Pause>,
}

#[derive(Debug, Default)]
struct Pause {
    paused: Mutex<bool>,
    changed: Condvar,
}

impl TrainControl {
    /// One whose stop is this token.
    pub fn with_cancel(stop: CancelToken) -> Self {
        Self { stop, pause: Arc::default() }
    }

    /// Lets the run wait, on its own thread, once the present step is done. The device is then free
    /// for others; the memory of the run stays taken.
    pub fn pause(&self) {
        self.set(true);
    }

    /// Lets a run that waits go on.
    pub fn resume(&self) {
        self.set(false);
    }

    /// Ends the run soon, for good: between two submissions, with a checkpoint.
    pub fn stop(&self) {
        self.stop.cancel();
        self.pause.changed.notify_all();
    }

    /// [`TrainControl::pause`] was the last that was asked for.
    pub fn is_paused(&self) -> bool {
        *self.paused()
    }

    /// Someone asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// What stops a step between two submissions.
    pub(super) fn cancel(&self) -> &CancelToken {
        &self.stop
    }

    /// Returns once the run may go on, or is stopped.
    pub(super) fn wait(&self) {
        let mut paused = self.paused();
        while *paused && !self.is_stopped() {
            let waited = self.pause.changed.wait_timeout(paused, LOOK);
            paused = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set(&self, paused: bool) {
        *self.paused() = paused;
        self.pause.changed.notify_all();
    }

    fn paused(&self) -> MutexGuard<'_, bool> {
        self.pause.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
