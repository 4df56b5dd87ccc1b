//! Every test of the runtime, one binary: a module a subject.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::doc_markdown, reason = "formulas and names read better plain here")]
#![cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "helpers of the tests that need one"))]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measured")]

mod adapter;
mod chat;
mod checkpoint;
mod classify;
mod common;
#[cfg(feature = "gpu")]
mod default_model;
#[cfg(feature = "gpu")]
mod engine;
mod federated;
mod floors;
#[cfg(feature = "gpu")]
mod gemma;
mod gguf;
mod identity;
#[cfg(feature = "gpu")]
mod kernels;
mod library;
mod merge;
#[cfg(feature = "gpu")]
mod model;
mod numbers;
mod quant;
mod quantize;
mod said;
#[cfg(feature = "gpu")]
mod schemas;
#[cfg(feature = "gpu")]
mod selftest;
#[cfg(feature = "gpu")]
mod shaders;
mod stack;
mod templates;
mod tokenizer;
mod tools;
#[cfg(feature = "gpu")]
mod train;
