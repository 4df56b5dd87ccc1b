//! Adapters on the device.

mod arena;
mod entry;
mod packed;
pub mod registry;

pub use entry::{AdapterState, SetId};
pub(crate) use entry::{Incoming, ReadAgain};
pub use registry::Registry;
