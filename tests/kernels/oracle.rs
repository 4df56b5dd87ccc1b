//! What the oracles share: functions in f64, and bounds on what f32 may make of them.
//!
//! Precisions are those the Vulkan specification asks of a device ("Precision of Individual Operations"): + - × are
//! correctly rounded in an unspecified mode, so an operation may be off by [`EPS`] of its result.

use super::Near;

/// One unit in the last place of f32, relative: 2⁻²³.
pub(super) const EPS: f64 = f32::EPSILON as f64;
/// A division, relative: 2.5 ULP.
pub(super) const DIV: f64 = 2.5 * EPS;
/// `1 / sqrt(x)`, relative: a square root is 1 / inversesqrt (2 ULP and a division), then comes the division.
pub(super) const INV_SQRT: f64 = 2.0 * EPS + 2.0 * DIV;

/// `exp(x)`, relative: 3 + 2 |x| ULP.
pub(super) fn exp_error(x: f64) -> f64 {
    (3.0 + 2.0 * x.abs()) * EPS
}

/// `log(x)`, absolute: 2⁻²¹ inside [0.5, 2], 3 ULP outside.
pub(super) fn log_error(x: f64) -> f64 {
    if (0.5..=2.0).contains(&x) { 2f64.powi(-21) } else { 3.0 * EPS * x.ln().abs() }
}

/// `n` roundings one after the other, relative to the sum of the magnitudes (Higham 2002, lemma 3.1).
pub(super) fn gamma(n: usize) -> f64 {
    let n = n as f64 * EPS;
    n / (1.0 - n)
}

/// Additions one after the other when `lanes` lanes stride over `len` terms and then add up in a tree.
pub(super) fn strided_depth(len: usize, lanes: u32) -> usize {
    len.div_ceil(lanes as usize) + lanes.ilog2() as usize
}

/// `x / (1 + e^-x)`.
pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `silu(gate) * up`, computed in f32 from a gate and an up that are themselves only near.
pub(super) fn swiglu(gate: Near, up: Near) -> Near {
    let (s, value) = (silu(gate.value), silu(gate.value) * up.value);
    // exp, the sum, the division, the product; |silu'| <= 1.1.
    let own = (exp_error(gate.value) + EPS + DIV + EPS) * value.abs();
    let moved = 1.1 * gate.bound * (up.value.abs() + up.bound) + s.abs() * up.bound;
    // Beyond e^87 the division's precision is not specified; the result is below 87 e^-87 there.
    Near { value, bound: 1.001 * (own + moved) + 1e-35 * (up.value.abs() + 1.0) }
}

/// `scale = 1 / sqrt(mean(x²) + eps)` and its relative error, the squares summed with `depth` roundings.
pub(super) fn rms_scale(x: &[f32], eps: f32, depth: usize) -> (f64, f64) {
    let squares: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    // The sum, the division by K and the addition of eps count half under the root.
    (scale, 0.5 * (gamma(depth) + DIV + EPS) + INV_SQRT)
}

/// Holds `gradient` to the slope of `loss` at `x`, by central differences in f64 with a step h of 1e-4. The slope is off by
/// h²/6 of the third derivative and 2⁻⁵³ / h of the loss: within 1e-7 where the former is below 50 and the latter 1e4.
pub(super) fn central_difference(x: &[f64], loss: impl Fn(&[f64]) -> f64, gradient: &[f64]) {
    assert_eq!(x.len(), gradient.len());
    let step = 1e-4;
    for (i, gradient) in gradient.iter().enumerate() {
        let at = |offset: f64| {
            let mut x = x.to_vec();
            x[i] += offset;
            loss(&x)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!((slope - gradient).abs() <= 1e-7, "[{i}] the slope is {slope}, the gradient {gradient}");
    }
}
