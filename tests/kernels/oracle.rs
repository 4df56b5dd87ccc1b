//! What the oracles share: functions in f64, and bounds on what f32 may make of them.
//!
//! Precisions are those the Vulkan specification asks of a device ("Precision of Individual
//! Operations"): + - × are correctly rounded in an unspecified mode, so an operation may be off by
//! [`EPS`] of its result.

use super::Near;
use epiphyte::base::layout::Activation;

/// One unit in the last place of f32, relative: 2⁻²³.
pub(super) const EPS: f64 = f32::EPSILON as f64;
/// A division, relative: 2.5 ULP.
pub(super) const DIV: f64 = 2.5 * EPS;
/// `1 / sqrt(x)`, relative: a square root is 1 / inversesqrt (2 ULP and a division), then comes the
/// division.
pub(super) const INV_SQRT: f64 = 2.0 * EPS + 2.0 * DIV;

/// `sqrt(x)`, relative: 1 / inversesqrt (2 ULP and a division).
pub(super) const SQRT: f64 = 2.0 * EPS + DIV;

/// `exp(x)`, relative: 3 + 2 |x| ULP.
pub(super) fn exp_error(x: f64) -> f64 {
    (3.0 + 2.0 * x.abs()) * EPS
}

/// `log(x)`, absolute: 2⁻²¹ inside [0.5, 2], 3 ULP outside.
pub(super) fn log_error(x: f64) -> f64 {
    if (0.5..=2.0).contains(&x) { 2f64.powi(-21) } else { 3.0 * EPS * x.ln().abs() }
}

/// `n` roundings one after the other, relative to the sum of the magnitudes (Higham 2002, lemma
/// 3.1).
pub(super) fn gamma(n: usize) -> f64 {
    let n = n as f64 * EPS;
    n / (1.0 - n)
}

/// Additions one after the other when `lanes` lanes stride over `len` terms and then add up in a
/// tree.
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

/// `gelu(gate) * up` by its tanh approximation, as [`swiglu`].
pub(super) fn geglu(gate: Near, up: Near) -> Near {
    let x = gate.value;
    let inner = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    let s = x / (1.0 + (-inner).exp());
    let value = s * up.value;
    // The polynomial with its constants; then as there; |gelu'| <= 1.13.
    let own = (8.0 * EPS * inner.abs() + exp_error(inner) + EPS + DIV + EPS) * value.abs();
    let moved = 1.13 * gate.bound * (up.value.abs() + up.bound) + s.abs() * up.bound;
    Near { value, bound: 1.001 * (own + moved) + 1e-35 * (up.value.abs() + 1.0) }
}

/// By the gate.
pub(super) fn gated(activation: Activation, gate: Near, up: Near) -> Near {
    match activation {
        Activation::Silu => swiglu(gate, up),
        Activation::GeluTanh => geglu(gate, up),
    }
}

/// A gradient times `min(1, max_norm / (norm + 1e-6))`, as torch.nn.utils.clip_grad_norm_ clips it.
pub(super) fn clipped(gradient: f64, norm: f32, max_norm: f32) -> Near {
    let factor = (f64::from(max_norm) / (f64::from(norm) + 1e-6)).min(1.0);
    let value = gradient * factor;
    // The sum with 1e-6 and its own rounding, the division, the product.
    Near { value, bound: (2.0 * EPS + DIV + EPS) * value.abs() }
}

/// `scale = 1 / sqrt(mean(x²) + eps)` and its relative error, the squares summed with `depth`
/// roundings.
pub(super) fn rms_scale(x: &[f32], eps: f32, depth: usize) -> (f64, f64) {
    let squares: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    // The sum, the division by K and the addition of eps count half under the root.
    (scale, 0.5 * (gamma(depth) + DIV + EPS) + INV_SQRT)
}

/// Exactly what f32 holds.
pub(super) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Panics unless `gradient` is that of `f` at `x`, by central differences of step h in f64.
///
/// Their own error is h² |f‴| / 6 + 2⁻⁵³ |f| / h, at h = 1e-5 some 1e-11 of values of about 1.
pub(super) fn check_gradient(f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len());
    let size = gradient.iter().fold(1.0, |size: f64, g| size.max(g.abs()));
    let mut x = x.to_vec();
    for (i, gradient) in gradient.iter().enumerate() {
        let at = x[i];
        let mut beside = |step: f64| {
            x[i] = at + step;
            f(&x)
        };
        let slope = (beside(STEP) - beside(-STEP)) / (2.0 * STEP);
        x[i] = at;
        assert!(
            (slope - gradient).abs() <= 1e-8 * size,
            "[{i}] is {gradient}, but the slope is {slope}"
        );
    }
}
