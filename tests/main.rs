//! One binary for all tests: a module a subject.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod quant;
