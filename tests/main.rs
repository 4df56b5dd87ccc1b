//! Every test of the runtime, one binary: a module a subject.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod chat;
#[cfg(feature = "cli")]
mod cli;
mod common;
mod default_model;
mod engine;
mod gguf;
mod kernels;
mod model;
mod quant;
mod selftest;
mod shaders;
mod tokenizer;
