//! Copies of the base's own embedding and head that PEFT saves along (`save_embedding_layers`).
//! They say nothing new when they equal the base's, which has to be looked at: after training with
//! more tokens they don't.
//!
//! A base in few bits never equals a copy in 16. The two count as equal where the base could be the
//! copy, rounded: each weight within two steps of the base's format, each row within half a step
//! and all within 0.35 of one on average (root mean square; rounding makes 0.29). A change below
//! that can't be told from the rounding.

use std::ops::Range;
use std::path::Path;

use crate::base::{BaseShape, ModulePath, Target};
use crate::dtype::DType;
use crate::error::Result;
use crate::format::TensorView;
use crate::format::gguf::Gguf;
use crate::quant;

/// The base that an adapter is read for.
#[derive(Clone, Copy, Debug)]
pub struct AdaptedBase<'a> {
    /// Its sizes.
    pub shape: BaseShape,
    /// Where its weights are, should the adapter hold copies of them.
    pub weights: BaseWeights<'a>,
}

/// Where to find the base's weights.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum BaseWeights<'a> {
    /// Nowhere: an adapter with copies that may differ is refused.
    Unknown,
    /// In an open file.
    Open(&'a Gguf),
    /// In a file that is opened when they are needed.
    File(&'a Path),
    /// They were compared when the adapter was read before.
    Compared,
}

impl From<&BaseShape> for AdaptedBase<'_> {
    fn from(&shape: &BaseShape) -> Self {
        Self { shape, weights: BaseWeights::Unknown }
    }
}

/// A tensor that may be a copy of the base's.
#[derive(Clone, Debug)]
pub(crate) struct Copied {
    /// As the file spells it.
    pub(crate) name: String,
    /// `model.embed_tokens` or `lm_head`.
    pub(crate) path: ModulePath,
    /// Of a LoRA's frozen base, which no usual training changes.
    pub(crate) is_base_layer: bool,
}

impl Copied {
    /// The base's tensor; a tied head is the embedding.
    pub(crate) fn original<'g>(&self, gguf: &'g Gguf) -> Result<TensorView<'g>> {
        let embedding = ModulePath { layer: None, target: Target::EmbedTokens };
        let own = gguf.tensor(&format!("{}.weight", self.path));
        own.map_or_else(|| gguf.require(&format!("{embedding}.weight")), Ok)
    }
}

/// Rows compared at once, in weights.
const PIECE: usize = 1 << 20;
/// In steps: of a weight, of a row on average, of all on average.
const MAX_STEPS: f32 = 2.0;
const MAX_ROW_STEPS: f64 = 0.5;
const MAX_MEAN_STEPS: f64 = 0.35;
/// What f16 rounds to nothing.
const TINY: f32 = 1e-7;

/// Whether the rows that `read` gives, as f32, may be what `base` was rounded from.
///
/// Errors: those of `read`.
pub(crate) fn equals(
    base: &TensorView<'_>,
    read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f32>>,
) -> Result<bool> {
    let (rows, width) = (base.n_rows(), base.row_len());
    let at_once = (PIECE / width).max(1);
    let mut all = Squares::default();
    let mut own = Vec::new();
    for start in (0..rows).step_by(at_once) {
        let range = start..rows.min(start + at_once);
        own.resize(range.len() * width, 0.0);
        quant::format(base.dtype).dequantize(&base.rows(start, range.len()), &mut own);
        let copy = read(range)?;
        if copy.len() != own.len() {
            return Ok(false);
        }
        for (own, copy) in own.chunks_exact(width).zip(copy.chunks_exact(width)) {
            match row(base.dtype, own, copy) {
                Some(row) if row.differ_by_at_most(MAX_ROW_STEPS) => all.add(row),
                _ => return Ok(false),
            }
        }
    }
    Ok(all.differ_by_at_most(MAX_MEAN_STEPS))
}

/// Sums of squares.
#[derive(Clone, Copy, Default)]
struct Squares {
    differences: f64,
    steps: f64,
}

impl Squares {
    fn add(&mut self, other: Self) {
        self.differences += other.differences;
        self.steps += other.steps;
    }

    fn differ_by_at_most(self, steps: f64) -> bool {
        self.differences <= steps * steps * self.steps
    }
}

/// `None` when a weight differs by too much, or is no number.
fn row(dtype: DType, own: &[f32], copy: &[f32]) -> Option<Squares> {
    let mut squares = Squares::default();
    let block = dtype.block_len();
    for (own, copy) in own.chunks(block).zip(copy.chunks(block)) {
        let step = TINY + own.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / levels(dtype);
        for (own, copy) in own.iter().zip(copy) {
            let difference = (own - copy).abs();
            if difference.is_nan() || difference > MAX_STEPS * step {
                return None;
            }
            squares.add(Squares {
                differences: f64::from(difference).powi(2),
                steps: f64::from(step).powi(2),
            });
        }
    }
    Some(squares)
}

/// Steps from 0 to a block's largest weight, at least. For floats a block is a weight, and a step
/// that of bf16.
fn levels(dtype: DType) -> f32 {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => 128.0,
        DType::Q4_0 => 8.0,
        DType::Q4_1 | DType::Q4_K => 7.0,
        DType::Q5_0 => 16.0,
        DType::Q5_1 | DType::Q5_K => 15.0,
        DType::Q6_K => 31.0,
        DType::Q8_0 => 127.0,
        // The widest gap is between the last two levels of the one, all of the range in the others.
        DType::NF4 | DType::NF4_DQ | DType::IQ4_NL => 3.0,
        DType::Q3_0 | DType::Q3_K => 3.0,
        DType::TQ2_0 | DType::Q2_K | DType::Q2_1 => 1.0,
    }
}
