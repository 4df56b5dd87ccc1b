//! Element types of weights: the block length and bytes of each.

use crate::error::{Error, Result};

/// From here on type numbers are ours.
const OWN: u32 = 20_000;
/// How keys begin that give those numbers.
pub(crate) const OWN_KEYS: &str = "epiphyte.types.";
/// `general.file_type` of a file of which no type tells enough.
pub(crate) const MIXED: u32 = 1024;

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
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    TQ2_0,
    NF4,
    NF4_DQ,
    Q2_1,
    Q3_0,
}

impl DType {
    /// Every supported type.
    pub const ALL: [Self; 19] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::TQ2_0,
        Self::NF4,
        Self::NF4_DQ,
        Self::Q2_1,
        Self::Q3_0,
    ];

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q2_K
            | Self::Q3_K
            | Self::Q4_K
            | Self::Q5_K
            | Self::Q6_K
            | Self::TQ2_0
            | Self::NF4_DQ => 256,
            Self::NF4 | Self::Q2_1 | Self::Q3_0 => 64,
            _ => 32,
        }
    }

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::TQ2_0 => 66,
            Self::NF4 => 34,
            Self::NF4_DQ => 134,
            Self::Q2_1 => 20,
            Self::Q3_0 => 26,
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

    /// The name GGUF gives it, ours where it has none; also the stem of its files (lower case) in
    /// `runtime/quant` and `shaders/quant`.
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
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::TQ2_0 => "TQ2_0",
            Self::NF4 => "NF4",
            Self::NF4_DQ => "NF4_DQ",
            Self::Q2_1 => "Q2_1",
            Self::Q3_0 => "Q3_0",
        }
    }

    /// From GGML's type number (`ggml_type`).
    ///
    /// Errors: [`Error::Unsupported`] naming the type.
    pub fn from_ggml(id: u32) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.ggml_type() == id).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::Unsupported {
                what: format!("ggml tensor type {id}"),
                hint: format!("convert the file to one of {names}"),
            }
        })
    }

    /// Whether GGUF has no such type. A file of ours says by a key, `epiphyte.types.<type>`, which
    /// number stands for it there; other programs refuse the number.
    pub const fn is_own(self) -> bool {
        self.ggml_type() >= OWN
    }

    /// The key that gives the number of a type of our own.
    pub(crate) fn own_key(self) -> String {
        format!("{OWN_KEYS}{}", self.name().to_lowercase())
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
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 14,
            Self::Q5_K => 16,
            Self::Q6_K => 18,
            Self::IQ4_NL => 25,
            Self::BF16 => 32,
            Self::TQ2_0 => 37,
            Self::NF4 | Self::NF4_DQ | Self::Q2_1 | Self::Q3_0 => MIXED,
        }
    }

    /// GGML's type number (`ggml_type`); for types that GGML lacks one far above its own.
    pub const fn ggml_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::IQ4_NL => 20,
            Self::BF16 => 30,
            Self::TQ2_0 => 35,
            Self::NF4 => OWN + 1,
            Self::NF4_DQ => OWN + 2,
            Self::Q2_1 => OWN + 3,
            Self::Q3_0 => OWN + 4,
        }
    }
}
