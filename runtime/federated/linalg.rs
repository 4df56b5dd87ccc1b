//! Small dense matrices in f64: products of factors seen through their Gram matrices, and the
//! singular value decomposition of a sum of products that is never formed.

use crate::parallel::wide;

/// `B A` as its factors, in f64.
pub(super) struct Product {
    /// `[r, K]`.
    a: Vec<f64>,
    /// `[r, N]`: B's columns.
    b: Vec<f64>,
    rank: usize,
}

impl Product {
    /// Of A `[r, K]` and B `[N, r]`.
    pub(super) fn new(a: &[f32], b: &[f32], rank: usize) -> Self {
        let doubles = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        Self { a: doubles(a), b: transposed(&doubles(b), rank), rank }
    }

    /// What changed in `B A` when A and B did: `dB A + B0 dA`, where A is the new one. Factors as
    /// in [`Self::new`].
    pub(super) fn change(new_a: &[f32], d_b: &[f32], old_b: &[f32], d_a: &[f32], r: usize) -> Self {
        let (first, second) = (Self::new(new_a, d_b, r), Self::new(d_a, old_b, r));
        Self {
            a: [first.a, second.a].concat(),
            b: [first.b, second.b].concat(),
            rank: first.rank + second.rank,
        }
    }

    /// The sum of the products of their elements: `tr(B1^T B2 A2 A1^T)`.
    pub(super) fn dot(&self, other: &Self) -> f64 {
        let row = |values: &[f64], i: usize, rank: usize| {
            let width = values.len() / rank.max(1);
            i * width..(i + 1) * width
        };
        let mut sum = 0.0;
        for i in 0..self.rank {
            for j in 0..other.rank {
                let of =
                    |x: &[f64], y: &[f64]| dot(&x[row(x, i, self.rank)], &y[row(y, j, other.rank)]);
                sum += of(&self.b, &other.b) * of(&self.a, &other.a);
            }
        }
        sum
    }
}

/// Sums side by side, so that none waits for the one before.
const LANES: usize = 8;

/// The sum of products, in an order that depends on the length alone.
pub(super) fn dot<T: Copy + Into<f64>, U: Copy + Into<f64>>(x: &[T], y: &[U]) -> f64 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    wide(|| {
        for (x, y) in x.iter().zip(y) {
            for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                *lane += (*x).into() * (*y).into();
            }
        }
    });
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| (*x).into() * (*y).into()).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Rows of `columns` numbers become columns.
fn transposed(values: &[f64], columns: usize) -> Vec<f64> {
    let rows = values.len() / columns.max(1);
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

/// Vectors of one length.
type Vectors = Vec<Vec<f64>>;

/// The largest singular values of a matrix, with their vectors, largest first.
pub(super) struct Svd {
    /// `rank` vectors of N.
    pub(super) u: Vectors,
    pub(super) values: Vec<f64>,
    /// `rank` vectors of K.
    pub(super) v: Vectors,
    /// The sum of the squares of all singular values, those left out included.
    pub(super) energy: f64,
}

/// The `rank` largest of `sum_i b_i a_i^T`, for vectors `b_i` of N and `a_i` of K. While there are
/// fewer pairs than N or K, the matrix `[N, K]` is not formed: both sides are reduced by QR first.
pub(super) fn svd_of_sum(b: &Vectors, a: &Vectors, rank: usize) -> Svd {
    let (n, k) = (b.first().map_or(0, Vec::len), a.first().map_or(0, Vec::len));
    let small = b.len() < n.min(k);
    let (q_b, r_b) = if small { qr(b) } else { (Vec::new(), b.clone()) };
    let (q_a, r_a) = if small { qr(a) } else { (Vec::new(), a.clone()) };
    // The core's columns: `sum_i r_b[i] r_a[i][j]`, of the smaller side first for Jacobi.
    let (rows, columns) = (r_b.first().map_or(0, Vec::len), r_a.first().map_or(0, Vec::len));
    let is_wide = columns > rows;
    let (left, right) = if is_wide { (&r_a, &r_b) } else { (&r_b, &r_a) };
    let core = (0..rows.min(columns)).map(|j| {
        let mut column = vec![0.0; rows.max(columns)];
        left.iter().zip(right).for_each(|(l, r)| axpy(&mut column, r[j], l));
        column
    });
    let core: Vectors = core.collect();
    let energy = core.iter().map(|column| dot(column, column)).sum();
    let (mut u, values, mut v) = jacobi(core, rank);
    if is_wide {
        std::mem::swap(&mut u, &mut v);
    }
    if small {
        u = u.iter().map(|x| combine(&q_b, x)).collect();
        v = v.iter().map(|x| combine(&q_a, x)).collect();
    }
    // A pair of vectors may change its sign: the largest number of u is positive.
    for (u, v) in u.iter_mut().zip(&mut v) {
        let largest =
            u.iter().fold(0.0_f64, |most, x| if x.abs() > most.abs() { *x } else { most });
        if largest < 0.0 {
            u.iter_mut().chain(v.iter_mut()).for_each(|x| *x = -*x);
        }
    }
    Svd { u, values, v, energy }
}

fn axpy(to: &mut [f64], factor: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

fn combine(vectors: &Vectors, by: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; vectors.first().map_or(0, Vec::len)];
    vectors.iter().zip(by).for_each(|(vector, factor)| axpy(&mut sum, *factor, vector));
    sum
}

/// Orthonormal vectors, and each given vector's coordinates in them. Gram and Schmidt, twice.
fn qr(vectors: &Vectors) -> (Vectors, Vectors) {
    let count = vectors.len();
    let (mut q, mut r): (Vectors, Vectors) = (Vec::new(), Vec::new());
    for vector in vectors {
        let (mut rest, mut coordinates) = (vector.clone(), vec![0.0; count]);
        for _ in 0..2 {
            for (base, coordinate) in q.iter().zip(&mut coordinates) {
                let along = dot(base, &rest);
                *coordinate += along;
                axpy(&mut rest, -along, base);
            }
        }
        let norm = dot(&rest, &rest).sqrt();
        // What is left of a dependent vector is rounding, and no direction.
        if norm > 1e-14 * dot(vector, vector).sqrt() {
            coordinates[q.len()] = norm;
            rest.iter_mut().for_each(|x| *x /= norm);
            q.push(rest);
        }
        r.push(coordinates);
    }
    r.iter_mut().for_each(|coordinates| coordinates.truncate(q.len().max(1)));
    if q.is_empty() {
        q.push(vec![0.0; vectors.first().map_or(0, Vec::len)]);
    }
    (q, r)
}

/// One-sided Jacobi (Hestenes 1958) on columns: left vectors, values, right vectors, the `rank`
/// largest.
fn jacobi(mut columns: Vectors, rank: usize) -> (Vectors, Vec<f64>, Vectors) {
    const SWEEPS: usize = 60;
    let n = columns.len();
    let unit = |i| (0..n).map(|j| if i == j { 1.0 } else { 0.0 }).collect::<Vec<_>>();
    let mut right: Vectors = (0..n).map(unit).collect();
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let [x, y] = [p, q].map(|i| dot(&columns[i], &columns[i]));
                let xy = dot(&columns[p], &columns[q]);
                if xy.abs() <= 1e-15 * (x * y).sqrt() || xy == 0.0 {
                    continue;
                }
                rotated = true;
                let zeta = (y - x) / (2.0 * xy);
                let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                rotate(&mut columns, p, q, (cosine, cosine * tangent));
                rotate(&mut right, p, q, (cosine, cosine * tangent));
            }
        }
        if !rotated {
            break;
        }
    }
    let norms: Vec<_> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
    let mut order: Vec<_> = (0..n).collect();
    order.sort_by(|i, j| norms[*j].total_cmp(&norms[*i]));
    order.truncate(rank);
    let scaled = |i: &usize| {
        let by = if norms[*i] > 0.0 { 1.0 / norms[*i] } else { 0.0 };
        columns[*i].iter().map(|x| x * by).collect()
    };
    let left = order.iter().map(scaled).collect();
    let values = order.iter().map(|i| norms[*i]).collect();
    // Row i of the product of rotations is column i of V, as `rotate` treats both alike.
    (left, values, order.iter().map(|i| right[*i].clone()).collect())
}

fn rotate(vectors: &mut Vectors, p: usize, q: usize, (cosine, sine): (f64, f64)) {
    let (head, tail) = vectors.split_at_mut(q);
    for (x, y) in head[p].iter_mut().zip(&mut tail[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}
