//! Stops a long call from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Stops a call from another thread: between submissions, so within about 20 ms of GPU time.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
    /// Asks to stop, too, while it is not zero.
    interrupted: Option<Arc<AtomicUsize>>,
}

impl CancelToken {
    /// Asks to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Someone asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
            || self.interrupted.as_ref().is_some_and(|n| n.load(Ordering::Relaxed) > 0)
    }

    /// This token, which also asks to stop while `interrupted` is not zero.
    #[cfg(feature = "gpu")]
    pub(crate) fn or_while(&self, interrupted: &Arc<AtomicUsize>) -> Self {
        let cancelled = Arc::clone(&self.cancelled);
        Self { cancelled, interrupted: Some(Arc::clone(interrupted)) }
    }

    /// Errors: [`Error::Cancelled`] once someone asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
