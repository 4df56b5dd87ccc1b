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

/// One base model in memory, shared by any number of sessions.
#[derive(uniffi::Object)]
pub struct Engine(Arc<epiphyte::engine::Engine>);

#[uniffi::export]
impl Engine {
    /// Opens the GPU, checks its driver and loads the GGUF file at `path`. Takes seconds the first time on a driver.
    #[uniffi::constructor]
    pub fn open(path: String, options: EngineOptions) -> Result<Arc<Self>, EpiphyteError> {
        let context = options.context.map(|tokens| tokens as usize);
        let options = epiphyte::engine::EngineOptions { context, ..Default::default() };
        Ok(Arc::new(Self(epiphyte::engine::Engine::open(path, options)?)))
    }

    /// An empty session.
    pub fn session(&self) -> Arc<Session> {
        Arc::new(Session::new(self.0.session()))
    }
}
