//! Fine-tuning on the device: examples in, an adapter out, with the memory counted before any of it
//! is taken.
//!
//! [`data`] turns files into batches of tokens, [`schedule`] gives the learning rate of a step,
//! [`buffers`] lists what a step needs on the device, [`plan`] adds that up and fits it to a
//! budget, [`recipe`] has what nobody has to choose, [`signals`] reads the losses. [`run`] puts it
//! together: a folder, its checkpoints, validation, pause and stop.

mod attend;
mod bench;
pub mod buffers;
pub mod data;
mod factors;
mod graph;
mod head;
mod layer;
pub mod plan;
mod products;
mod random;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod setup;
pub mod signals;

mod checkpoint;
pub mod options;
pub mod trainer;
mod update;

pub use factors::fresh_adapter;
pub use options::TrainOptions;
pub use run::{RunFolder, RunOptions, TrainControl, TrainRun};
pub use trainer::Trainer;
