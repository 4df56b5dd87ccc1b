//! Vectors in memory and in files.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Error, Result};
use crate::format::safetensors::to_bytes;
use crate::format::staged::Staged;

/// What a file of vectors says it is.
const FORMAT: &str = "epiphyte.embeddings.1";

/// Vectors of equal width, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vectors {
    width: usize,
    values: Vec<f32>,
}

impl Vectors {
    /// None yet, of `width` numbers each.
    pub fn new(width: usize) -> Self {
        Self { width, values: Vec::new() }
    }

    /// Adds one.
    ///
    /// Errors: [`Error::InvalidArgument`] for another width, or a number that is not finite.
    pub fn push(&mut self, vector: &[f32]) -> Result<()> {
        let wrong = |reason: String| Error::InvalidArgument { name: "vector", reason };
        if vector.len() != self.width {
            return Err(wrong(format!("{} numbers, not {}", vector.len(), self.width)));
        }
        if !vector.iter().all(|value| value.is_finite()) {
            return Err(wrong("it holds NaN or infinity".into()));
        }
        self.values.extend_from_slice(vector);
        Ok(())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Numbers of each.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One after the other.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// Writes them, f32 `[N, D]`, whole or not at all: as `NumPy`'s `.npy` where the name ends so, else
    /// as safetensors, tensor `embeddings`, with the base's fingerprint.
    ///
    /// Errors: [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>, base_fingerprint: &str) -> Result<()> {
        let path = path.as_ref();
        let is_npy =
            path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"));
        let bytes =
            if is_npy { self.to_npy() } else { self.to_safetensors(path, base_fingerprint)? };
        Staged::write(path, &bytes)?.commit()
    }

    /// Version 1.0 of the format: a head of whole 64 bytes, then the numbers.
    fn to_npy(&self) -> Vec<u8> {
        const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
        let shape = format!("({}, {})", self.len(), self.width);
        let mut head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        let unpadded = MAGIC.len() + 2 + head.len() + 1;
        head.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
        head.push('\n');
        let values = self.values.iter().flat_map(|value| value.to_le_bytes());
        let head = [MAGIC, &(head.len() as u16).to_le_bytes(), head.as_bytes()].concat();
        head.into_iter().chain(values).collect()
    }

    fn to_safetensors(&self, path: &Path, base_fingerprint: &str) -> Result<Vec<u8>> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let metadata =
            [("epiphyte.format", FORMAT), ("epiphyte.base_fingerprint", base_fingerprint)];
        let metadata: HashMap<_, _> =
            metadata.map(|(key, text)| (key.to_string(), text.to_string())).into();
        let view = TensorView::new(Dtype::F32, vec![self.len(), self.width], &bytes);
        let file = view.and_then(|view| to_bytes(vec![("embeddings", view)], metadata));
        file.map_err(|e| Error::InvalidFile {
            path: path.into(),
            reason: format!("safetensors: {e}"),
        })
    }
}
