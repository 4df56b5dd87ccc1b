//! A gate that many pass, and that one closes: what must not be disturbed goes on inside, and who
//! disturbs waits until nobody is there.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closing: usize,
    closed: bool,
}

/// Inside, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a Gate);

/// Closed, until it is dropped.
#[derive(Debug)]
pub(crate) struct Closed<'a>(&'a Gate);

impl Gate {
    /// Goes in, after those who wait to close it.
    pub(crate) fn enter(&self) -> Inside<'_> {
        self.enter_when(|state| !state.closed && state.closing == 0)
    }

    /// Goes in before those who wait to close it, so that whoever is inside may go in again.
    pub(crate) fn enter_first(&self) -> Inside<'_> {
        self.enter_when(|state| !state.closed)
    }

    /// Waits until nobody is inside, and lets nobody in.
    pub(crate) fn close(&self) -> Closed<'_> {
        let mut state = self.state();
        state.closing += 1;
        state = self.wait(state, |state| !state.closed && state.inside == 0);
        state.closing -= 1;
        state.closed = true;
        Closed(self)
    }

    fn enter_when(&self, may: impl Fn(&State) -> bool) -> Inside<'_> {
        let mut state = self.wait(self.state(), may);
        state.inside += 1;
        Inside(self)
    }

    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        until: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_while(state, |state| !until(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state().inside -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state().closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::Gate;

    #[test]
    fn it_closes_once_nobody_is_inside() {
        let gate = &Gate::default();
        let (told, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let inside = gate.enter();
            let (first, second) = (told.clone(), told);
            scope.spawn(move || {
                let closed = gate.close();
                first.send("closed").unwrap();
                drop(closed);
            });
            while gate.state().closing == 0 {
                std::thread::yield_now();
            }
            // Who is inside may go in again; who is not waits.
            drop(gate.enter_first());
            scope.spawn(move || {
                let inside = gate.enter();
                second.send("entered").unwrap();
                drop(inside);
            });
            assert!(heard.recv_timeout(Duration::from_millis(20)).is_err());
            drop(inside);
            assert_eq!([heard.recv().unwrap(), heard.recv().unwrap()], ["closed", "entered"]);
        });
    }
}
