//! Element types of weights: the block length and bytes of each.

use crate::error::{Error, Result};

/// How the weights of a tensor are stored. A block is the smallest run of weights that can be read
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each variant is the field's own name of the type")]
#[expect(non_camel_case_types, reason = "GGUF spells them so")]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl DType {
    /// Every supported type.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of `len` weights in a file; `None` when `len` is not a whole number of blocks or the
    /// size overflows.
    pub fn bytes(self, len: usize) -> Option<usize> {
        let whole = len.is_multiple_of(self.block_len());
        whole.then(|| (len / self.block_len()).checked_mul(self.block_bytes())).flatten()
    }

    /// Bits a weight, with its share of its block's scales.
    pub const fn bits(self) -> f64 {
        (8 * self.block_bytes()) as f64 / self.block_len() as f64
    }

    /// The name GGUF gives it, also the stem of its files (lower case) in `runtime/quant` and
    /// `shaders/quant`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// From GGML's type number (`ggml_type`).
    ///
    /// Errors: [`Error::Unsupported`] naming the type.
    pub fn from_ggml(id: u32) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.ggml_type() == id).ok_or_else(|| {
            Error::Unsupported {
                what: format!("ggml tensor type {id}"),
                hint:
                    "convert the file to Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, F16, BF16 \
                or F32"
                        .into(),
            }
        })
    }

    /// llama.cpp's number (`llama_ftype`) of a file whose matrices are of this type.
    pub(crate) const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K => 14,
            Self::Q5_K => 16,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// GGML's type number (`ggml_type`).
    pub const fn ggml_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }
}
