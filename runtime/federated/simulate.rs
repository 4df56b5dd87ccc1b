//! What a simulation needs that is no round: the examples of one file over many devices, and which
//! of them take part.

use std::collections::BTreeMap;

use super::random::Random;
use crate::error::{Error, Result};

/// Draws that are tried before a split is given up.
const TRIES: usize = 1000;

/// How examples are spread over devices.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Devices.
    pub clients: usize,
    /// The concentration of a Dirichlet distribution, from which each label's spread over the
    /// devices is drawn (Hsu et al. 2019, arXiv:1909.06335): 0.1 gives each device few labels, 100
    /// all of them. `None` spreads evenly, whatever the labels.
    pub alpha: Option<f64>,
    /// The same seed gives the same split.
    pub seed: u64,
}

/// The examples of each device, by their places among `labels`. None has none: with a Dirichlet
/// distribution each has a tenth of an even share at least, up to 10.
///
/// Errors: [`Error::InvalidArgument`] for fewer examples than devices, or where no such split is
/// found.
pub fn split(labels: &[String], how: &Split) -> Result<Vec<Vec<usize>>> {
    let (n, clients) = (labels.len(), how.clients);
    if clients == 0 || n < clients {
        let reason = format!("{n} examples for {clients} devices; give each one or more");
        return Err(Error::InvalidArgument { name: "clients", reason });
    }
    let mut random = seeded(how.seed, "split");
    let Some(alpha) = how.alpha else {
        let mut order: Vec<_> = (0..n).collect();
        random.shuffle(&mut order);
        let start = |client: usize| client * n / clients;
        return Ok((0..clients).map(|c| order[start(c)..start(c + 1)].to_vec()).collect());
    };
    let invalid = |reason: String| Err(Error::InvalidArgument { name: "alpha", reason });
    if !(alpha.is_finite() && alpha > 0.0) {
        return invalid(format!("{alpha}; a number above 0, such as 0.1, is needed"));
    }
    let mut by_label = BTreeMap::<_, Vec<usize>>::new();
    for (place, label) in labels.iter().enumerate() {
        by_label.entry(label).or_default().push(place);
    }
    let least = (n / (10 * clients)).clamp(1, 10);
    for _ in 0..TRIES {
        let mut devices = vec![Vec::new(); clients];
        for places in by_label.values_mut() {
            random.shuffle(places);
            let parts = dirichlet(&mut random, clients, alpha);
            deal(places, &parts, random.uniform(), &mut devices);
        }
        if devices.iter().all(|places| places.len() >= least) {
            devices.iter_mut().for_each(|places| places.sort_unstable());
            return Ok(devices);
        }
    }
    let labels = by_label.len();
    invalid(format!(
        "{alpha}: in {TRIES} draws of {labels} labels some of the {clients} devices had under \
        {least} examples; give a larger one, or fewer devices"
    ))
}

/// `count` of `of` devices, in ascending order.
pub fn choose(of: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<_> = (0..of).collect();
    seeded(seed, "choose").shuffle(&mut order);
    order.truncate(count);
    order.sort_unstable();
    order
}

fn seeded(seed: u64, what: &str) -> Random {
    Random::new(crate::identity::sha256([format!("epiphyte simulation {what} {seed}")]))
}

/// Parts that add up to 1.
fn dirichlet(random: &mut Random, clients: usize, alpha: f64) -> Vec<f64> {
    let parts: Vec<_> = (0..clients).map(|_| random.gamma(alpha)).collect();
    let sum: f64 = parts.iter().sum();
    if sum > 0.0 {
        return parts.iter().map(|part| part / sum).collect();
    }
    // All too small to be told apart: one has everything, which is what they stand for.
    let one = random.below(clients);
    (0..clients).map(|client| if client == one { 1.0 } else { 0.0 }).collect()
}

/// Hands each device its part of `places`, rounded from `offset` on, which is drawn at random: else a
/// label of few examples would always be the middle devices'.
fn deal(places: &[usize], parts: &[f64], offset: f64, devices: &mut [Vec<usize>]) {
    let (mut upto, mut start) = (0.0, 0);
    let last = parts.len() - 1;
    for (client, (part, device)) in parts.iter().zip(devices).enumerate() {
        upto += part;
        let end = match client == last {
            true => places.len(),
            false => ((upto * places.len() as f64 + offset) as usize).clamp(start, places.len()),
        };
        device.extend(&places[start..end]);
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_one_example_are_spread_over_all_devices() {
        let labels: Vec<_> = (0..2000).map(|label| label.to_string()).collect();
        let how = Split { clients: 10, alpha: Some(100.0), seed: 7 };
        for device in split(&labels, &how).expect("each has enough") {
            assert!((100..300).contains(&device.len()), "{}", device.len());
        }
    }

    #[test]
    fn gamma_and_its_parts_have_the_moments_they_should() {
        let mut random = seeded(1, "test");
        for shape in [0.1, 0.7, 1.0, 4.0] {
            let n = 20_000;
            let values: Vec<_> = (0..n).map(|_| random.gamma(shape)).collect();
            let mean = values.iter().sum::<f64>() / f64::from(n);
            let square = |v: &f64| (v - mean).powi(2);
            let variance = values.iter().map(square).sum::<f64>() / f64::from(n);
            // Five standard errors: those of a gamma's mean and variance.
            let n = f64::from(n);
            assert!((mean - shape).abs() < 5.0 * (shape / n).sqrt(), "{shape}: {mean}");
            let fourth = 3.0 * shape * shape + 6.0 * shape;
            let error = ((fourth - shape * shape) / n).sqrt();
            assert!((variance - shape).abs() < 5.0 * error, "{shape}: {variance}");
        }
        for alpha in [1e-4, 0.1, 50.0] {
            let parts = dirichlet(&mut random, 7, alpha);
            assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{alpha}: {parts:?}");
        }
    }
}
