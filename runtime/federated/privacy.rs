//! How much averaging tells of one device: Rényi differential privacy of the Gaussian mechanism
//! with Poisson sampling (Mironov, Talwar and Zhang 2019, arXiv:1908.10530), for adding or removing
//! one device.

use serde::Serialize;

use crate::error::{Error, Result};

/// Rounds of averaging, each with noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rounds {
    /// The probability that a device takes part in a round; 1 for no amplification.
    pub sampling: f64,
    /// Standard deviation of the noise on the sum of a round, in clip norms.
    pub sigma: f64,
    /// How many.
    pub rounds: u64,
}

/// A guarantee: whatever is seen of all rounds is at most `e^epsilon` times as likely with a device
/// as without it, but for a probability of `delta`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Guarantee {
    /// Infinite without noise.
    pub epsilon: f64,
    /// As asked.
    pub delta: f64,
    /// The order at which it was found. At the edge of those tried, another might give less.
    pub order: f64,
}

impl Rounds {
    /// The smallest epsilon for a delta.
    ///
    /// Errors: [`Error::InvalidArgument`] for a probability outside (0, 1], a sigma below 0, a
    /// delta outside (0, 1).
    pub fn epsilon(&self, delta: f64) -> Result<Guarantee> {
        self.check(delta)?;
        if self.rounds == 0 {
            return Ok(Guarantee { epsilon: 0.0, delta, order: f64::INFINITY });
        }
        let none = Guarantee { epsilon: f64::INFINITY, delta, order: f64::INFINITY };
        if self.sigma == 0.0 {
            return Ok(none);
        }
        let least = orders().map(|order| {
            let rdp = self.rounds as f64 * self.rdp(order);
            Guarantee { epsilon: epsilon(rdp, order, delta), delta, order }
        });
        Ok(least.min_by(|a, b| a.epsilon.total_cmp(&b.epsilon)).unwrap_or(none))
    }

    /// The Rényi divergence of one round, of an order above 1.
    pub fn rdp(&self, order: f64) -> f64 {
        if self.sampling >= 1.0 {
            return order / (2.0 * self.sigma * self.sigma);
        }
        self.log_moment(order) / (order - 1.0)
    }

    /// The logarithm of `E[((1 - q) + q e^((2 z - 1) / (2 sigma^2)))^order]`, z normal with
    /// deviation sigma. By the trapezoid rule, which on such a function is exact to the last digits
    /// once the step is a fraction of sigma; the integrand's weight lies between 0 and the order.
    fn log_moment(&self, order: f64) -> f64 {
        let (q, variance) = (self.sampling, self.sigma * self.sigma);
        let step = self.sigma / 16.0;
        let (from, to) = (-14.0 * self.sigma, order + 14.0 * self.sigma);
        let log = |i: u64| {
            let z = from + i as f64 * step;
            let ratio = log_sum((1.0 - q).ln(), q.ln() + (2.0 * z - 1.0) / (2.0 * variance));
            order * ratio - z * z / (2.0 * variance)
        };
        let points = ((to - from) / step).ceil() as u64;
        let most = (0..=points).map(log).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..=points).map(|i| (log(i) - most).exp()).sum();
        let density = step / (self.sigma * std::f64::consts::TAU.sqrt());
        // Above 0 by convexity; rounding may say otherwise.
        (most + (sum * density).ln()).max(0.0)
    }

    fn check(&self, delta: f64) -> Result<()> {
        let invalid = |name, allowed: &str| {
            Err(Error::InvalidArgument { name, reason: format!("{allowed} is allowed") })
        };
        if !(self.sampling > 0.0 && self.sampling <= 1.0) {
            return invalid("sampling", "above 0 and up to 1");
        }
        if !(self.sigma == 0.0 || (1e-2..=1e6).contains(&self.sigma)) {
            return invalid("sigma", "0, or 0.01 to 1000000,");
        }
        if !(delta > 0.0 && delta < 1.0) {
            return invalid("delta", "above 0 and below 1");
        }
        Ok(())
    }
}

/// The orders that are tried.
fn orders() -> impl Iterator<Item = f64> {
    let tenths = (1..100).map(|i| 1.0 + f64::from(i) / 10.0);
    let whole = (11..64).map(f64::from);
    tenths.chain(whole).chain([64.0, 80.0, 96.0, 128.0, 256.0, 512.0, 1024.0])
}

/// From Rényi's divergence to epsilon (Canonne, Kamath and Steinke 2020, arXiv:2004.00010,
/// proposition 12).
fn epsilon(rdp: f64, order: f64, delta: f64) -> f64 {
    let less = (-1.0 / order).ln_1p() - (delta * order).ln() / (order - 1.0);
    (rdp + less).max(0.0)
}

fn log_sum(x: f64, y: f64) -> f64 {
    let (low, high) = if x < y { (x, y) } else { (y, x) };
    if high == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}
