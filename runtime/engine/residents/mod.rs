//! Adapters on the device.

pub(super) mod arena;
mod entry;
pub(super) mod packed;
pub mod registry;

pub use entry::{AdapterState, SetId};
pub(crate) use entry::{Incoming, ReadAgain};
pub use registry::Registry;
