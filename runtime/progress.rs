//! How far opening a model is: what takes so long that someone may wonder.

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
