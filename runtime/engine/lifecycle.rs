//! What an app tells its engine of the phone it runs on, and what it sees of the engine: heat,
//! background, state. `docs/lifecycle.md` has the contract; memory pressure is in
//! [`super::pressure`].

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Engine;
use crate::error::{Error, Result};

/// The longest rest between two tokens.
const LONGEST_GAP: Duration = Duration::from_millis(250);

/// How hot the device is, as iOS has it (`ProcessInfo.ThermalState`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ThermalState {
    /// Nothing to mind.
    #[default]
    Nominal,
    /// Training rests after each step as long as the step took.
    Fair,
    /// Training pauses.
    Serious,
    /// Training pauses, and after each token the device rests as long as the token took, at most
    /// 250 ms.
    Critical,
}

impl ThermalState {
    const ALL: [Self; 4] = [Self::Nominal, Self::Fair, Self::Serious, Self::Critical];

    /// Of Android's `PowerManager.THERMAL_STATUS_*`: none and light are nominal, moderate is fair,
    /// severe is serious, what is above is critical.
    pub fn from_android(status: i32) -> Self {
        match status {
            ..=1 => Self::Nominal,
            2 => Self::Fair,
            3 => Self::Serious,
            4.. => Self::Critical,
        }
    }
}

/// What an engine is, of several things that may be true the one that matters most to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EnginePhase {
    /// The model is on the device.
    Ready,
    /// The model is being read again.
    Loading,
    /// The model had to make room; the next call reads it again.
    Unloaded,
    /// The app is in the background: what needs the GPU is refused.
    Background,
    /// The device was lost a second time, or could not be opened again.
    Lost,
}

/// How fast training may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrainingPace {
    /// As fast as it can.
    Full,
    /// With rests between steps.
    Slowed,
    /// Not at all for now: a run waits.
    Paused,
}

/// What an engine is and what has befallen it. Cheap to ask for: it waits for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineState {
    /// What it is.
    pub phase: EnginePhase,
    /// What it was told last.
    pub thermal: ThermalState,
    /// How fast training may go.
    pub training: TrainingPace,
    /// Times that memory was asked for.
    pub memory_warnings: u64,
    /// Times that the model was read again, after it had made room or the device was lost.
    pub reloads: u64,
    /// Times that the device was lost.
    pub device_losses: u64,
    /// Changes so far: of two states the one with more is the newer.
    pub changes: u64,
}

/// Who is told of changes, until this is dropped.
#[must_use = "dropping it ends the watch"]
pub struct StateWatch {
    watchers: Weak<Watchers>,
    id: u64,
}

type Watcher = Arc<dyn Fn(EngineState) + Send + Sync>;

#[derive(Default)]
struct Watchers {
    all: Mutex<Vec<(u64, Watcher)>>,
    next: AtomicU64,
}

impl Watchers {
    fn all(&self) -> MutexGuard<'_, Vec<(u64, Watcher)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StateWatch {
    fn drop(&mut self) {
        if let Some(watchers) = self.watchers.upgrade() {
            watchers.all().retain(|(id, _)| *id != self.id);
        }
    }
}

/// Where the model is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Model {
    Here,
    Loading,
    Away,
    Lost,
}

/// What the engine was told and what has befallen it.
#[derive(Default)]
pub(super) struct Lifecycle {
    background: AtomicBool,
    thermal: AtomicU8,
    model: AtomicU8,
    pub(super) memory_warnings: AtomicU64,
    pub(super) reloads: AtomicU64,
    pub(super) device_losses: AtomicU64,
    changes: AtomicU64,
    watchers: Arc<Watchers>,
    /// Those who want training to stop in the middle of a step.
    interruptions: Arc<AtomicUsize>,
    /// One call at a time moves between background and foreground.
    moving: Mutex<()>,
    changed: (Mutex<()>, Condvar),
}

/// Training stops between two submissions as long as this is there.
pub(super) struct Interruption<'a>(&'a Lifecycle);

impl Drop for Interruption<'_> {
    fn drop(&mut self) {
        self.0.interruptions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lifecycle {
    /// Errors: [`Error::Background`].
    pub(super) fn check(&self) -> Result<()> {
        if self.background.load(Ordering::Relaxed) { Err(Error::Background) } else { Ok(()) }
    }

    pub(super) fn is_background(&self) -> bool {
        self.background.load(Ordering::Relaxed)
    }

    pub(super) fn thermal(&self) -> ThermalState {
        ThermalState::ALL[usize::from(self.thermal.load(Ordering::Relaxed)) % 4]
    }

    /// Tells where the model is.
    pub(super) fn set_model(&self, model: Model) {
        if self.model.swap(model as u8, Ordering::Relaxed) != model as u8 {
            self.tell();
        }
    }

    pub(super) fn interrupt_training(&self) -> Interruption<'_> {
        self.interruptions.fetch_add(1, Ordering::Relaxed);
        Interruption(self)
    }

    /// Steps of decoding that may be under way, of `usual`.
    pub(super) fn depth(&self, usual: usize) -> usize {
        if self.thermal() == ThermalState::Critical { 1 } else { usual }
    }

    /// Rests after work that began then, where the device is too hot.
    pub(super) fn rest(&self, began: Instant) {
        if self.thermal() == ThermalState::Critical {
            std::thread::sleep(began.elapsed().min(LONGEST_GAP));
        }
    }

    fn pace(&self) -> TrainingPace {
        match self.thermal() {
            _ if self.is_background() => TrainingPace::Paused,
            ThermalState::Nominal => TrainingPace::Full,
            ThermalState::Fair => TrainingPace::Slowed,
            ThermalState::Serious | ThermalState::Critical => TrainingPace::Paused,
        }
    }

    fn state(&self) -> EngineState {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let model = self.model.load(Ordering::Relaxed);
        let phase = match model {
            _ if model == Model::Lost as u8 => EnginePhase::Lost,
            _ if self.is_background() => EnginePhase::Background,
            _ if model == Model::Loading as u8 => EnginePhase::Loading,
            _ if model == Model::Away as u8 => EnginePhase::Unloaded,
            _ => EnginePhase::Ready,
        };
        EngineState {
            phase,
            thermal: self.thermal(),
            training: self.pace(),
            memory_warnings: count(&self.memory_warnings),
            reloads: count(&self.reloads),
            device_losses: count(&self.device_losses),
            changes: count(&self.changes),
        }
    }

    /// Something has changed.
    pub(super) fn tell(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let waiting = self.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.1.notify_all();
        drop(waiting);
        // Called without the lock: one may end its own watch.
        let watchers: Vec<Watcher> =
            self.watchers.all().iter().map(|(_, watcher)| Arc::clone(watcher)).collect();
        watchers.iter().for_each(|watcher| watcher(self.state()));
    }
}

impl Engine {
    /// Tells how hot the device is. Only the time that things take changes by it, no result.
    pub fn thermal(&self, state: ThermalState) {
        if self.lifecycle.thermal.swap(state as u8, Ordering::Relaxed) != state as u8 {
            self.lifecycle.tell();
        }
    }

    /// Tells that the app is in the background. From when this returns nothing is submitted to the
    /// GPU, and it has done all that was: what needs it is refused with [`Error::Background`], and
    /// an answer or a prompt under way can go on in the foreground. A training run waits there; the
    /// step it was at is taken again. What needs no GPU is as in the foreground, and
    /// [`Engine::memory_pressure`] frees all that it can without a copy on the device.
    ///
    /// Waits for the submission at hand: tens of milliseconds.
    pub fn background(&self) {
        let _moving = self.lifecycle.moving();
        if self.lifecycle.background.swap(true, Ordering::Relaxed) {
            return;
        }
        // Whoever takes a turn from here on is refused; those before have submitted.
        drop(self.seat());
        let interruption = self.lifecycle.interrupt_training();
        drop(self.benches.gate.close());
        drop(interruption);
        if let Err(error) = self.gpu().wait(None) {
            log::warn!("into the background: {error}");
        }
        self.lifecycle.tell();
    }

    /// Tells that the app is in the foreground again: what was refused can be called again, and
    /// training that waits goes on.
    pub fn foreground(&self) {
        let _moving = self.lifecycle.moving();
        if self.lifecycle.background.swap(false, Ordering::Relaxed) {
            self.lifecycle.tell();
        }
    }

    /// What the engine is now.
    pub fn state(&self) -> EngineState {
        self.lifecycle.state()
    }

    /// Has `watcher` told of each change, on the thread that makes it and in the middle of that: it
    /// hands the state on and calls nothing of the engine but [`Engine::state`]. Of two states that
    /// come from two threads, that with more [`EngineState::changes`] is the newer.
    pub fn watch_state(&self, watcher: impl Fn(EngineState) + Send + Sync + 'static) -> StateWatch {
        let watchers = &self.lifecycle.watchers;
        let id = watchers.next.fetch_add(1, Ordering::Relaxed);
        watchers.all().push((id, Arc::new(watcher)));
        StateWatch { watchers: Arc::downgrade(watchers), id }
    }

    /// Waits for a change, at most so long.
    pub(crate) fn wait_for_change(&self, most: Duration) {
        let (lock, changed) = &self.lifecycle.changed;
        let waiting = lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout(waiting, most));
    }

    /// Counts those who want training to stop in the middle of a step.
    pub(crate) fn interruptions(&self) -> &Arc<AtomicUsize> {
        &self.lifecycle.interruptions
    }

    /// Errors: [`Error::Background`].
    pub(crate) fn check_foreground(&self) -> Result<()> {
        self.lifecycle.check()
    }
}

impl Lifecycle {
    fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
