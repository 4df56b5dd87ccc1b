//! Numbers of a factor in few bytes.
//!
//! Each of a factor's r components (a row of A, a column of B) has a scale of its own: rows of B
//! hold no more than r numbers. Scales are f32: those of a small delta are below what f16 can hold.

use half::f16;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::invalid;
use super::random::Random;
use crate::adapter::Factor;
use crate::error::Result;

/// How the numbers of a delta are written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Quantisation {
    /// As they are.
    F32,
    /// Divided by their component's largest, in 16 bits.
    F16,
    /// Divided by their component's largest, in steps of 1/127, rounded up or down at random so
    /// that the mean is the number.
    Int8,
    /// -1, 0 or 1 times a scale, four in a byte. Coarse: for use with a
    /// [`Residual`](super::Residual).
    Ternary,
    /// The largest of each tensor, as [`Self::Int8`] has them. For use with a
    /// [`Residual`](super::Residual).
    TopK {
        /// Which part of them, in (0, 1].
        fraction: f64,
    },
}

/// A factor's shape, seen by components.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) factor: Factor,
    pub(super) rank: usize,
    pub(super) width: usize,
}

impl Shape {
    pub(super) fn len(self) -> usize {
        self.rank * self.width
    }

    pub(super) fn axes(self) -> [usize; 2] {
        match self.factor {
            Factor::A => [self.rank, self.width],
            Factor::B => [self.width, self.rank],
        }
    }

    fn component(self, i: usize) -> usize {
        match self.factor {
            Factor::A => i / self.width,
            Factor::B => i % self.rank,
        }
    }

    /// Multiplies each number by its component's scale.
    fn scale(self, numbers: &mut [f32], scales: &[f32]) {
        match self.factor {
            Factor::A => {
                for (row, scale) in numbers.chunks_mut(self.width.max(1)).zip(scales) {
                    row.iter_mut().for_each(|v| *v *= scale);
                }
            }
            Factor::B => {
                for row in numbers.chunks_mut(self.rank.max(1)) {
                    row.iter_mut().zip(scales).for_each(|(v, scale)| *v *= scale);
                }
            }
        }
    }
}

/// One tensor in a file: type, shape, bytes.
pub(super) struct Encoded {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

/// A quantised factor: what goes under its name, the indices of the numbers that are kept
/// ([`Quantisation::TopK`]), scales by component.
pub(super) struct Packed {
    pub(super) values: Encoded,
    pub(super) index: Option<Encoded>,
    pub(super) scales: Vec<f32>,
}

impl Quantisation {
    /// As manifests spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Ternary => "ternary",
            Self::TopK { .. } => "top_k",
        }
    }

    /// Whether what it loses should be kept for the next round.
    pub const fn needs_residual(self) -> bool {
        matches!(self, Self::Ternary | Self::TopK { .. })
    }

    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::TopK { fraction } if !(fraction > 0.0 && fraction <= 1.0) => {
                Err(invalid("quantisation", "the fraction of top_k is above 0 and at most 1"))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is a scale a component.
    pub(super) fn has_scales(self) -> bool {
        self != Self::F32
    }

    /// Quantises a factor's finite numbers.
    pub(super) fn pack(self, values: &[f32], shape: Shape, random: &mut Random) -> Packed {
        let axes = shape.axes().to_vec();
        let packed = |dtype, shape, bytes, scales| Packed {
            values: Encoded { dtype, shape, bytes },
            index: None,
            scales,
        };
        let largest = components(values, shape, |largest: f32, v| largest.max(v.abs()));
        match self {
            Self::F32 => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                packed(Dtype::F32, axes, bytes, Vec::new())
            }
            Self::F16 => {
                let at = |(i, v): (usize, &f32)| divided(*v, largest[shape.component(i)]);
                let bytes = values.iter().enumerate().map(at);
                let bytes = bytes.flat_map(|v| f16::from_f64(v).to_le_bytes()).collect();
                packed(Dtype::F16, axes, bytes, largest)
            }
            Self::Int8 => {
                let scales = steps(&largest);
                let bytes = values.iter().enumerate().map(|(i, v)| {
                    stochastic(divided(*v, scales[shape.component(i)]), random) as u8
                });
                let bytes = bytes.collect();
                packed(Dtype::I8, axes, bytes, scales)
            }
            Self::Ternary => ternary(values, shape),
            Self::TopK { fraction } => top(values, shape, fraction, random),
        }
    }

    /// Puts a packed factor's numbers into `numbers`, row-major, as rounding left them; 0 for those
    /// left out. `None` for lengths, codes or indices that [`Self::pack`] does not give.
    pub(super) fn unpack(
        self,
        packed: Bytes<'_>,
        shape: Shape,
        numbers: &mut Vec<f32>,
    ) -> Option<()> {
        let Bytes { values, index, scales } = packed;
        let n = shape.len();
        numbers.clear();
        if scales.len() != if self.has_scales() { shape.rank } else { 0 } {
            return None;
        }
        match self {
            Self::F32 => numbers.extend(whole(values, n)?.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => {
                numbers.extend(whole(values, n)?.iter().map(|b| f16::from_le_bytes(*b).to_f32()));
            }
            Self::Int8 => {
                numbers.extend(whole(values, n)?.iter().map(|[b]| f32::from(*b as i8)));
            }
            Self::Ternary => {
                (values.len() == n.div_ceil(4)).then_some(())?;
                for i in 0..n {
                    let code = values[i / 4] >> (2 * (i % 4)) & 3;
                    numbers.push(*[0.0, 1.0, -1.0].get(usize::from(code))?);
                }
            }
            Self::TopK { .. } => {
                numbers.resize(n, 0.0);
                let mut above = 0;
                for (at, value) in whole(index?, values.len())?.iter().zip(values) {
                    let at = u32::from_le_bytes(*at) as usize;
                    // In order, each once.
                    (above..n).contains(&at).then_some(())?;
                    above = at + 1;
                    numbers[at] = f32::from(*value as i8);
                }
            }
        }
        if self.has_scales() {
            shape.scale(numbers, scales);
        }
        Some(())
    }
}

/// `n` pieces of `N` bytes, if that is what they are.
fn whole<const N: usize>(bytes: &[u8], n: usize) -> Option<&[[u8; N]]> {
    let (pieces, rest) = bytes.as_chunks();
    (rest.is_empty() && pieces.len() == n).then_some(pieces)
}

/// What a file has of a factor.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a> {
    pub(super) values: &'a [u8],
    pub(super) index: Option<&'a [u8]>,
    pub(super) scales: &'a [f32],
}

/// One number a component.
fn components<T: Copy + Default>(
    values: &[f32],
    shape: Shape,
    add: impl Fn(T, f32) -> T,
) -> Vec<T> {
    let mut found = vec![T::default(); shape.rank];
    for (i, v) in values.iter().enumerate() {
        let component = &mut found[shape.component(i)];
        *component = add(*component, *v);
    }
    found
}

/// Steps of int8: the largest of a component is at most 127 of them.
fn steps(largest: &[f32]) -> Vec<f32> {
    let step = |largest: &f32| {
        let step = largest / 127.0;
        if step * 127.0 < *largest { step.next_up() } else { step }
    };
    largest.iter().map(step).collect()
}

fn divided(value: f32, scale: f32) -> f64 {
    if scale == 0.0 { 0.0 } else { f64::from(value) / f64::from(scale) }
}

/// The whole number below or above, at random so that the mean is the number.
fn stochastic(value: f64, random: &mut Random) -> i8 {
    (value + random.uniform()).floor().clamp(-127.0, 127.0) as i8
}

/// Those above 0.7 of the mean magnitude, at the mean of their magnitudes (Li et al. 2016,
/// arXiv:1605.04711).
fn ternary(values: &[f32], shape: Shape) -> Packed {
    let sums = components(values, shape, |sum: f64, v| sum + f64::from(v.abs()));
    let threshold: Vec<_> =
        sums.iter().map(|sum| (0.7 * sum / shape.width as f64) as f32).collect();
    let mut kept = vec![(0.0, 0.0); shape.rank];
    let mut bytes = vec![0; values.len().div_ceil(4)];
    for (i, v) in values.iter().enumerate() {
        let component = shape.component(i);
        if v.abs() > threshold[component] {
            kept[component].0 += f64::from(v.abs());
            kept[component].1 += 1.0;
            bytes[i / 4] |= (if *v > 0.0 { 1 } else { 2 }) << (2 * (i % 4));
        }
    }
    let mean = |(sum, count): &(f64, f64)| if *count > 0.0 { (sum / count) as f32 } else { 0.0 };
    let scales = kept.iter().map(mean).collect();
    let values = Encoded { dtype: Dtype::U8, shape: vec![bytes.len()], bytes };
    Packed { values, index: None, scales }
}

fn top(values: &[f32], shape: Shape, fraction: f64, random: &mut Random) -> Packed {
    let count = ((fraction * values.len() as f64).ceil() as usize).clamp(1, values.len());
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    // The first of equals, so that the choice depends on the numbers alone.
    let magnitude = |i: &u32| (std::cmp::Reverse(values[*i as usize].abs().to_bits()), *i);
    order.select_nth_unstable_by_key(count - 1, magnitude);
    order.truncate(count);
    order.sort_unstable();
    let scales = steps(&components(values, shape, |largest: f32, v| largest.max(v.abs())));
    let bytes = order.iter().map(|i| {
        let i = *i as usize;
        stochastic(divided(values[i], scales[shape.component(i)]), random) as u8
    });
    let values = Encoded { dtype: Dtype::I8, shape: vec![count], bytes: bytes.collect() };
    let bytes = order.iter().flat_map(|i| i.to_le_bytes()).collect();
    let index = Some(Encoded { dtype: Dtype::U32, shape: vec![count], bytes });
    Packed { values, index, scales }
}
