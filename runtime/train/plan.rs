//! Memory, added up before any of it is taken: weights + adapter + gradients + optimiser states +
//! activations + KV cache.
//!
//! Pure arithmetic on the lists of [`super::buffers`]; [`fit`] looks for the setting that a budget
//! allows. For a model of which only the size is known there is the [`Textbook`] sum.

mod choose;
mod fit;

pub use choose::{Choice, Device, TRAIN_CONTEXT, Wish, choose};
pub use fit::{Free, fit};

use serde::Serialize;

use super::buffers::{Buffer, Class, TrainShape, inference_buffers, kv_buffers, train_buffers};
use crate::base::ModelConfig;
use crate::error::Result;
use crate::format::gguf::Gguf;
use crate::quant;

/// What a plan needs to know of a loaded model.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// Its sizes.
    pub config: &'a ModelConfig,
    /// Of its weights on the device: [`weight_bytes`].
    pub weight_bytes: u64,
    /// Bytes of an element of the KV cache: 2 where the device has f16, else 4.
    pub kv_element_bytes: usize,
    /// What the engine that holds it takes beside its weights, whatever is trained:
    /// [`engine_bytes`]; 0 leaves it out.
    pub engine_bytes: u64,
}

/// A sum of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What it adds up.
    pub buffers: Vec<Buffer>,
}

impl MemoryPlan {
    /// To answer: passes of `rows` rows, `kv_tokens` positions of conversations in all.
    pub fn inference(model: &Model<'_>, rows: usize, kv_tokens: usize) -> Self {
        let mut buffers = vec![bytes("weights", Class::Weights, model.weight_bytes)];
        buffers.extend(inference_buffers(model.config, rows, kv_tokens));
        buffers.extend(kv_buffers(model.config, kv_tokens, model.kv_element_bytes));
        Self { buffers }
    }

    /// To train as `shape` says, beside `kv_tokens` positions of conversations that go on
    /// meanwhile.
    ///
    /// Errors: as [`TrainShape::check`].
    pub fn training(model: &Model<'_>, shape: &TrainShape, kv_tokens: usize) -> Result<Self> {
        shape.check(model.config)?;
        let mut buffers = vec![bytes("weights", Class::Weights, model.weight_bytes)];
        buffers.extend(train_buffers(model.config, shape));
        if model.engine_bytes > 0 {
            buffers.push(bytes("engine", Class::Activations, model.engine_bytes));
        }
        if kv_tokens > 0 {
            buffers.extend(kv_buffers(model.config, kv_tokens, model.kv_element_bytes));
        }
        Ok(Self { buffers })
    }

    /// Bytes in all.
    pub fn total_bytes(&self) -> u64 {
        self.buffers.iter().fold(0, |sum, buffer| sum.saturating_add(buffer.bytes()))
    }

    /// Bytes of one class.
    pub fn class_bytes(&self, class: Class) -> u64 {
        let of_class = self.buffers.iter().filter(|buffer| buffer.class == class);
        of_class.fold(0, |sum, buffer| sum.saturating_add(buffer.bytes()))
    }

    /// The classes that take anything, with their bytes.
    pub fn classes(&self) -> Vec<(Class, u64)> {
        let all = Class::ALL.into_iter().map(|class| (class, self.class_bytes(class)));
        all.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// The sum on one line.
    pub fn sum(&self) -> String {
        let parts = self
            .classes()
            .into_iter()
            .map(|(class, bytes)| format!("{} {}", class.label(), human_bytes(bytes)));
        parts.collect::<Vec<_>>().join(" + ")
    }
}

/// The sum by rule of thumb, for a model of which only the size is known.
///
/// Inference: weights, and a fifth of them for activations and KV cache. Training: weights, then
/// for each trained parameter a gradient and the optimiser's states, all of `bytes_per_param`;
/// activations are left out, since they depend on what is not known. With Adam at 16 bit 13 billion
/// parameters need 13e9 · (1 + 2) · 2 bytes = 78 GB for gradients and states: 6 bytes a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Textbook {
    /// Of the model.
    pub parameters: f64,
    /// Bytes of a number: 2 for 16 bit, 0.5 for 4 bit.
    pub bytes_per_param: f64,
    /// Trained parameters and states of the optimiser for each; `None` is inference.
    pub training: Option<(f64, usize)>,
}

impl Textbook {
    /// A fifth of the weights, for activations and KV cache.
    const OVERHEAD: f64 = 0.2;

    /// The sum in bytes.
    pub fn plan(&self) -> MemoryPlan {
        let buffer = |name: &str, class, numbers: f64| Buffer {
            name: name.into(),
            class,
            shape: vec![(numbers * self.bytes_per_param).round() as u64],
            element_bytes: 1,
        };
        let mut buffers = vec![buffer("weights", Class::Weights, self.parameters)];
        match self.training {
            None => {
                buffers.push(buffer("overhead", Class::Overhead, Self::OVERHEAD * self.parameters))
            }
            Some((trained, states)) => {
                buffers.push(buffer("gradients", Class::Gradients, trained));
                buffers.push(buffer(
                    "optimizer states",
                    Class::OptimizerStates,
                    trained * states as f64,
                ));
            }
        }
        MemoryPlan { buffers }
    }
}

/// Bytes that the weights of a checked file take on the device, repacked for the kernels.
///
/// Errors: as [`Gguf::require`].
pub fn weight_bytes(gguf: &Gguf, config: &ModelConfig) -> Result<u64> {
    let mut bytes = 0;
    for (name, shape) in config.tensors() {
        let view = gguf.require(&name)?;
        let words = match shape.len() {
            // Gains of norms are f32 there.
            1 => view.n_weights(),
            _ => {
                let (words, scales) =
                    quant::format(view.dtype).packed_len(view.n_weights() / quant::BLOCK);
                words + scales
            }
        };
        bytes += 4 * words as u64;
    }
    Ok(bytes)
}

/// Bytes of an engine's buffers beside the weights: passes of `rows` rows, contexts of `positions`
/// tokens.
pub fn engine_bytes(model: &Model<'_>, rows: usize, positions: usize) -> u64 {
    let plan = MemoryPlan::inference(model, rows, positions);
    plan.total_bytes() - plan.class_bytes(Class::Weights)
}

/// A buffer of which only the size is known.
fn bytes(name: &str, class: Class, bytes: u64) -> Buffer {
    Buffer { name: name.into(), class, shape: vec![bytes], element_bytes: 1 }
}

/// Bytes for people, in powers of 1000 as memory is advertised and textbooks count it.
pub fn human_bytes(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}
