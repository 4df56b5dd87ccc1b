//! Multinomial logistic regression, by L-BFGS (Liu & Nocedal 1989) to its minimum: the loss is
//! convex, so where one begins does not matter. Sums are made in a fixed order, whatever the threads.

use std::collections::{BTreeMap, VecDeque};

use super::{Classifier, Features, Vectors, dot, softmax, standardised};
use crate::error::{Error, Result};
use crate::parallel;

/// Vectors that a thread takes at a time.
const SHARE: usize = 256;
/// Steps that the curvature is told by.
const MEMORY: usize = 10;
/// Part of the promised descent that a step has to keep (Armijo).
const DESCENT: f64 = 1e-4;
/// Halvings of a step.
const HALVINGS: u32 = 40;

/// Named as scikit-learn's `LogisticRegression` has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitOptions {
    /// `C`: one over the strength of the L2 penalty; the intercepts have none.
    pub c: f64,
    /// Ends at a gradient whose largest element is this, of the mean loss.
    pub tol: f64,
    /// Most steps.
    pub max_iter: usize,
    /// Bring every number of the vectors to mean 0 and deviation 1 first (`StandardScaler`).
    pub standardize: bool,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { c: 1.0, tol: 1e-5, max_iter: 1000, standardize: true }
    }
}

impl FitOptions {
    /// That they make sense: before the vectors are made, which takes longer.
    ///
    /// Errors: [`Error::InvalidArgument`].
    pub fn check(&self) -> Result<()> {
        let bad = |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
        if !(self.c > 0.0 && self.c.is_finite()) {
            return bad("C", "above 0; smaller is a stronger penalty");
        }
        if !(self.tol > 0.0 && self.tol.is_finite()) {
            return bad("tol", "above 0");
        }
        if self.max_iter == 0 { bad("max_iter", "at least 1") } else { Ok(()) }
    }
}

/// Learns to tell `labels`, one a vector; gives the steps it took beside the classifier.
///
/// Errors: [`Error::InvalidArgument`] for settings out of range, fewer than two labels, or another
/// number of them than of vectors.
pub fn fit(
    vectors: &Vectors,
    labels: &[&str],
    (base_fingerprint, features): (&str, Features),
    options: &FitOptions,
) -> Result<(Classifier, usize)> {
    options.check()?;
    let wrong = |reason: String| Error::InvalidArgument { name: "labels", reason };
    if labels.len() != vectors.len() {
        return Err(wrong(format!("{} of them for {} vectors", labels.len(), vectors.len())));
    }
    let mut numbers: BTreeMap<&str, usize> = labels.iter().map(|label| (*label, 0)).collect();
    if numbers.len() < 2 {
        return Err(wrong(format!("{} kinds; give examples of two at least", numbers.len())));
    }
    numbers.values_mut().enumerate().for_each(|(i, number)| *number = i);
    let (center, scale) = if options.standardize {
        moments(vectors)
    } else {
        (vec![0.0; vectors.width()], vec![1.0; vectors.width()])
    };
    let problem = Problem {
        x: vectors.rows().flat_map(|row| standardised(row, &center, &scale)).collect(),
        y: labels.iter().map(|label| numbers[label]).collect(),
        width: vectors.width(),
        labels: numbers.len(),
        penalty: 1.0 / (options.c * labels.len() as f64),
    };
    let (found, steps) = problem.minimise(options);
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    for row in found.chunks_exact(problem.width + 1) {
        weight.extend(row[..problem.width].iter().map(|w| *w as f32));
        bias.push(row[problem.width] as f32);
    }
    let labels = numbers.keys().map(ToString::to_string).collect();
    let base_fingerprint = base_fingerprint.to_string();
    Ok((Classifier { labels, base_fingerprint, features, center, scale, weight, bias }, steps))
}

/// Mean and deviation of each number; a deviation of 0 is 1.
fn moments(vectors: &Vectors) -> (Vec<f32>, Vec<f32>) {
    let (n, width) = (vectors.len() as f64, vectors.width());
    let mut mean = vec![0.0; width];
    for row in vectors.rows() {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x) / n);
    }
    let mut variance = vec![0.0; width];
    for row in vectors.rows() {
        let each = variance.iter_mut().zip(row.iter().zip(&mean));
        each.for_each(|(sum, (x, mean))| *sum += (f64::from(*x) - mean).powi(2) / n);
    }
    let deviation = |v: &f64| if *v > 0.0 { v.sqrt() as f32 } else { 1.0 };
    (mean.iter().map(|x| *x as f32).collect(), variance.iter().map(deviation).collect())
}

/// Mean loss and penalty as a function of weights and intercepts, `[labels, D + 1]`.
struct Problem {
    x: Vec<f64>,
    y: Vec<usize>,
    width: usize,
    labels: usize,
    penalty: f64,
}

impl Problem {
    fn value_and_gradient(&self, at: &[f64]) -> (f64, Vec<f64>) {
        let shares: Vec<usize> = (0..self.y.len()).step_by(SHARE).collect();
        let parts = parallel::map(shares, |first| self.share(at, first));
        let (mut value, mut gradient) = (0.0, vec![0.0; at.len()]);
        for (part, of_part) in parts {
            value += part;
            gradient.iter_mut().zip(of_part).for_each(|(sum, part)| *sum += part);
        }
        let n = self.y.len() as f64;
        gradient.iter_mut().for_each(|g| *g /= n);
        value /= n;
        for (row, of_row) in
            at.chunks_exact(self.width + 1).zip(gradient.chunks_exact_mut(self.width + 1))
        {
            for (w, g) in row[..self.width].iter().zip(of_row) {
                value += 0.5 * self.penalty * w * w;
                *g += self.penalty * w;
            }
        }
        (value, gradient)
    }

    /// Sums over the vectors from `first` on.
    fn share(&self, at: &[f64], first: usize) -> (f64, Vec<f64>) {
        let (mut value, mut gradient) = (0.0, vec![0.0; at.len()]);
        let end = self.y.len().min(first + SHARE);
        let rows = self.x[first * self.width..end * self.width].chunks_exact(self.width);
        for (x, y) in rows.zip(&self.y[first..end]) {
            let row = |row: &[f64]| dot(row.iter().copied(), x) + row[self.width];
            let mut parts = softmax(at.chunks_exact(self.width + 1).map(row).collect());
            value -= parts[*y].max(f64::MIN_POSITIVE).ln();
            parts[*y] -= 1.0;
            for (part, of_row) in parts.iter().zip(gradient.chunks_exact_mut(self.width + 1)) {
                of_row.iter_mut().zip(x).for_each(|(g, x)| *g += part * x);
                of_row[self.width] += part;
            }
        }
        (value, gradient)
    }

    /// The minimum, and the steps to it.
    fn minimise(&self, options: &FitOptions) -> (Vec<f64>, usize) {
        let mut at = vec![0.0; self.labels * (self.width + 1)];
        let (mut value, mut gradient) = self.value_and_gradient(&at);
        let mut known: VecDeque<Step> = VecDeque::new();
        for taken in 0..options.max_iter {
            if gradient.iter().all(|g| g.abs() <= options.tol) {
                return (at, taken);
            }
            let mut direction = descent(&known, &gradient);
            let mut slope = dot(direction.iter().copied(), &gradient);
            if slope >= 0.0 {
                known.clear();
                direction = gradient.iter().map(|g| -g).collect();
                slope = -dot(gradient.iter().copied(), &gradient);
            }
            let norm = gradient.iter().map(|g| g.abs()).sum::<f64>();
            let mut length = if known.is_empty() { (1.0 / norm).min(1.0) } else { 1.0 };
            let mut next = None;
            for _ in 0..HALVINGS {
                let there: Vec<f64> =
                    at.iter().zip(&direction).map(|(at, d)| at + length * d).collect();
                let (of_there, slopes) = self.value_and_gradient(&there);
                if of_there <= value + DESCENT * length * slope {
                    next = Some((there, of_there, slopes));
                    break;
                }
                length *= 0.5;
            }
            // No step goes down: rounding is all that is left.
            let Some((there, of_there, slopes)) = next else { return (at, taken) };
            let step = Step::new(&at, &there, &gradient, &slopes);
            known.extend(step);
            if known.len() > MEMORY {
                known.pop_front();
            }
            (at, value, gradient) = (there, of_there, slopes);
        }
        (at, options.max_iter)
    }
}

/// A step and what it did to the gradient.
struct Step {
    step: Vec<f64>,
    change: Vec<f64>,
    /// Their product.
    curvature: f64,
}

impl Step {
    /// `None` where it tells of no curvature.
    fn new(from: &[f64], to: &[f64], before: &[f64], after: &[f64]) -> Option<Self> {
        let minus =
            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let (step, change) = (minus(to, from), minus(after, before));
        let curvature = dot(step.iter().copied(), &change);
        (curvature > f64::EPSILON * dot(change.iter().copied(), &change)).then_some(Self {
            step,
            change,
            curvature,
        })
    }
}

/// Where to go, by the curvature that the last steps found.
fn descent(known: &VecDeque<Step>, gradient: &[f64]) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut shares = Vec::with_capacity(known.len());
    for Step { step, change, curvature } in known.iter().rev() {
        let share = dot(step.iter().copied(), &q) / curvature;
        q.iter_mut().zip(change).for_each(|(q, y)| *q -= share * y);
        shares.push(share);
    }
    if let Some(Step { change, curvature, .. }) = known.back() {
        let scale = curvature / dot(change.iter().copied(), change);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (Step { step, change, curvature }, share) in known.iter().zip(shares.iter().rev()) {
        let back = dot(change.iter().copied(), &q) / curvature;
        q.iter_mut().zip(step).for_each(|(q, s)| *q += (share - back) * s);
    }
    q
}
