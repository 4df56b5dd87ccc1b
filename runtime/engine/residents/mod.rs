//! Adapters on the device.

pub(super) mod arena;
mod entry;
pub(super) mod packed;
pub mod registry;

pub use entry::{AdapterState, SetId};
pub use registry::Registry;
