//! Where weights come from: tensors under GGUF's names, rows in GGUF's order.

use std::borrow::Cow;
use std::ops::Range;

use crate::dtype::DType;
use crate::error::Result;
use crate::format::TensorView;
use crate::format::gguf::{Gguf, gguf_name};
use crate::format::gguf_writer::{ALIGNMENT, GgufWriter};

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
        let views: Vec<_> = gguf.tensors().map(TensorView::in_file_order).collect();
        let tensor = |(index, view): (usize, &TensorView<'_>)| Tensor {
            name: gguf_name(view.name).unwrap_or_else(|| view.name.into()),
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
