//! Adapters merged into weights, in files: the base in memory stays as it is. Nothing here knows a
//! GPU.

pub mod export;
mod linear;

#[cfg(feature = "cli")]
pub(crate) use export::MERGED_KEY;
pub use export::{ExportReport, MergedTensor, export_gguf};
