//! Writes small GGUF files, valid or not: every field can be set to something else.

/// A metadata value.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    /// A value's type and its bytes.
    Raw(u32, Vec<u8>),
}

impl Meta {
    fn encode(&self) -> (u32, Vec<u8>) {
        match self {
            Self::U32(v) => (4, v.to_le_bytes().into()),
            Self::F32(v) => (6, v.to_le_bytes().into()),
            Self::Bool(v) => (7, vec![u8::from(*v)]),
            Self::Text(v) => (8, text(v.as_bytes())),
            Self::Texts(v) => (9, array(8, v.len(), v.iter().flat_map(|v| text(v.as_bytes())))),
            Self::I32s(v) => (9, array(5, v.len(), v.iter().flat_map(|v| v.to_le_bytes()))),
            Self::Raw(kind, bytes) => (*kind, bytes.clone()),
        }
    }
}

/// A length and the bytes.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// An array's element type, length and elements.
pub(crate) fn array(kind: u32, len: usize, elements: impl IntoIterator<Item = u8>) -> Vec<u8> {
    kind.to_le_bytes().into_iter().chain((len as u64).to_le_bytes()).chain(elements).collect()
}

/// A tensor; `dims` as GGUF has them, fastest first.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: Vec<u8>,
    pub(crate) dims: Vec<u64>,
    pub(crate) ggml_type: u32,
    pub(crate) data: Vec<u8>,
    /// Instead of the next free one.
    pub(crate) offset: Option<u64>,
}

/// A file in the making.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) keys: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<Tensor>,
    /// Instead of the true counts.
    pub(crate) n_keys: Option<u64>,
    pub(crate) n_tensors: Option<u64>,
    pub(crate) alignment: usize,
}

impl Writer {
    pub(crate) fn new() -> Self {
        let (keys, tensors) = (Vec::new(), Vec::new());
        Self {
            magic: *b"GGUF",
            version: 3,
            keys,
            tensors,
            n_keys: None,
            n_tensors: None,
            alignment: 32,
        }
    }

    /// Adds a key, or replaces it.
    pub(crate) fn key(mut self, key: &str, value: Meta) -> Self {
        match self.keys.iter_mut().find(|(k, _)| k == key) {
            Some(old) => old.1 = value,
            None => self.keys.push((key.into(), value)),
        }
        self
    }

    pub(crate) fn tensor(
        mut self,
        name: &str,
        dims: &[u64],
        ggml_type: u32,
        data: Vec<u8>,
    ) -> Self {
        let (name, dims) = (name.into(), dims.into());
        self.tensors.push(Tensor { name, dims, ggml_type, data, offset: None });
        self
    }

    /// Adds an F32 tensor of 0, 1, 2 and so on.
    pub(crate) fn counting(self, name: &str, dims: &[u64]) -> Self {
        let data =
            (0..dims.iter().product::<u64>()).flat_map(|i| (i as f32).to_le_bytes()).collect();
        self.tensor(name, dims, 0, data)
    }

    /// Changes the tensor of that name.
    pub(crate) fn edit(mut self, name: &str, change: impl FnOnce(&mut Tensor)) -> Self {
        change(self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).unwrap());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.keys.retain(|(key, _)| key != name);
        self.tensors.retain(|t| t.name != name.as_bytes());
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (mut data, mut infos) = (Vec::new(), Vec::new());
        for t in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            infos.extend(text(&t.name));
            infos.extend((t.dims.len() as u32).to_le_bytes());
            infos.extend(t.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            infos.extend(t.ggml_type.to_le_bytes());
            infos.extend(t.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&t.data);
        }
        let mut out = [self.magic, self.version.to_le_bytes()].concat();
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            let (kind, bytes) = value.encode();
            out.extend(text(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        out.extend(infos);
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// The smallest llama: one layer, 2 heads of 32 over 1 key-value head, 40 tokens; every tensor
/// counts from 0.
pub(crate) fn llama() -> Writer {
    let (hidden, inner, kv, vocab) = (64, 96, 32, 40);
    let tokens = (0..vocab).map(|i| format!("t{i}")).collect();
    Writer::new()
        .key("general.architecture", Meta::Text("llama"))
        .key("llama.embedding_length", Meta::U32(hidden as u32))
        .key("llama.feed_forward_length", Meta::U32(inner as u32))
        .key("llama.block_count", Meta::U32(1))
        .key("llama.attention.head_count", Meta::U32(2))
        .key("llama.attention.head_count_kv", Meta::U32(1))
        .key("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5))
        .key("llama.context_length", Meta::U32(128))
        .key("llama.rope.freq_base", Meta::F32(100_000.0))
        .key("tokenizer.ggml.tokens", Meta::Texts(tokens))
        .key("tokenizer.ggml.token_type", Meta::I32s(vec![1; vocab as usize]))
        .counting("token_embd.weight", &[hidden, vocab])
        .counting("output_norm.weight", &[hidden])
        .counting("blk.0.attn_norm.weight", &[hidden])
        .counting("blk.0.attn_q.weight", &[hidden, hidden])
        .counting("blk.0.attn_k.weight", &[hidden, kv])
        .counting("blk.0.attn_v.weight", &[hidden, kv])
        .counting("blk.0.attn_output.weight", &[hidden, hidden])
        .counting("blk.0.ffn_norm.weight", &[hidden])
        .counting("blk.0.ffn_gate.weight", &[hidden, inner])
        .counting("blk.0.ffn_up.weight", &[hidden, inner])
        .counting("blk.0.ffn_down.weight", &[inner, hidden])
}
