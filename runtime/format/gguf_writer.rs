//! The head of a GGUF v3 file: keys and the list of tensors, whose data follow in the same order.

use std::collections::BTreeSet;

use crate::dtype::{DType, OWN_KEYS};

/// What readers take when the file does not say.
pub(crate) const ALIGNMENT: u64 = 32;

/// A head in the making.
pub(crate) struct GgufWriter {
    alignment: u64,
    n_keys: u64,
    keys: Vec<u8>,
    n_tensors: u64,
    infos: Vec<u8>,
    /// Types that GGUF has no number for.
    own: BTreeSet<DType>,
    /// Of all tensors so far, padded.
    data_bytes: u64,
}

impl GgufWriter {
    /// For tensors that begin at multiples of `alignment` bytes, a power of two; the caller adds
    /// the key for another than [`ALIGNMENT`].
    pub(crate) fn new(alignment: u64) -> Self {
        Self {
            alignment,
            n_keys: 0,
            keys: Vec::new(),
            n_tensors: 0,
            infos: Vec::new(),
            own: BTreeSet::new(),
            data_bytes: 0,
        }
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.key(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key, 8, &counted(value))
    }

    pub(crate) fn truth(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key, 7, &[u8::from(value)])
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[String]) -> &mut Self {
        self.array(key, 8, values.len(), values.iter().flat_map(|text| counted(text)))
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.array(key, 5, values.len(), values.iter().flat_map(|v| v.to_le_bytes()))
    }

    fn array(
        &mut self,
        key: &str,
        kind: u32,
        len: usize,
        values: impl Iterator<Item = u8>,
    ) -> &mut Self {
        let mut bytes = [&kind.to_le_bytes()[..], &(len as u64).to_le_bytes()].concat();
        bytes.extend(values);
        self.key(key, 9, &bytes)
    }

    /// A value as a file has it; `kind` is a `gguf_metadata_value_type`. Those of another file's
    /// types of ours are left away: this one says its own.
    pub(crate) fn key(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        if key.starts_with(OWN_KEYS) {
            return self;
        }
        self.add(key, kind, value)
    }

    fn add(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.n_keys += 1;
        self.keys.extend(counted(key));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self
    }

    /// A tensor of `n_bytes` bytes; `shape` is row-major. Gives the zeros to write after its data.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        n_bytes: u64,
    ) -> Vec<u8> {
        self.n_tensors += 1;
        if dtype.is_own() && self.own.insert(dtype) {
            self.add(&dtype.own_key(), 4, &dtype.ggml_type().to_le_bytes());
        }
        self.infos.extend(counted(name));
        self.infos.extend((shape.len() as u32).to_le_bytes());
        // Fastest first.
        self.infos.extend(shape.iter().rev().flat_map(|&dim| (dim as u64).to_le_bytes()));
        self.infos.extend(dtype.ggml_type().to_le_bytes());
        self.infos.extend(self.data_bytes.to_le_bytes());
        let padding = self.padding(n_bytes);
        self.data_bytes += n_bytes + padding.len() as u64;
        padding
    }

    /// Everything before the data.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut out = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.infos);
        out.extend(self.padding(out.len() as u64));
        out
    }

    fn padding(&self, n_bytes: u64) -> Vec<u8> {
        vec![0; (n_bytes.next_multiple_of(self.alignment) - n_bytes) as usize]
    }
}

fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
