//! Adapters merged into weights, in files: the base in memory stays as it is. Nothing here knows a
//! GPU.

pub mod export;
mod linear;

pub use export::{ExportReport, MERGED_KEY, MergedTensor, export_gguf};
