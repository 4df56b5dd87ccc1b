//! What an app tells its engine of the phone, and what it sees of the engine: `docs/lifecycle.md`.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Poll, Waker};

use epiphyte::engine as runtime;

use crate::error::{bytes, number};
use crate::plan::ClassBytes;
use crate::worker::{self, lock, remember};
use crate::{Engine, EpiphyteError};

/// How badly memory is wanted. Each level does what those before it do, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MemoryLevel {
    /// Prompts that nobody uses are forgotten.
    Moderate,
    /// Adapters leave the device.
    Low,
    /// Keys and values of all sessions go; what was said stays.
    Critical,
    /// The model leaves the device; training keeps factors and moments.
    Complete,
}

impl From<MemoryLevel> for runtime::MemoryLevel {
    fn from(level: MemoryLevel) -> Self {
        match level {
            MemoryLevel::Moderate => Self::Moderate,
            MemoryLevel::Low => Self::Low,
            MemoryLevel::Critical => Self::Critical,
            MemoryLevel::Complete => Self::Complete,
        }
    }
}

impl From<runtime::MemoryLevel> for MemoryLevel {
    fn from(level: runtime::MemoryLevel) -> Self {
        match level {
            runtime::MemoryLevel::Moderate => Self::Moderate,
            runtime::MemoryLevel::Low => Self::Low,
            runtime::MemoryLevel::Critical => Self::Critical,
            runtime::MemoryLevel::Complete => Self::Complete,
        }
    }
}

/// Of Android's `ComponentCallbacks2.onTrimMemory(level)`.
#[uniffi::export]
pub fn memory_level_from_trim_memory(level: i32) -> MemoryLevel {
    runtime::MemoryLevel::from_trim_memory(level).into()
}

/// Of iOS's memory warning, which has no degrees.
#[uniffi::export]
pub fn memory_level_from_memory_warning(background: bool) -> MemoryLevel {
    runtime::MemoryLevel::from_memory_warning(background).into()
}

/// What came of a wish for memory.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryReport {
    /// What was asked for.
    pub level: MemoryLevel,
    /// What was freed, by what it was for.
    pub freed: Vec<ClassBytes>,
    /// All of it together.
    pub freed_bytes: i64,
    /// Adapters that are still on the device.
    pub adapters_left: i32,
    /// The model is still on the device.
    pub model_left: bool,
    /// Bytes that everything of the engine takes now.
    pub device_bytes: i64,
}

impl From<runtime::MemoryReport> for MemoryReport {
    fn from(report: runtime::MemoryReport) -> Self {
        Self {
            level: report.level.into(),
            freed: report.freed.iter().map(ClassBytes::from).collect(),
            freed_bytes: bytes(report.freed_bytes()),
            adapters_left: number(report.adapters_left),
            model_left: report.model_left,
            device_bytes: bytes(report.device_bytes),
        }
    }
}

/// How hot the device is, as iOS has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ThermalState {
    /// Nothing to mind.
    Nominal,
    /// Training rests between its steps.
    Fair,
    /// Training pauses.
    Serious,
    /// Training pauses, and answers rest between their tokens.
    Critical,
}

impl From<ThermalState> for runtime::ThermalState {
    fn from(state: ThermalState) -> Self {
        match state {
            ThermalState::Nominal => Self::Nominal,
            ThermalState::Fair => Self::Fair,
            ThermalState::Serious => Self::Serious,
            ThermalState::Critical => Self::Critical,
        }
    }
}

impl From<runtime::ThermalState> for ThermalState {
    fn from(state: runtime::ThermalState) -> Self {
        match state {
            runtime::ThermalState::Nominal => Self::Nominal,
            runtime::ThermalState::Fair => Self::Fair,
            runtime::ThermalState::Serious => Self::Serious,
            runtime::ThermalState::Critical => Self::Critical,
        }
    }
}

/// Of Android's `PowerManager.THERMAL_STATUS_*`.
#[uniffi::export]
pub fn thermal_state_from_android(status: i32) -> ThermalState {
    runtime::ThermalState::from_android(status).into()
}

/// What an engine is, of several things that may be true the one that matters most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum EnginePhase {
    /// The model is on the device.
    Ready,
    /// The model is being read again.
    Loading,
    /// The model had to make room; the next call reads it again.
    Unloaded,
    /// The app is in the background: what needs the GPU is refused.
    Background,
    /// The device was lost for good; open a new engine.
    Lost,
}

/// How fast training may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TrainingPace {
    /// As fast as it can.
    Full,
    /// With rests between steps.
    Slowed,
    /// Not at all for now: a run waits.
    Paused,
}

/// What an engine is and what has befallen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct EngineState {
    /// What it is.
    pub phase: EnginePhase,
    /// What it was told last.
    pub thermal: ThermalState,
    /// How fast training may go.
    pub training: TrainingPace,
    /// Times that memory was asked for.
    pub memory_warnings: i64,
    /// Times that the model was read again.
    pub reloads: i64,
    /// Times that the device was lost.
    pub device_losses: i64,
    /// Changes so far: of two states the one with more is the newer.
    pub changes: i64,
}

impl From<runtime::EngineState> for EngineState {
    fn from(state: runtime::EngineState) -> Self {
        Self {
            phase: match state.phase {
                runtime::EnginePhase::Loading => EnginePhase::Loading,
                runtime::EnginePhase::Unloaded => EnginePhase::Unloaded,
                runtime::EnginePhase::Background => EnginePhase::Background,
                runtime::EnginePhase::Lost => EnginePhase::Lost,
                _ => EnginePhase::Ready,
            },
            thermal: state.thermal.into(),
            training: match state.training {
                runtime::TrainingPace::Slowed => TrainingPace::Slowed,
                runtime::TrainingPace::Paused => TrainingPace::Paused,
                _ => TrainingPace::Full,
            },
            memory_warnings: bytes(state.memory_warnings),
            reloads: bytes(state.reloads),
            device_losses: bytes(state.device_losses),
            changes: bytes(state.changes),
        }
    }
}

/// Who waits for a change of state. Waking calls nothing of the engine, so it may be done in the
/// middle of a change.
#[derive(Default)]
pub(crate) struct Bell(Mutex<Vec<Waker>>);

impl Bell {
    pub(crate) fn ring(&self) {
        let wakers = std::mem::take(&mut *lock(&self.0));
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[uniffi::export]
impl Engine {
    /// Gives memory back to the phone. All comes back when it is next needed, and nothing that is
    /// said changes by it.
    pub async fn memory_pressure(&self, level: MemoryLevel) -> Result<MemoryReport, EpiphyteError> {
        let lease = self.lease()?;
        worker::run("memory_pressure", move || Ok(lease.memory_pressure(level.into()).into())).await
    }

    /// Bytes of device memory that everything of this engine takes now, by what they are for.
    pub fn class_bytes(&self) -> Result<Vec<ClassBytes>, EpiphyteError> {
        Ok(self.lease()?.class_bytes().iter().map(ClassBytes::from).collect())
    }

    /// Tells how hot the device is; a closed engine minds nothing.
    pub fn thermal(&self, state: ThermalState) {
        if let Ok(lease) = self.lease() {
            lease.thermal(state.into());
        }
    }

    /// Tells that the app is in the background. From when this returns nothing is submitted to the
    /// GPU: systems end an app that does. So it is the one call that waits where it is called, for
    /// the submission at hand: tens of milliseconds.
    pub fn background(&self) {
        if let Ok(lease) = self.lease() {
            lease.background();
        }
    }

    /// Tells that the app is in the foreground again.
    pub fn foreground(&self) {
        if let Ok(lease) = self.lease() {
            lease.foreground();
        }
    }

    /// What the engine is now.
    pub fn state(&self) -> Result<EngineState, EpiphyteError> {
        Ok(self.lease()?.state().into())
    }

    /// What the engine is now, and then each change until it is closed.
    pub fn states(self: Arc<Self>) -> Arc<States> {
        Arc::new(States {
            bell: Arc::clone(self.bell()),
            engine: Arc::downgrade(&self),
            seen: AtomicI64::new(-1),
            over: AtomicBool::new(false),
        })
    }
}

/// An engine's states, one after another; it keeps no engine open. For one who waits at a time.
#[derive(uniffi::Object)]
pub struct States {
    engine: Weak<Engine>,
    bell: Arc<Bell>,
    /// `changes` of the last one.
    seen: AtomicI64,
    over: AtomicBool,
}

#[uniffi::export]
impl States {
    /// The state, at once the first time and then when there was a change; changes that come while
    /// nobody waits are one. None from when the engine is closed, or this cancelled.
    pub async fn next(&self) -> Option<EngineState> {
        poll_fn(|context| {
            // Before it looks: a change in between rings.
            remember(&mut lock(&self.bell.0), context.waker());
            let engine = self.engine.upgrade().filter(|_| !self.over.load(Ordering::SeqCst));
            let state = engine.and_then(|engine| engine.state().ok());
            let seen = self.seen.load(Ordering::SeqCst);
            if state.is_some_and(|state| state.changes <= seen) {
                return Poll::Pending;
            }
            self.seen.store(state.map_or(seen, |state| state.changes), Ordering::SeqCst);
            Poll::Ready(state)
        })
        .await
    }

    /// Ends it, for who waits as well.
    pub fn cancel(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.bell.ring();
    }
}

/// The bell that the engine rings at each change.
pub(crate) fn watch(engine: &epiphyte::Engine) -> (Arc<Bell>, runtime::StateWatch) {
    let bell = Arc::<Bell>::default();
    let rung = Arc::clone(&bell);
    (bell, engine.watch_state(move |_| rung.ring()))
}
