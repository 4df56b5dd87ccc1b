//! A linear classifier on a text's vector: the model stays as it is, and what is learnt are a few
//! numbers a label (feature-based transfer).
//!
//! In: vectors with labels. Out: a [`Classifier`], its file, and how well it does.

mod file;
mod fit;
mod score;
mod vectors;

pub use fit::{FitOptions, fit};
pub use score::{LabelScore, Scores};
pub use vectors::Vectors;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which of the hidden states a text's vector is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens.
    #[default]
    Mean,
    /// The last token's, which has seen all others.
    Last,
}

/// How vectors are made: those that are classified as those that were learnt from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Which hidden states.
    pub pooling: Pooling,
    /// Scaled to length 1.
    pub normalize: bool,
}

/// A text and what it is; as a record `{"text": …, "label": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labelled {
    /// What to classify.
    pub text: String,
    /// Its class.
    pub label: String,
}

/// A label and what speaks for each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Index of the likeliest of [`Classifier::labels`]; of equal ones the first.
    pub label: usize,
    /// Of each label, in their order; together 1.
    pub probabilities: Vec<f64>,
}

/// Weights of each label on vectors of one base.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    /// In alphabetical order.
    pub labels: Vec<String>,
    /// Of the base whose vectors they are.
    pub base_fingerprint: String,
    /// How those are made.
    pub features: Features,
    /// Subtracted from a vector, `[D]`.
    center: Vec<f32>,
    /// Then divides it, `[D]`.
    scale: Vec<f32>,
    /// `[labels, D]`.
    weight: Vec<f32>,
    /// `[labels]`.
    bias: Vec<f32>,
}

impl Classifier {
    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.center.len()
    }

    /// That vectors of this base are those it learnt from.
    ///
    /// Errors: [`Error::BaseMismatch`].
    pub fn check_base(&self, fingerprint: &str) -> Result<()> {
        crate::base::fingerprint::check(&self.base_fingerprint, fingerprint)
    }

    /// What a vector is.
    ///
    /// Errors: [`Error::InvalidArgument`] for another width.
    pub fn predict(&self, vector: &[f32]) -> Result<Prediction> {
        let width = self.width();
        if vector.len() != width {
            let reason = format!("{} numbers, not {width}", vector.len());
            return Err(Error::InvalidArgument { name: "vector", reason });
        }
        let x: Vec<f64> = standardised(vector, &self.center, &self.scale).collect();
        let rows = self.weight.chunks_exact(width).zip(&self.bias);
        let logits =
            rows.map(|(w, bias)| dot(w.iter().map(|w| f64::from(*w)), &x) + f64::from(*bias));
        let probabilities = softmax(logits.collect());
        let label = (0..probabilities.len())
            .rev()
            .max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
        Ok(Prediction { label: label.unwrap_or_default(), probabilities })
    }
}

/// `(x - center) / scale`.
fn standardised<'a>(
    x: &'a [f32],
    center: &'a [f32],
    scale: &'a [f32],
) -> impl Iterator<Item = f64> + 'a {
    let each = x.iter().zip(center.iter().zip(scale));
    each.map(|(x, (center, scale))| (f64::from(*x) - f64::from(*center)) / f64::from(*scale))
}

fn dot(a: impl Iterator<Item = f64>, b: &[f64]) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(mut logits: Vec<f64>) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter_mut().for_each(|logit| *logit = (*logit - top).exp());
    let sum: f64 = logits.iter().sum();
    logits.iter_mut().for_each(|part| *part /= sum);
    logits
}
