//! Every test of the runtime, one binary.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod chat;
mod common;
mod shaders;
mod tokenizer;
