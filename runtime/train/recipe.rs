//! What a run does unless it is told otherwise: by the size of the data, of the model and of the
//! adapter. The constants are those that did best on eight small tasks; `docs/learning.md` shows
//! against what.

use super::data::Validation;

/// Examples of a step.
pub const BATCH_SIZE: usize = 8;
/// Passes over one example; they fall with the square root of how many there are.
const EPOCHS_OF_ONE: f64 = 200.0;
const MOST_EPOCHS: f64 = 50.0;
/// Records from which on some are held out: below, each is needed to learn from, and a tenth is too
/// few to stop by.
const ENOUGH_TO_VALIDATE: usize = 500;
/// Of the records, what is held out.
const HELD_OUT: f64 = 0.1;
const MOST_HELD_OUT: usize = 200;
/// Validations without improvement after which a run stops, where some are held out.
pub const PATIENCE: u32 = 3;
/// Records under which prompts are not learnt, and the rate is higher.
const FEW: usize = 200;
/// Weight of the tokens of a prompt from then on.
pub(crate) const PROMPT_LOSS_WEIGHT: f32 = 0.1;
const RATE_OF_FEW: f64 = 1.5;
/// Learning rate at the sizes below.
const RATE: f64 = 1e-3;
const RATE_HIDDEN_SIZE: f64 = 576.0;
const RATE_RANK: f64 = 8.0;
const RATE_SCALING: f64 = 2.0;
/// Wider models take smaller steps.
const WIDTH_EXPONENT: f64 = 0.5;

/// Passes over the data: 45 of 20 examples, 20 of 100, 10 of 400, 6 of 1,000, 4 of 2,000, 1 from
/// 18,000 on. Few examples need many passes; the steps still grow with the data.
pub fn epochs(examples: usize) -> u64 {
    (EPOCHS_OF_ONE / (examples.max(1) as f64).sqrt()).clamp(1.0, MOST_EPOCHS).round() as u64
}

/// The learning rate for `AdamW`. After t steps of rate `lr` the elements of B are about `lr t` and
/// those of A near their start, so that `scaling B A x`, a sum of r products, moves by `scaling lr
/// t sqrt(r)`: the rate keeps that as it is at rank 8 and alpha 16. It is half as high again for
/// under 200 examples, which make few steps.
pub fn learning_rate(hidden_size: usize, rank: usize, scaling: f64, examples: usize) -> f64 {
    let move_at = |scaling: f64, rank: f64| scaling * rank.sqrt();
    let width = (RATE_HIDDEN_SIZE / hidden_size.max(1) as f64).powf(WIDTH_EXPONENT);
    let few = if examples < FEW { RATE_OF_FEW } else { 1.0 };
    RATE * few * width * move_at(RATE_SCALING, RATE_RANK) / move_at(scaling, rank as f64)
}

/// Weight of the tokens of a prompt in the loss: 0 for under 200 records, which a model would learn
/// by heart before it has learnt to answer, and 0.1 from there on.
pub fn prompt_loss_weight(records: usize) -> f32 {
    if records < FEW { 0.0 } else { PROMPT_LOSS_WEIGHT }
}

/// Records to hold out for early stopping; `None` when there are too few to spare any.
pub fn validation(records: usize) -> Option<Validation> {
    let count = ((HELD_OUT * records as f64).round() as usize).min(MOST_HELD_OUT);
    (records >= ENOUGH_TO_VALIDATE).then_some(Validation::Count(count))
}
