//! What a file is, by its beginning.

use std::path::Path;

use crate::adapter::gguf_lora;
use crate::export::MERGED_KEY;
use crate::format::gguf::Gguf;
use crate::format::safetensors::is_safetensors;
use crate::quantize::QUANTIZED_KEY;
use crate::stack::STACKED_KEY;

/// What a file can be opened as.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A model, in GGUF. Whether it can be run is for [`crate::base::ModelConfig`] to say.
    Model,
    /// A model in GGUF that [`crate::export::export_gguf`] wrote: adapters are part of it.
    MergedModel,
    /// A model in GGUF that [`crate::stack::stack_gguf`] wrote, of other models' layers.
    StackedModel,
    /// A model in GGUF that [`crate::quantize::quantize_gguf`] wrote, perhaps of a merged or stacked one.
    QuantizedModel,
    /// A LoRA adapter in GGUF.
    GgufAdapter,
    /// Tensors such as those of a LoRA adapter.
    Safetensors,
    /// None of these, or not to be read.
    Other,
}

impl FileKind {
    /// That of the file at `path`, of which only the header is read.
    pub fn of(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        if is_safetensors(path) {
            return Self::Safetensors;
        }
        let Ok(gguf) = Gguf::open(path) else { return Self::Other };
        if gguf_lora::is_adapter(&gguf) {
            Self::GgufAdapter
        } else if gguf.find::<&str>(QUANTIZED_KEY).is_ok_and(|told| told.is_some()) {
            // First: the keys of what was quantised are carried over.
            Self::QuantizedModel
        } else if gguf.find::<u32>(MERGED_KEY).is_ok_and(|count| count.is_some()) {
            Self::MergedModel
        } else if gguf.find::<&str>(STACKED_KEY).is_ok_and(|told| told.is_some()) {
            Self::StackedModel
        } else {
            Self::Model
        }
    }
}
