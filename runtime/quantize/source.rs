//! Where weights come from: tensors under GGUF's names, rows in GGUF's order.

use std::borrow::Cow;
use std::ops::Range;

use crate::checkpoint::{Checkpoint, gguf_keys};
use crate::dtype::DType;
use crate::error::Result;
use crate::format::TensorView;
use crate::format::gguf::{Gguf, gguf_name};
use crate::format::gguf_writer::{ALIGNMENT, GgufWriter};

/// Divisors of rotary frequencies, as GGUF names them.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// A tensor of the source.
pub(super) struct Tensor {
    /// As GGUF names it.
    pub(super) name: String,
    /// Row-major.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    /// The source's own number of it.
    pub(super) index: usize,
}

impl Tensor {
    pub(super) fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub(super) fn n_weights(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_weights() / self.row_len()
    }

    /// Whether it may be rounded: all else (norms, biases) is small and stays exact.
    pub(super) fn is_matrix(&self) -> bool {
        self.shape.len() > 1 && self.name.ends_with(".weight")
    }
}

/// A model to be written in other types.
pub(super) trait Source {
    fn alignment(&self) -> Result<u64>;
    /// Writes the model's keys but those that `leave` names.
    fn keys(&self, writer: &mut GgufWriter, leave: &dyn Fn(&str) -> bool);
    /// In the new file's order.
    fn tensors(&self) -> &[Tensor];
    /// Rows of a tensor in its own type.
    fn bytes(&self, tensor: &Tensor, rows: Range<usize>) -> Result<Cow<'_, [u8]>>;
}

/// A GGUF file.
pub(super) struct GgufSource<'a> {
    gguf: &'a Gguf,
    views: Vec<TensorView<'a>>,
    tensors: Vec<Tensor>,
}

impl<'a> GgufSource<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Self {
        let architecture = gguf.architecture().unwrap_or_default();
        let views: Vec<_> = gguf.tensors().map(TensorView::in_file_order).collect();
        let tensor = |(index, view): (usize, &TensorView<'_>)| Tensor {
            name: gguf_name(architecture, view.name).unwrap_or_else(|| view.name.into()),
            shape: view.shape.to_vec(),
            dtype: view.dtype,
            index,
        };
        let tensors = views.iter().enumerate().map(tensor).collect();
        Self { gguf, views, tensors }
    }
}

impl Source for GgufSource<'_> {
    fn alignment(&self) -> Result<u64> {
        Ok(self.gguf.find::<u32>("general.alignment")?.map_or(ALIGNMENT, u64::from))
    }

    fn keys(&self, writer: &mut GgufWriter, leave: &dyn Fn(&str) -> bool) {
        for (key, kind, value) in self.gguf.raw_metadata().filter(|(key, ..)| !leave(key)) {
            writer.key(key, kind, value);
        }
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn bytes(&self, tensor: &Tensor, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        Ok(self.views[tensor.index].rows(rows.start, rows.len()))
    }
}

/// A checkpoint's folder: rows of q and k are interleaved on the way, as llama files have them.
pub(super) struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    /// Hugging Face's names of the tensors.
    names: Vec<String>,
    tensors: Vec<Tensor>,
    /// What GGUF has as a tensor and the checkpoint as numbers: Llama 3's divisors of frequencies.
    rope_freqs: Vec<u8>,
}

impl<'a> CheckpointSource<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        let family = checkpoint.config.family().gguf;
        let (mut names, mut tensors) = (Vec::new(), Vec::new());
        for (name, shape) in checkpoint.config.tensors() {
            let index = names.len();
            let gguf = gguf_name(family, &name).unwrap_or_else(|| name.clone());
            let dtype = checkpoint.shards.get(&name)?.dtype;
            tensors.push(Tensor { name: gguf, shape, dtype, index });
            names.push(name);
        }
        let divisors = checkpoint.config.rope_divisors();
        if let Some(divisors) = &divisors {
            let (name, index) = (ROPE_FREQS.to_string(), names.len());
            tensors.push(Tensor { name, shape: vec![divisors.len()], dtype: DType::F32, index });
            names.push(ROPE_FREQS.into());
        }
        let rope_freqs = divisors.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
        Ok(Self { checkpoint, names, tensors, rope_freqs })
    }

    /// Rows of a head, of tensors that GGUF interleaves.
    fn head(&self, name: &str) -> Option<usize> {
        let interleaved = [".q_proj.weight", ".k_proj.weight"];
        let config = &self.checkpoint.config;
        interleaved.iter().any(|end| name.ends_with(end)).then_some(config.head_dim)
    }
}

impl Source for CheckpointSource<'_> {
    fn alignment(&self) -> Result<u64> {
        Ok(ALIGNMENT)
    }

    fn keys(&self, writer: &mut GgufWriter, _leave: &dyn Fn(&str) -> bool) {
        gguf_keys(&self.checkpoint.config, writer);
        self.checkpoint.tokenizer.keys(writer);
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn bytes(&self, tensor: &Tensor, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let name = &self.names[tensor.index];
        if name == ROPE_FREQS {
            return Ok(Cow::Borrowed(&self.rope_freqs));
        }
        if tensor.shape.len() == 1 {
            // One row here, rows of one number there.
            return Ok(Cow::Owned(self.checkpoint.shards.rows(name, 0..tensor.n_weights())?));
        }
        let Some(head) = self.head(name) else {
            return Ok(Cow::Owned(self.checkpoint.shards.rows(name, rows)?));
        };
        // Row 2 i + half of a head is the one at half * head / 2 + i, so whole heads are read.
        let whole = rows.start / head * head..rows.end.next_multiple_of(head);
        let bytes = self.checkpoint.shards.rows(name, whole.clone())?;
        let size = bytes.len() / whole.len();
        let mut out = Vec::with_capacity(rows.len() * size);
        for row in rows {
            let (first, at) = (row - row % head - whole.start, row % head);
            let from = first + at % 2 * (head / 2) + at / 2;
            out.extend_from_slice(&bytes[from * size..][..size]);
        }
        Ok(Cow::Owned(out))
    }
}
