//! How adapters stand to each other before they are merged: angle, and elements that pull in
//! opposite directions.

use serde::Serialize;

use super::Parent;
use super::factored::inner;
use super::report::ratio;
use super::rows::Matrix;
use crate::base::BaseShape;
use crate::error::Result;

/// Two parents, weights aside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Relation {
    /// One.
    pub a: String,
    /// The other.
    pub b: String,
    /// Cosine between what they add.
    pub cosine: f64,
    /// Share of the elements of opposite signs among those that both change.
    pub sign_conflict: f64,
    /// Share of the elements that both change among those that either does.
    pub overlap: f64,
}

/// Every pair, in order.
///
/// Errors: [`crate::Error::InvalidAdapter`] for a module that does not fit the base.
pub fn relations(parents: &[Parent<'_>], shape: &BaseShape) -> Result<Vec<Relation>> {
    for module in parents.iter().flat_map(|parent| &parent.adapter.modules) {
        module.check(shape)?;
    }
    let pairs = (0..parents.len()).flat_map(|i| (i + 1..parents.len()).map(move |j| (i, j)));
    Ok(pairs.map(|(i, j)| relation(&parents[i], &parents[j])).collect())
}

/// Sums over elements.
#[derive(Clone, Copy, Default)]
struct Counts {
    conflicts: u64,
    both: u64,
    either: u64,
}

fn relation(a: &Parent<'_>, b: &Parent<'_>) -> Relation {
    let square = |parent: &Parent<'_>| -> f64 {
        parent.adapter.modules.iter().map(|module| inner(module, module)).sum()
    };
    let (mut dot, mut counts) = (0.0, Counts::default());
    for module in &a.adapter.modules {
        let x = Matrix::product(module);
        match b.adapter.module(module.path) {
            Some(other) => {
                dot += inner(module, other);
                counts = counts.and(both(&x, &Matrix::product(other)));
            }
            None => counts = counts.and(alone(&x)),
        }
    }
    for module in b.adapter.modules.iter().filter(|m| a.adapter.module(m.path).is_none()) {
        counts = counts.and(alone(&Matrix::product(module)));
    }
    let share = |part: u64, whole: u64| ratio(part as f64, whole as f64);
    Relation {
        a: a.id.into(),
        b: b.id.into(),
        cosine: ratio(dot, (square(a) * square(b)).sqrt()),
        sign_conflict: share(counts.conflicts, counts.both),
        overlap: share(counts.both, counts.either),
    }
}

fn both(x: &Matrix, y: &Matrix) -> Counts {
    let start = || (Counts::default(), vec![0.0; y.columns], vec![0.0; y.columns]);
    let counts = x.for_rows(start, |(counts, sums, other), row, values| {
        y.row(row, sums, other);
        for (x, y) in values.iter().zip(&*other) {
            let (x_changes, y_changes) = (*x != 0.0, *y != 0.0);
            counts.either += u64::from(x_changes || y_changes);
            counts.both += u64::from(x_changes && y_changes);
            counts.conflicts += u64::from(x_changes && y_changes && (*x > 0.0) != (*y > 0.0));
        }
    });
    counts.into_iter().fold(Counts::default(), |all, (counts, ..)| all.and(counts))
}

fn alone(x: &Matrix) -> Counts {
    let counts = x.for_rows(Counts::default, |counts, _, values| {
        counts.either += values.iter().filter(|value| **value != 0.0).count() as u64;
    });
    counts.into_iter().fold(Counts::default(), Counts::and)
}

impl Counts {
    fn and(self, other: Self) -> Self {
        Self {
            conflicts: self.conflicts + other.conflicts,
            both: self.both + other.both,
            either: self.either + other.either,
        }
    }
}
