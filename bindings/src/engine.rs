//! A device with a base model on it.

use std::sync::Arc;

use crate::{EpiphyteError, Session};

/// How to open an [`Engine`].
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct EngineOptions {
    /// Most tokens of a session; none: what the model was made for, within reason.
    #[uniffi(default = None)]
    pub context: Option<u32>,
}

impl From<EngineOptions> for epiphyte::engine::EngineOptions {
    fn from(options: EngineOptions) -> Self {
        Self { context: options.context.map(|tokens| tokens as usize), ..Default::default() }
    }
}

/// What opening a model is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LoadPhase {
    /// Kernels compared with the CPU, once on a driver; counts kernels.
    SelfTest,
    /// Weights sent to the device; counts bytes.
    Weights,
    /// Shaders compiled for this model; counts kernels.
    Shaders,
    /// Anything else.
    Other,
}

/// How far a phase of opening is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct LoadProgress {
    /// Which one.
    pub phase: LoadPhase,
    /// Done so far, in what the phase counts.
    pub done: u64,
    /// In all.
    pub total: u64,
}

impl From<epiphyte::LoadProgress> for LoadProgress {
    fn from(progress: epiphyte::LoadProgress) -> Self {
        let phase = match progress.phase {
            epiphyte::LoadPhase::SelfTest => LoadPhase::SelfTest,
            epiphyte::LoadPhase::Weights => LoadPhase::Weights,
            epiphyte::LoadPhase::Shaders => LoadPhase::Shaders,
            _ => LoadPhase::Other,
        };
        Self { phase, done: progress.done, total: progress.total }
    }
}

/// Hears how far opening is, on the thread that called [`Engine::open_with`].
#[uniffi::export(with_foreign)]
pub trait LoadListener: Send + Sync {
    /// Something more is done.
    fn on_progress(&self, progress: LoadProgress);
}

/// One base model in memory, shared by any number of sessions.
#[derive(uniffi::Object)]
pub struct Engine(Arc<epiphyte::engine::Engine>);

#[uniffi::export]
impl Engine {
    /// Opens the GPU, checks its driver and loads the GGUF file at `path`. Takes seconds the first
    /// time on a driver.
    #[uniffi::constructor]
    pub fn open(path: String, options: EngineOptions) -> Result<Arc<Self>, EpiphyteError> {
        Ok(Arc::new(Self(epiphyte::engine::Engine::open(path, options.into())?)))
    }

    /// As [`Engine::open`], and tells `listener` what it is busy with.
    #[uniffi::constructor]
    pub fn open_with(
        path: String,
        options: EngineOptions,
        listener: Arc<dyn LoadListener>,
    ) -> Result<Arc<Self>, EpiphyteError> {
        let mut report = |progress: epiphyte::LoadProgress| listener.on_progress(progress.into());
        Ok(Arc::new(Self(epiphyte::engine::Engine::open_with(path, options.into(), &mut report)?)))
    }

    /// An empty session.
    pub fn session(&self) -> Arc<Session> {
        Arc::new(Session::new(self.0.session()))
    }
}
