//! Adapters on the device.

mod arena;
mod entry;
mod packed;
pub mod registry;

pub use entry::{AdapterState, SetId};
pub use registry::Registry;
