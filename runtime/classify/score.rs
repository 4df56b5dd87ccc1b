//! How well a classifier does: accuracy, and what was taken for what.

use serde::Serialize;

use super::Classifier;
use crate::error::{Error, Result};

/// What became of examples whose labels are known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// In the classifier's order.
    pub labels: Vec<String>,
    /// `[labels, labels]`: rows are what they are, columns what they were taken for.
    pub confusion: Vec<Vec<usize>>,
}

/// How well one label is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelScore {
    /// Which.
    pub label: String,
    /// Part of those taken for it that are it; null where none was.
    pub precision: Option<f64>,
    /// Part of those that are it that were taken for it; null where none is.
    pub recall: Option<f64>,
    /// Examples of it.
    pub support: usize,
}

impl Scores {
    /// Nothing yet.
    pub fn new(classifier: &Classifier) -> Self {
        let labels = classifier.labels.clone();
        Self { confusion: vec![vec![0; labels.len()]; labels.len()], labels }
    }

    /// One more, taken for label number `taken_for`.
    ///
    /// Errors: [`Error::InvalidArgument`] for a label that the classifier does not know.
    pub fn add(&mut self, label: &str, taken_for: usize) -> Result<()> {
        let number = self.labels.iter().position(|known| known == label);
        let cell = number.and_then(|number| self.confusion[number].get_mut(taken_for));
        let reason = "one that the classifier was not trained on; leave it out";
        let unknown = || Error::InvalidArgument { name: "label", reason: reason.into() };
        *cell.ok_or_else(unknown)? += 1;
        Ok(())
    }

    /// Examples in all.
    pub fn examples(&self) -> usize {
        self.confusion.iter().flatten().sum()
    }

    /// Part of the examples that were taken for what they are; `None` without examples.
    pub fn accuracy(&self) -> Option<f64> {
        let right: usize = (0..self.labels.len()).map(|i| self.confusion[i][i]).sum();
        part(right, self.examples())
    }

    /// Label by label.
    pub fn by_label(&self) -> Vec<LabelScore> {
        let score = |i: usize| {
            let (right, support) = (self.confusion[i][i], self.confusion[i].iter().sum());
            let taken = self.confusion.iter().map(|row| row[i]).sum();
            let label = self.labels[i].clone();
            LabelScore {
                label,
                precision: part(right, taken),
                recall: part(right, support),
                support,
            }
        };
        (0..self.labels.len()).map(score).collect()
    }
}

fn part(some: usize, all: usize) -> Option<f64> {
    (all > 0).then(|| some as f64 / all as f64)
}
