//! Types within a budget of bits: each matrix is rounded, or a part of its rows, to every type;
//! then bits go, one step after another, to where one buys the most loss.

use super::Planned;
use super::measure::Loss;
use super::sensitivity::Sensitivity;
use super::source::{Source, Tensor};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::parallel;
use crate::quant;

/// Weights of a matrix that are looked at, about.
const SAMPLE: usize = 1 << 18;
/// Below so many bits a weight types of our own come in, where GGUF's of few bits do not fit: their
/// blocks have 256 weights.
const OWN_BELOW: f64 = DType::Q4_0.bits();
/// Below so many, an imatrix decides whether anything is left of a model.
const WEIGHED_BELOW: f64 = 4.0;

/// A type for a matrix, with the bits of all its weights and the loss that its errors cost.
#[derive(Clone, Copy)]
struct Choice {
    dtype: DType,
    bits: f64,
    cost: f64,
}

/// Whether the budget asks for an imatrix.
pub(super) fn wants_imatrix(bits: f64) -> bool {
    bits < WEIGHED_BELOW
}

/// Gives every matrix of `planned` its type, so that all tensors together have at most `bits` a
/// weight and the loss rises least, as far as [`Sensitivity`] knows.
pub(super) fn choose(source: &dyn Source, planned: &mut [Planned<'_>], bits: f64) -> Result<()> {
    let n: usize = planned.iter().map(|planned| planned.tensor.n_weights()).sum();
    let sensitivity = Sensitivity::new(planned);
    let mut choices = Vec::with_capacity(planned.len());
    for planned in &*planned {
        choices.push(match planned.tensor.is_matrix() {
            true => worthwhile(measure(source, planned, &sensitivity, bits < OWN_BELOW)?),
            false => vec![Choice {
                dtype: planned.dtype,
                bits: bits_of(planned.tensor, planned.dtype),
                cost: 0.0,
            }],
        });
    }
    let budget = bits * n as f64;
    let least: f64 =
        choices.iter().map(|choices| choices.first().map_or(f64::INFINITY, |c| c.bits)).sum();
    if bits.is_nan() || least > budget {
        let least = (1000.0 * least / n as f64).ceil() / 1000.0;
        let reason = format!("{bits} bits a weight are too few; the smallest types take {least}");
        return Err(Error::InvalidArgument { name: "bits", reason });
    }
    for (planned, dtype) in planned.iter_mut().zip(spend(&choices, budget - least)) {
        planned.dtype = dtype;
    }
    Ok(())
}

fn bits_of(tensor: &Tensor, dtype: DType) -> f64 {
    tensor.n_weights() as f64 * dtype.bits()
}

/// Whether a type may be chosen for rows of `k` weights. Three values are too few for weights that
/// were not trained to have them.
fn is_offered(dtype: DType, k: usize, own: bool) -> bool {
    let known = !dtype.is_own() || own && !k.is_multiple_of(DType::Q3_K.block_len());
    k.is_multiple_of(dtype.block_len()) && known && dtype != DType::TQ2_0
}

/// What each type that is offered to a matrix takes and costs, on rows spread over it.
fn measure(
    source: &dyn Source,
    planned: &Planned<'_>,
    sensitivity: &Sensitivity,
    own: bool,
) -> Result<Vec<Choice>> {
    let Planned { tensor, importance, .. } = planned;
    let k = tensor.row_len();
    // Odd, so that not every row is the same one of its head.
    let step = (tensor.n_weights() / SAMPLE) | 1;
    let mut weights = Vec::new();
    for row in (0..tensor.n_rows()).step_by(step) {
        let mut values = vec![0.0; k];
        quant::format(tensor.dtype).dequantize(&source.bytes(tensor, row..row + 1)?, &mut values);
        weights.extend(values);
    }
    let types = DType::ALL.into_iter().filter(|dtype| is_offered(*dtype, k, own));
    let choice = |dtype: DType| {
        let bits = bits_of(tensor, dtype);
        if dtype == tensor.dtype {
            // A copy.
            return Some(Choice { dtype, bits, cost: 0.0 });
        }
        let blocks = quant::quantize(dtype, &weights, *importance)?;
        let mut values = vec![0.0; weights.len()];
        quant::format(dtype).dequantize(&blocks, &mut values);
        let loss = Loss::of(&weights, &values, *importance);
        let cost = sensitivity.of(planned, loss, weights.len()) * loss.relative();
        Some(Choice { dtype, bits, cost })
    };
    let choices: Vec<_> = parallel::map(types.collect(), choice).into_iter().flatten().collect();
    if choices.is_empty() {
        let reason = "one of its weights is not a finite number; get the model again".into();
        return Err(Error::InvalidTensor { name: tensor.name.clone(), reason });
    }
    Ok(choices)
}

/// Those that for some price of a bit are the best: each costs more bits than the one before, and
/// a bit buys less.
fn worthwhile(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.sort_by(|a, b| a.bits.total_cmp(&b.bits).then(a.cost.total_cmp(&b.cost)));
    let mut kept: Vec<Choice> = Vec::new();
    for choice in choices {
        if kept.last().is_some_and(|last| choice.cost >= last.cost || choice.bits == last.bits) {
            continue;
        }
        while let [.., before, last] = kept.as_slice()
            && worth(*last, choice) > worth(*before, *last)
        {
            kept.pop();
        }
        kept.push(choice);
    }
    kept
}

/// How much less loss a bit buys from one choice to another.
fn worth(from: Choice, to: Choice) -> f64 {
    (from.cost - to.cost) / (to.bits - from.bits)
}

/// Takes the step that is worth most, as long as one fits what is left.
fn spend(choices: &[Vec<Choice>], mut left: f64) -> Vec<DType> {
    let mut at = vec![0; choices.len()];
    loop {
        let step = |i: usize| {
            let (from, to) = (choices[i][at[i]], choices[i].get(at[i] + 1)?);
            (to.bits - from.bits <= left).then_some((worth(from, *to), i))
        };
        let best = (0..choices.len()).filter_map(step).max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, i)) = best else { break };
        left -= choices[i][at[i] + 1].bits - choices[i][at[i]].bits;
        at[i] += 1;
    }
    choices.iter().zip(at).map(|(choices, at)| choices[at].dtype).collect()
}
