//! Which type a tensor gets when one is asked for.

use super::source::Tensor;
use crate::dtype::DType;

/// The head, as GGUF names it; where there is none, the embedding is the head.
pub(super) const HEAD: &str = "output.weight";
pub(super) const EMBEDDING: &str = "token_embd.weight";

/// Instead of a type whose blocks do not divide a row: the next larger one whose blocks may.
const FALLBACKS: [(DType, DType); 16] = [
    (DType::Q2_K, DType::IQ4_NL),
    (DType::Q3_K, DType::IQ4_NL),
    (DType::IQ4_NL, DType::F16),
    (DType::Q4_K, DType::Q5_0),
    (DType::Q5_K, DType::Q5_1),
    (DType::Q6_K, DType::Q8_0),
    (DType::TQ2_0, DType::Q2_1),
    (DType::NF4_DQ, DType::NF4),
    (DType::NF4, DType::Q4_0),
    (DType::Q2_1, DType::Q4_0),
    (DType::Q3_0, DType::Q4_0),
    (DType::Q4_0, DType::F16),
    (DType::Q4_1, DType::F16),
    (DType::Q5_0, DType::F16),
    (DType::Q5_1, DType::F16),
    (DType::Q8_0, DType::F16),
];

/// The type for a tensor when its rows are whole blocks of it, as llama.cpp chooses: what is no
/// matrix stays exact, and the head, whose errors no layer after it evens out, has six bits.
pub(super) fn wanted(tensor: &Tensor, asked: DType, tied: bool) -> DType {
    let is_head = tensor.name == HEAD || tied && tensor.name == EMBEDDING;
    match asked {
        _ if !tensor.is_matrix() => DType::F32,
        _ if is_head && asked.bits() < DType::Q6_K.bits() => DType::Q6_K,
        asked => asked,
    }
}

/// `wanted`, or what takes its place for rows of `row_len` weights.
pub(super) fn fitting(wanted: DType, row_len: usize) -> DType {
    let mut dtype = wanted;
    while !row_len.is_multiple_of(dtype.block_len()) {
        let next = FALLBACKS.iter().find(|(from, _)| *from == dtype);
        dtype = next.map_or(DType::F32, |(_, to)| *to);
    }
    dtype
}
