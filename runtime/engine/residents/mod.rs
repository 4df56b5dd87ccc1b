//! Adapters on the device.

pub(super) mod arena;
mod entry;
pub(super) mod packed;
pub(super) mod registry;

pub use entry::AdapterState;
pub(crate) use entry::{Absent, Incoming, ReadAgain, SetId};
pub(crate) use registry::Registry;
