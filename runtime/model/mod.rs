//! Models: what a file's weights mean.

pub mod config;
pub mod rope;
