//! What one may ask of an engine's device.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::bandwidth;

/// Work that a device was given since it was opened.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceWork {
    /// Kernels run.
    pub dispatches: u64,
    /// Submissions.
    pub submits: u64,
    /// Bytes of weights and KV cache that kernels read.
    pub bytes: u64,
    /// Kernels that the self-test compared with the CPU; none where an earlier start has.
    pub tested_kernels: u64,
    /// Kernels compiled that no earlier start with the same cache folder and driver compiled.
    pub compiled_kernels: u64,
}

/// How fast a device is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceSpeed {
    /// Bytes a second that it reads.
    pub read_bandwidth: f64,
    /// Between two dispatches of which one waits for the other.
    pub dispatch_gap_seconds: f64,
}

impl Engine {
    internal! {
        /// The device.
        pub fn gpu(&self) -> &Gpu {
            self.second.get().unwrap_or(&self.first)
        }
    }

    /// The device on a line: name, backend, driver.
    pub fn device(&self) -> String {
        self.gpu().description()
    }

    /// The device computes on the processor.
    pub fn is_software(&self) -> bool {
        self.gpu().caps().software
    }

    /// Bytes of device memory that everything of this engine takes now, training included.
    pub fn device_bytes(&self) -> u64 {
        self.class_bytes().iter().map(|of_class| of_class.bytes).sum()
    }

    /// What the device has done since it was opened.
    pub fn device_work(&self) -> DeviceWork {
        let counters = &self.gpu().counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceWork {
            dispatches: read(&counters.dispatches),
            submits: read(&counters.submits),
            bytes: read(&counters.bytes),
            tested_kernels: read(&counters.tested),
            compiled_kernels: read(&counters.compiled),
        }
    }

    /// Measures the device for about a second.
    ///
    /// Errors: [`crate::Error::Gpu`], [`crate::Error::OutOfMemory`].
    pub fn device_speed(&self) -> Result<DeviceSpeed> {
        DeviceSpeed::of(self.gpu())
    }

    /// Waits until the device has done all that was asked of it.
    ///
    /// Errors: [`crate::Error::DeviceLost`], [`crate::Error::OutOfMemory`], [`crate::Error::Gpu`].
    pub fn wait(&self) -> Result<()> {
        self.gpu().wait(None)
    }

    /// Keeps what was compiled since the engine was opened for the next start; for a program that
    /// leaves without dropping the engine, which does it, too.
    pub fn save_pipelines(&self) {
        self.gpu().save_pipelines();
    }
}

impl DeviceSpeed {
    pub(crate) fn of(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            read_bandwidth: bandwidth::measure_read(gpu)?,
            dispatch_gap_seconds: bandwidth::measure_dispatch(gpu)?,
        })
    }
}
