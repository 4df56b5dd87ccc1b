//! Adapters on the device.

mod arena;
mod entry;
mod packed;
mod registry;

pub use entry::AdapterState;
pub(crate) use entry::{Incoming, ReadAgain, SetId};
pub(crate) use registry::Registry;
