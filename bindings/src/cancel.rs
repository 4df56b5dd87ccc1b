//! Stops a call that takes long.

use std::sync::Arc;

/// Stops the calls that it was given to, from any thread: they throw `Cancelled`, and leave nothing
/// behind.
#[derive(Debug, Default, uniffi::Object)]
pub struct CancelToken(epiphyte::CancelToken);

#[uniffi::export]
impl CancelToken {
    /// One that stops nothing yet.
    #[uniffi::constructor]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Asks to stop; for good.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// The token of a call, which is asked to stop when nobody waits for it any more.
pub(crate) struct Awaited(epiphyte::CancelToken);

impl Awaited {
    pub(crate) fn new(given: Option<&CancelToken>) -> Self {
        Self(given.map_or_else(Default::default, |given| given.0.clone()))
    }

    pub(crate) fn token(&self) -> epiphyte::CancelToken {
        self.0.clone()
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
