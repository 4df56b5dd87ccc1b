//! Every test of the runtime, one binary: a module a subject.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::doc_markdown, reason = "formulas and names read better plain here")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measured")]

mod adapter;
mod chat;
#[cfg(feature = "cli")]
mod cli;
mod common;
mod default_model;
mod engine;
mod gguf;
mod identity;
mod kernels;
mod model;
mod quant;
mod said;
mod selftest;
mod shaders;
mod templates;
mod tokenizer;
mod train;
