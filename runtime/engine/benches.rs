//! What is bound to the model's weights beside the sessions: training's workbench. It is put away
//! when the weights go, and made again when it is next needed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::gate::Gate;

/// Something that can be put away and made again.
pub(crate) type Bench<T> = Mutex<Option<T>>;

trait PutAway: Send + Sync {
    fn put_away(&self);
}

impl<T: Send> PutAway for Bench<T> {
    fn put_away(&self) {
        *self.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The benches of an engine.
#[derive(Default)]
pub(crate) struct Benches {
    /// Whoever works at a bench is inside.
    pub(crate) gate: Gate,
    all: Mutex<Vec<Weak<dyn PutAway>>>,
    /// A step was stopped for its bench, and has not been taken again.
    step_is_due: AtomicBool,
}

impl Benches {
    /// Adds one, until it is dropped.
    pub(crate) fn add<T: Send + 'static>(&self, bench: &Arc<Bench<T>>) {
        let bench: Weak<Bench<T>> = Arc::downgrade(bench);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|bench| bench.strong_count() > 0);
        all.push(bench);
    }

    /// Tells whether a step that was stopped is to be taken again.
    pub(crate) fn set_step_is_due(&self, is_due: bool) {
        self.step_is_due.store(is_due, Ordering::Relaxed);
    }

    pub(super) fn step_is_due(&self) -> bool {
        self.step_is_due.load(Ordering::Relaxed)
    }

    /// Puts all away. Nobody is inside the gate.
    pub(super) fn put_away(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).for_each(|bench| bench.put_away());
    }
}
