//! A small GGUF v3 writer, for adapters.

use crate::dtype::DType;

const ALIGNMENT: usize = 32;

/// A file in the making.
pub(super) struct GgufWriter {
    n_keys: u64,
    keys: Vec<u8>,
    n_tensors: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

impl GgufWriter {
    pub(super) fn new() -> Self {
        Self { n_keys: 0, keys: Vec::new(), n_tensors: 0, infos: Vec::new(), data: Vec::new() }
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    pub(super) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.key(key, 6, &value.to_le_bytes())
    }

    pub(super) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key, 8, &counted(value))
    }

    /// `kind` is a `gguf_metadata_value_type`.
    fn key(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.n_keys += 1;
        self.keys.extend(counted(key));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self
    }

    /// A row-major matrix in F32 or F16.
    pub(super) fn tensor(&mut self, name: &str, [rows, columns]: [usize; 2], dtype: DType, bytes: Vec<u8>) {
        self.n_tensors += 1;
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.infos.extend(counted(name));
        self.infos.extend(2_u32.to_le_bytes());
        // Fastest first.
        self.infos.extend([columns, rows].iter().flat_map(|&dim| (dim as u64).to_le_bytes()));
        self.infos.extend(u32::from(dtype == DType::F16).to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
        out.extend(self.n_tensors.to_le_bytes());
        out.extend(self.n_keys.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }
}

fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
