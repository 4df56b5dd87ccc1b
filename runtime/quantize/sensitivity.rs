//! What errors in a matrix cost in loss: nats a token, by half the sum of the squared gradient of
//! each weight times the square of its error (the diagonal of the second-order expansion, as in
//! Optimal Brain Damage; `LeCun` et al. 1989).

use super::Planned;
use super::measure::Loss;
use super::policy::{EMBEDDING, HEAD};

/// By the ends of names, what the loss rises by for a relative squared error of 1 in all matrices
/// of a kind together, by gradients of SmolLM2-135M over a book; about that in `ffn_down` without
/// the two layers that make its outliers. For matrices of which no imatrix tells; only how they
/// compare counts. An embedding that is the head, too, has both.
const KINDS: [(&str, f64); 9] = [
    (EMBEDDING, 3.4),
    (HEAD, 16.0),
    ("attn_q.weight", 4.7),
    ("attn_k.weight", 3.6),
    ("attn_v.weight", 26.0),
    ("attn_output.weight", 3.9),
    ("ffn_gate.weight", 6.4),
    ("ffn_up.weight", 12.0),
    ("ffn_down.weight", 12.0),
];
/// Of one other matrix: as of one of those, in the mean.
const OTHERS: f64 = 0.4;

/// What errors in one matrix of each kind cost.
pub(super) struct Sensitivity {
    kinds: [f64; KINDS.len()],
}

impl Sensitivity {
    pub(super) fn new(planned: &[Planned<'_>]) -> Self {
        let count = |kind: &str| planned.iter().filter(|planned| is_of(planned, kind)).count();
        let tied = count(HEAD) == 0;
        let kinds = KINDS.map(|(kind, nats)| {
            let both = if kind == EMBEDDING && tied { KINDS[1].1 } else { 0.0 };
            (nats + both) / count(kind).max(1) as f64
        });
        Self { kinds }
    }

    /// Of a relative squared error of 1. `sample` has the weights that were looked at, by their
    /// importance, `n` of them.
    pub(super) fn of(&self, planned: &Planned<'_>, sample: Loss, n: usize) -> f64 {
        if let Some(slope) = planned.slope {
            let share = planned.tensor.n_weights() as f64 / n as f64;
            return 0.5 * slope * sample.weights() * share;
        }
        let mut kinds = KINDS.iter().zip(self.kinds);
        let found = kinds.find(|((kind, _), _)| is_of(planned, kind));
        found.map_or(OTHERS, |(_, nats)| nats)
    }
}

/// `output.weight` is the end of `attn_output.weight`, too.
fn is_of(planned: &Planned<'_>, kind: &str) -> bool {
    let rest = planned.tensor.name.strip_suffix(kind);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
