//! How far opening a model is: what takes so long that someone may wonder, and may want it no more.

#[cfg(feature = "gpu")]
use crate::cancel::CancelToken;

/// What opening a model is busy with, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadPhase {
    /// Kernels compared with the CPU, once on a driver; counts kernels.
    SelfTest,
    /// Weights sent to the device; counts bytes of the file.
    Weights,
    /// Shaders compiled for this model; counts kernels.
    Shaders,
}

/// How far a phase of opening is. Each begins with nothing done and ends with all of it; one that
/// is not needed is never heard of, and a self-test that has to fall back on simpler kernels begins
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Which one.
    pub phase: LoadPhase,
    /// Done so far, in what the phase counts.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// Opening a model, for whoever waits for it.
#[cfg(feature = "gpu")]
pub(crate) struct Loading<'a> {
    /// Hears how far it is.
    progress: &'a mut dyn FnMut(LoadProgress),
    /// Stops it: between two kernels that are tested or compiled, and two tensors.
    pub(crate) cancel: CancelToken,
}

#[cfg(feature = "gpu")]
impl<'a> Loading<'a> {
    pub(crate) fn new(progress: &'a mut dyn FnMut(LoadProgress), cancel: &CancelToken) -> Self {
        Self { progress, cancel: cancel.clone() }
    }

    /// One that nobody stops.
    pub(crate) fn to_the_end(progress: &'a mut dyn FnMut(LoadProgress)) -> Self {
        Self::new(progress, &CancelToken::default())
    }

    /// Whoever has stopped it hears no more of it.
    pub(crate) fn report(&mut self, phase: LoadPhase, done: u64, total: u64) {
        if !self.cancel.is_cancelled() {
            (self.progress)(LoadProgress { phase, done, total });
        }
    }
}
