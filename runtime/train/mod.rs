//! Fine-tuning on the device: examples in, an adapter out, with the memory counted before any of it is taken.
//!
//! [`data`] turns files into batches of tokens, [`schedule`] gives the learning rate of a step, [`signals`] reads the
//! losses.

pub mod data;
mod random;
pub mod schedule;
pub mod signals;
