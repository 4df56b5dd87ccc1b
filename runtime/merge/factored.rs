//! A module's merged matrix as factors: exactly, as the parents' stacked, or of a smaller rank by
//! singular values. Nothing of the size of the module is kept: its shorter side squared is the
//! most.

use std::collections::VecDeque;

use super::eigen::{self, Eigen, Square};
use super::recipe::Rank;
use super::rows::{Mix, pieces};
use crate::adapter::LoraModule;
use crate::parallel;

/// Rows that are computed before their products are added up.
const PIECE: usize = 256;

/// A parent's part of a sum: `coefficient * scaling * B A`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub(super) coefficient: f64,
    pub(super) module: &'a LoraModule,
}

/// A product of two factors, with what it lacks of the merged matrix.
pub(super) struct Factored {
    pub(super) rank: usize,
    /// `[r, K]`.
    pub(super) a: Vec<f32>,
    /// `[N, r]`.
    pub(super) b: Vec<f32>,
    /// Sum of squares of the merged matrix, before it was cut.
    pub(super) squares: f64,
    /// Of that, what was cut.
    pub(super) lost: f64,
}

/// Ranks together.
pub(super) fn total_rank(terms: &[Term<'_>]) -> usize {
    terms.iter().map(|term| term.module.rank).sum()
}

/// `<left, right>` over the elements of two products, without either of them.
pub(super) fn inner(left: &LoraModule, right: &LoraModule) -> f64 {
    let (r, s) = (left.rank, right.rank);
    let (n, k) = (left.b.len() / r, left.a.len() / r);
    let sums = parallel::map((0..r).collect(), |i: usize| {
        let mut sum = 0.0;
        for j in 0..s {
            let b =
                (0..n).map(|row| f64::from(left.b[row * r + i]) * f64::from(right.b[row * s + j]));
            let (a, other) = (&left.a[i * k..][..k], &right.a[j * k..][..k]);
            let a = a.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b));
            sum += b.sum::<f64>() * a.sum::<f64>();
        }
        sum
    });
    sums.iter().sum::<f64>() * f64::from(left.scaling) * f64::from(right.scaling)
}

/// `<x, y>` of two sums.
pub(super) fn inner_of_sums(x: &[Term<'_>], y: &[Term<'_>]) -> f64 {
    let pairs = x.iter().flat_map(|x| y.iter().map(move |y| (x, y)));
    pairs.map(|(x, y)| x.coefficient * y.coefficient * inner(x.module, y.module)).sum()
}

/// The sum exactly: coefficients and scalings on A, as PEFT's `cat` has it.
pub(super) fn stack(terms: &[Term<'_>]) -> Factored {
    let rank = total_rank(terms);
    let a = terms.iter().flat_map(|term| {
        let scale = term.coefficient * f64::from(term.module.scaling);
        term.module.a.iter().map(move |a| (scale * f64::from(*a)) as f32)
    });
    let n = terms.first().map_or(0, |term| term.module.b.len() / term.module.rank);
    let row = |i: usize| {
        terms.iter().flat_map(move |Term { module: m, .. }| &m.b[i * m.rank..][..m.rank])
    };
    let (a, b) = (a.collect(), (0..n).flat_map(row).copied().collect());
    Factored { rank, a, b, squares: inner_of_sums(terms, terms), lost: 0.0 }
}

/// The sum at another rank: `B = Q R`, and the singular values of `R A` are those of `B A`.
pub(super) fn truncate(terms: &[Term<'_>], rank: Rank) -> Factored {
    let Factored { rank: r, a, b, .. } = stack(terms);
    let k = a.len() / r;
    let columns: Vec<Vec<f64>> =
        (0..r).map(|j| b.iter().skip(j).step_by(r).map(|b| f64::from(*b)).collect()).collect();
    let q = eigen::orthonormal(&[], columns.clone());
    // `R A`, of as many rows as Q has columns.
    let core: Vec<Vec<f64>> = parallel::map(q.iter().collect(), |q: &Vec<f64>| {
        let mut row = vec![0.0; k];
        for (column, a) in columns.iter().zip(a.chunks_exact(k)) {
            let along = eigen::dot(q, column);
            row.iter_mut().zip(a).for_each(|(sum, a)| *sum += along * f64::from(*a));
        }
        row
    });
    let m = core.len();
    if m == 0 {
        // B is zero.
        let (a, b) = (vec![0.0; k], vec![0.0; b.len() / r]);
        return Factored { rank: 1, a, b, squares: 0.0, lost: 0.0 };
    }
    let mut gram = Square::zeros(m);
    for i in 0..m {
        for j in 0..m {
            gram.values[i * m + j] = eigen::dot(&core[i], &core[j]);
        }
    }
    // Of these very numbers: what is lost is a difference.
    let squares = (0..m).map(|i| gram.values[i * m + i]).sum();
    let found = choose(gram, rank, squares);
    let mix = |vectors: &[Vec<f64>], weights: &[f64], len: usize| {
        let mut sum = vec![0.0; len];
        weights.iter().zip(vectors).for_each(|(w, v)| eigen::add(&mut sum, *w, v));
        sum
    };
    let n = b.len() / r;
    let left = found.vectors.iter().map(|p| mix(&q, p, n)).collect();
    let right = found.vectors.iter().map(|p| mix(&core, p, k)).collect();
    balanced(left, right, squares)
}

/// Rows that come one after another, at a rank: `D V` and `V` for the eigenvectors V of `D^T D`.
pub(super) fn compress(mix: &Mix, rank: Rank) -> Factored {
    let (gram, squares) = gram(mix);
    let found = choose(gram, rank, squares);
    let count = found.vectors.len();
    let pieces = parallel::map(pieces(0..mix.rows(), PIECE), |rows| {
        let (mut scratch, mut row) = (mix.scratch(), vec![0.0; mix.columns()]);
        let mut left = Vec::with_capacity(rows.len() * count);
        for i in rows {
            mix.row(i, &mut scratch, &mut row);
            left.extend(found.vectors.iter().map(|v| eigen::dot(v, &row)));
        }
        left
    });
    let rows = pieces.concat();
    let left = (0..count).map(|j| rows.iter().skip(j).step_by(count).copied().collect::<Vec<_>>());
    match mix.is_transposed() {
        false => balanced(left.collect(), found.vectors, squares),
        true => balanced(found.vectors, left.collect(), squares),
    }
}

/// `D^T D`, and the sum of the squares of D.
fn gram(mix: &Mix) -> (Square, f64) {
    let n = mix.columns();
    let mut gram = Square::zeros(n);
    for piece in pieces(0..mix.rows(), PIECE) {
        let rows: Vec<Vec<f64>> = parallel::map(pieces(piece, PIECE / 16), |rows| {
            let mut scratch = mix.scratch();
            let mut all = Vec::with_capacity(rows.len());
            for i in rows {
                let mut row = vec![0.0; n];
                mix.row(i, &mut scratch, &mut row);
                all.push(row);
            }
            all
        })
        .concat();
        // Long rows of the triangle and short ones in turn, for shares of equal work.
        let mut open: VecDeque<_> = gram.values.chunks_exact_mut(n).enumerate().collect();
        let mut items = Vec::with_capacity(n);
        while let Some(long) = open.pop_front() {
            items.push(long);
            items.extend(open.pop_back());
        }
        parallel::map(items, |(i, sums)| {
            for row in rows.iter().filter(|row| row[i] != 0.0) {
                eigen::add(&mut sums[i..], row[i], &row[i..]);
            }
        });
    }
    for i in 0..n {
        for j in 0..i {
            gram.values[i * n + j] = gram.values[j * n + i];
        }
    }
    let squares = (0..n).map(|i| gram.values[i * n + i]).sum();
    (gram, squares)
}

/// As many of the largest eigenvalues as a rank asks for, at least one.
fn choose(gram: Square, rank: Rank, squares: f64) -> Eigen {
    match rank {
        Rank::Fixed(rank) => eigen::largest(gram, rank),
        Rank::Energy(share) => {
            let n = gram.n;
            let mut found = eigen::all(gram, n);
            let mut kept = 0.0;
            let enough = found.values.iter().position(|value| {
                kept += value.max(0.0);
                // What rounding leaves open is no reason for another rank.
                kept >= (share - 1e-12) * squares
            });
            found.vectors.truncate(enough.map_or(n, |i| i + 1));
            found
        }
    }
}

/// Factors of which both have a share of the singular values: f16 holds them better so.
fn balanced(mut left: Vec<Vec<f64>>, mut right: Vec<Vec<f64>>, squares: f64) -> Factored {
    let mut kept = 0.0;
    for (left, right) in left.iter_mut().zip(&mut right) {
        let (l, r) = (eigen::norm(left), eigen::norm(right));
        kept += l * l * r * r;
        let root = (l * r).sqrt();
        let scale = |length: f64| if length > 0.0 { root / length } else { 0.0 };
        left.iter_mut().for_each(|v| *v *= scale(l));
        right.iter_mut().for_each(|v| *v *= scale(r));
    }
    let (rank, n) = (left.len(), left.first().map_or(0, Vec::len));
    let a = right.iter().flatten().map(|v| *v as f32).collect();
    let b = (0..n).flat_map(|i| left.iter().map(move |column| column[i] as f32)).collect();
    Factored { rank, a, b, squares, lost: (squares - kept).max(0.0) }
}
