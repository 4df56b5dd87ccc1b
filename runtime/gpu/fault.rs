//! What goes wrong on a device outside of a call, and a device that is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Gpu;
use crate::error::{Error, Result};

/// The first fault that nobody has heard of; a lost device stays one.
pub(super) type Fault = Arc<Mutex<Option<Error>>>;

impl Gpu {
    /// The first fault that the driver reported since the last call.
    ///
    /// Errors: [`Error::DeviceLost`], [`Error::OutOfMemory`] or [`Error::Gpu`].
    pub fn check(&self) -> Result<()> {
        let mut fault = self.first_fault();
        match &*fault {
            None => Ok(()),
            Some(Error::DeviceLost(reason)) => Err(Error::DeviceLost(reason.clone())),
            Some(_) => fault.take().map_or(Ok(()), Err),
        }
    }

    /// The same GPU, opened again after it was lost: chosen and used as this one.
    ///
    /// Errors: as [`Gpu::open`].
    pub(crate) fn reopen(&self) -> Result<Self> {
        let mut gpu = Self::open(self.options.clone())?;
        // The verdicts of the self-test hold for it, too.
        gpu.restrict(&self.caps);
        gpu.caps.software = self.caps.software;
        gpu.unit = self.unit;
        Ok(gpu)
    }

    /// Whether the driver has taken the device away.
    pub(crate) fn is_lost(&self) -> bool {
        // It may not have been heard of yet.
        let _ = self.device.poll(wgpu::PollType::Poll);
        matches!(*self.first_fault(), Some(Error::DeviceLost(_)))
    }

    /// Takes the device away, as a driver does that resets: to test what comes then.
    pub fn lose(&self) {
        *self.first_fault() = Some(Error::DeviceLost("on purpose".into()));
        self.device.destroy();
    }

    fn first_fault(&self) -> MutexGuard<'_, Option<Error>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Faults outside an error scope must not panic: the first is kept for [`Gpu::check`].
pub(super) fn watch(device: &wgpu::Device) -> Fault {
    let fault = Fault::default();
    let keep = |fault: &Fault, error: Error| {
        let mut slot = fault.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() || matches!(error, Error::DeviceLost(_)) {
            *slot = Some(error);
        }
    };
    let uncaptured = Arc::clone(&fault);
    device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
        keep(&uncaptured, from_wgpu("run", e))
    }));
    let lost = Arc::clone(&fault);
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            keep(&lost, Error::DeviceLost(message));
        }
    });
    fault
}

/// Names the operation in a wgpu error.
pub(crate) fn from_wgpu(op: &str, error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => {
            Error::OutOfMemory { what: op.to_string(), needed_bytes: 0 }
        }
        other => Error::Gpu { op: op.to_string(), reason: other.to_string() },
    }
}
