//! A run on a phone: it waits where it must, rests where it is hot, and goes back to its last
//! checkpoint when the device was lost.

use std::time::{Duration, Instant};

use super::control::LOOK;
use super::{Listener, TrainPhase, TrainRun};
use crate::engine::TrainingPace;
use crate::error::{Error, Result};
use crate::train::signals::{EarlyStop, StopDecision};

impl TrainRun {
    /// Returns once a step may be taken, or it is stopped.
    pub(super) fn wait(&self, listener: Listener<'_>) {
        if !self.must_wait() {
            return;
        }
        listener(&self.progress(TrainPhase::Paused, Vec::new()));
        while self.must_wait() {
            self.control.wait();
            if self.engine_pauses() {
                self.trainer.engine().wait_for_change(LOOK);
            }
        }
        listener(&self.progress(TrainPhase::Training, Vec::new()));
    }

    /// Whoever controls it, or the engine, lets it wait.
    fn must_wait(&self) -> bool {
        (self.control.is_paused() || self.engine_pauses()) && !self.control.is_stopped()
    }

    fn engine_pauses(&self) -> bool {
        self.trainer.engine().state().training == TrainingPace::Paused
    }

    /// Rests after a step that took so long, where the device is too hot.
    pub(super) fn rest(&self, took: Duration) {
        let (engine, began) = (self.trainer.engine(), Instant::now());
        while engine.state().training == TrainingPace::Slowed && !self.control.is_stopped() {
            let Some(left) = took.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            else {
                return;
            };
            engine.wait_for_change(left.min(LOOK));
        }
    }

    /// Does `work`, in the foreground: waits there and begins again.
    ///
    /// Errors: those of `work`; [`Error::Cancelled`] when stopped while it waits.
    pub(super) fn awake<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            match work(self) {
                Err(Error::Background) => self.control.cancel().check()?,
                done => return done,
            }
            self.trainer.engine().wait_for_change(LOOK);
        }
    }

    /// Goes on from the last checkpoint, on the device that was opened after one was lost.
    ///
    /// Errors: [`Error::DeviceLost`] where there is none, and the checkpoints are there.
    pub(super) fn go_back(&mut self, why: String) -> Result<()> {
        let Some((step, path)) = self.folder.checkpoints()?.pop() else {
            return Err(Error::DeviceLost(why));
        };
        self.awake(|run| run.trainer.restore(&path))?;
        self.history.truncate(step);
        self.log.go_back(step)?;
        (self.saved, self.written) = (Some(step), None);
        self.judge();
        Ok(())
    }

    /// Whether to go on, by the validations so far.
    pub(super) fn judge(&mut self) {
        self.early = EarlyStop::new(self.patience.unwrap_or(0), 0.0);
        self.verdict = StopDecision::Continue;
        for (_, loss) in &self.history.validation {
            self.verdict = self.early.observe(*loss);
        }
    }
}
