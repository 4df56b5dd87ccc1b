//! Matrices a row at a time: `scaling * B A` is never there as a whole, whatever a method asks of
//! its elements. Each pass computes the rows again, the same to the last bit.

use std::ops::Range;

use super::random;
use crate::adapter::LoraModule;
use crate::parallel;

/// Rows that one thread takes at once. Sums are made in their order, so that the number of threads
/// changes no bit.
const PIECE: usize = 64;
/// Norms under which mergekit does not rescale.
const TOO_SMALL: f64 = 1e-7;

/// A matrix of `rows` by `columns`.
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    source: Source,
    /// Elements are numbered as in the module's own order, of which this is the transpose.
    transposed: bool,
}

enum Source {
    /// `scale * left right`: `[rows, r]` and `[r, columns]`.
    Product {
        left: Vec<f32>,
        right: Vec<f32>,
        scale: f64,
    },
    Given(Vec<f32>),
}

impl Matrix {
    /// What a module adds to `[N, K]`, with the longer side as rows.
    pub(super) fn product(module: &LoraModule) -> Self {
        let rank = module.rank;
        let (n, k) = (module.b.len() / rank, module.a.len() / rank);
        let scale = f64::from(module.scaling);
        let transposed = k > n;
        let (left, right) = match transposed {
            false => (module.b.clone(), module.a.clone()),
            true => (transpose(&module.a, k), transpose(&module.b, rank)),
        };
        let (rows, columns) = if transposed { (k, n) } else { (n, k) };
        Self { rows, columns, source: Source::Product { left, right, scale }, transposed }
    }

    /// The weights of a module `[N, K]`, with the longer side as rows.
    pub(super) fn dense(values: Vec<f32>, k: usize) -> Self {
        let n = values.len() / k;
        let transposed = k > n;
        let values = if transposed { transpose(&values, k) } else { values };
        let (rows, columns) = if transposed { (k, n) } else { (n, k) };
        Self { rows, columns, source: Source::Given(values), transposed }
    }

    /// A factor as it is.
    pub(super) fn given(values: &[f32], columns: usize) -> Self {
        let source = Source::Given(values.to_vec());
        Self { rows: values.len() / columns, columns, source, transposed: false }
    }

    /// The number of an element in the module's own order.
    fn index(&self, row: usize, column: usize) -> u64 {
        let (row, column, width) =
            if self.transposed { (column, row, self.rows) } else { (row, column, self.columns) };
        (row * width + column) as u64
    }

    /// Row `row`, rounded to f32; `sums` is room for as many numbers.
    pub(super) fn row(&self, row: usize, sums: &mut [f64], out: &mut [f32]) {
        match &self.source {
            Source::Given(values) => {
                out.copy_from_slice(&values[row * self.columns..][..out.len()])
            }
            Source::Product { left, right, scale } => {
                let rank = right.len() / self.columns;
                sums.fill(0.0);
                let left = &left[row * rank..][..rank];
                for (l, right) in left.iter().zip(right.chunks_exact(self.columns)) {
                    let l = scale * f64::from(*l);
                    sums.iter_mut().zip(right).for_each(|(s, r)| *s += l * f64::from(*r));
                }
                out.iter_mut().zip(&*sums).for_each(|(out, s)| *out = *s as f32);
            }
        }
    }

    /// What `work` makes of each row, in order.
    pub(super) fn for_rows<T: Send>(
        &self,
        start: impl Fn() -> T + Sync,
        work: impl Fn(&mut T, usize, &[f32]) + Sync,
    ) -> Vec<T> {
        parallel::map(pieces(0..self.rows, PIECE), |rows| {
            let (mut sums, mut values) = (vec![0.0; self.columns], vec![0.0; self.columns]);
            let mut found = start();
            for row in rows {
                self.row(row, &mut sums, &mut values);
                work(&mut found, row, &values);
            }
            found
        })
    }
}

/// `[n, k]` as `[k, n]`, where `k` is the length of a row.
fn transpose(values: &[f32], k: usize) -> Vec<f32> {
    let n = values.len() / k;
    (0..k).flat_map(|column| (0..n).map(move |row| values[row * k + column])).collect()
}

pub(super) fn pieces(range: Range<usize>, size: usize) -> Vec<Range<usize>> {
    let end = range.end;
    range.step_by(size).map(|start| start..(start + size).min(end)).collect()
}

/// What of a parent's matrix stays.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    All,
    /// The largest by size; those that are equal at the cut stay together.
    Largest(Cut),
    Random {
        density: f64,
        stream: u64,
        rescale: Rescale,
    },
}

/// The smallest size that stays, as the bits of its f32; all in a matrix of which nothing does.
#[derive(Clone, Copy)]
pub(super) struct Cut(u32);

/// How what is left after chance makes up for what is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rescale {
    No,
    /// By the density, as in the paper and PEFT.
    Density,
    /// By the sums of sizes before and after, as in mergekit.
    Sum,
}

/// A parent's matrix with what stays of it.
pub(super) struct Sparse {
    pub(super) matrix: Matrix,
    pub(super) weight: f64,
    keep: Keep,
    scale: f64,
    /// Sums of squares before and after.
    pub(super) squares: [f64; 2],
}

impl Sparse {
    pub(super) fn new(matrix: Matrix, weight: f64, keep: Keep) -> Self {
        let mut sparse = Self { matrix, weight, keep, scale: 1.0, squares: [0.0; 2] };
        let start = || [0.0_f64; 4];
        let sums = sparse.matrix.for_rows(start, |sums, row, values| {
            for (column, value) in values.iter().enumerate() {
                let value = f64::from(*value);
                let kept = if sparse.keeps(row, column, value as f32) { value } else { 0.0 };
                let new = [value.abs(), kept.abs(), value * value, kept * kept];
                sums.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
            }
        });
        let sum = |i: usize| sums.iter().map(|sums| sums[i]).sum::<f64>();
        sparse.squares = [sum(2), sum(3)];
        sparse.scale = match keep {
            Keep::Random { density, rescale: Rescale::Density, .. } => 1.0 / density,
            Keep::Random { rescale: Rescale::Sum, .. } if sum(0).min(sum(1)) >= TOO_SMALL => {
                sum(0) / sum(1)
            }
            _ => 1.0,
        };
        sparse
    }

    fn keeps(&self, row: usize, column: usize, value: f32) -> bool {
        match self.keep {
            Keep::All => true,
            Keep::Largest(Cut(bits)) => value.abs().to_bits() >= bits,
            Keep::Random { density, stream, .. } => {
                random::draw(stream, self.matrix.index(row, column)) < density
            }
        }
    }
}

impl Cut {
    /// The cut that leaves the `count` largest of a matrix.
    pub(super) fn leaving(matrix: &Matrix, count: usize) -> Self {
        if count == 0 {
            return Self(u32::MAX);
        }
        // Bits of positive floats are in the order of the floats: first by the upper half, then
        // within the one that the cut is in.
        let (upper, above) = rank_of(matrix, count as u64, |bits| Some(bits >> 16));
        let within = |bits: u32| (bits >> 16 == upper).then_some(bits & 0xffff);
        let (lower, _) = rank_of(matrix, count as u64 - above, within);
        Self(upper << 16 | lower)
    }
}

/// The key of the element of rank `count` from the top, and how many have larger ones.
fn rank_of(matrix: &Matrix, count: u64, key: impl Fn(u32) -> Option<u32> + Sync) -> (u32, u64) {
    const KEYS: usize = 1 << 16;
    let share = matrix.rows.div_ceil(16).max(1);
    let counts = parallel::map(pieces(0..matrix.rows, share), |rows| {
        let (mut sums, mut values) = (vec![0.0; matrix.columns], vec![0.0; matrix.columns]);
        let mut counts = vec![0_u64; KEYS];
        for row in rows {
            matrix.row(row, &mut sums, &mut values);
            for key in values.iter().filter_map(|value| key(value.abs().to_bits())) {
                counts[key as usize] += 1;
            }
        }
        counts
    });
    let mut above = 0;
    for key in (0..KEYS).rev() {
        let here: u64 = counts.iter().map(|counts| counts[key]).sum();
        if above + here >= count {
            return (key as u32, above);
        }
        above += here;
    }
    (0, above)
}

/// How the parents' elements become one.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// The weighted sum, divided.
    Sum { divisor: f64 },
    /// The weighted sum of those of the elected sign.
    Elected(Election),
}

/// How a sign is elected, and what the sum of its voters is divided by.
#[derive(Clone, Copy)]
pub(super) struct Election {
    /// Each parent has one vote, whatever the size.
    pub(super) by_count: bool,
    /// Votes are weighted.
    pub(super) weighted: bool,
    pub(super) divide: Divide,
}

#[derive(Clone, Copy)]
pub(super) enum Divide {
    No,
    /// By the number of voters.
    Count,
    /// By the sum of their weights; by 1 where that is 0.
    Weights,
}

/// The merged matrix, a row at a time.
pub(super) struct Mix {
    pub(super) parents: Vec<Sparse>,
    pub(super) rule: Rule,
    /// Multiplies the result.
    pub(super) lambda: f64,
}

/// Room for a row of each parent.
pub(super) struct Scratch {
    sums: Vec<f64>,
    values: Vec<f32>,
    rows: Vec<Vec<f64>>,
}

impl Mix {
    pub(super) fn rows(&self) -> usize {
        self.parents.first().map_or(0, |parent| parent.matrix.rows)
    }

    pub(super) fn columns(&self) -> usize {
        self.parents.first().map_or(0, |parent| parent.matrix.columns)
    }

    /// Whether rows are columns of the module.
    pub(super) fn is_transposed(&self) -> bool {
        self.parents.first().is_some_and(|parent| parent.matrix.transposed)
    }

    pub(super) fn scratch(&self) -> Scratch {
        let columns = self.columns();
        let rows = vec![vec![0.0; columns]; self.parents.len()];
        Scratch { sums: vec![0.0; columns], values: vec![0.0; columns], rows }
    }

    /// Row `row` of the result.
    pub(super) fn row(&self, row: usize, scratch: &mut Scratch, out: &mut [f64]) {
        let Scratch { sums, values, rows } = scratch;
        for (parent, kept) in self.parents.iter().zip(&mut *rows) {
            parent.matrix.row(row, sums, values);
            for (column, (kept, value)) in kept.iter_mut().zip(&*values).enumerate() {
                let keeps = parent.keeps(row, column, *value);
                *kept = if keeps { parent.scale * f64::from(*value) } else { 0.0 };
            }
        }
        for (column, out) in out.iter_mut().enumerate() {
            let elements = self.parents.iter().zip(&*rows).map(|(p, row)| (p.weight, row[column]));
            *out = self.lambda * self.rule.apply(elements);
        }
    }

    /// All of it, for what is small.
    pub(super) fn to_f32(&self) -> Vec<f32> {
        let (mut scratch, mut out) = (self.scratch(), vec![0.0; self.columns()]);
        let mut values = Vec::with_capacity(self.rows() * self.columns());
        for row in 0..self.rows() {
            self.row(row, &mut scratch, &mut out);
            values.extend(out.iter().map(|v| *v as f32));
        }
        values
    }
}

impl Rule {
    /// One element of each parent, with its weight, as one.
    fn apply(self, elements: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
        match self {
            Self::Sum { divisor } => elements.map(|(w, x)| w * x).sum::<f64>() / divisor,
            Self::Elected(election) => election.apply(elements),
        }
    }
}

impl Election {
    fn apply(self, elements: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
        let vote = |(w, x): (f64, f64)| {
            let vote = if self.weighted { w * x } else { x };
            if self.by_count && vote != 0.0 { vote.signum() } else { vote }
        };
        // A tie is positive, in PEFT and in mergekit.
        let positive = elements.clone().map(vote).sum::<f64>() >= 0.0;
        let (mut sum, mut count, mut weights) = (0.0, 0.0, 0.0);
        for (w, x) in elements {
            let sign = if self.weighted { w * x } else { x };
            if sign != 0.0 && (sign > 0.0) == positive {
                (sum, count, weights) = (sum + w * x, count + 1.0, weights + w);
            }
        }
        match self.divide {
            Divide::Count if count > 0.0 => sum / count,
            Divide::Weights if weights != 0.0 => sum / weights,
            _ => sum,
        }
    }
}
