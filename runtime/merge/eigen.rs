//! Eigenvalues of symmetric matrices without a dependency: Householder's reduction to a tridiagonal
//! one, then QL with implicit shifts (Bowdler, Martin, Reinsch, Wilkinson 1968); of large ones only
//! the largest, by block Krylov iteration (Musco and Musco 2015, arXiv:1504.05477). f64 throughout.

use crate::parallel;

/// Rows up to which all eigenvalues are found at once.
const DIRECT: usize = 384;
/// More directions than asked for in a block of the iteration.
const OVERSAMPLING: usize = 8;
/// Residual of an eigenvector, in the largest eigenvalue, at which the iteration ends. The product
/// loses the square of it.
const TOLERANCE: f64 = 1e-11;
/// Rotations to make one number small; a handful are needed.
const MAX_SWEEPS: usize = 64;

/// A square matrix, row-major.
#[derive(Clone)]
pub(super) struct Square {
    pub(super) n: usize,
    pub(super) values: Vec<f64>,
}

/// Eigenvalues, the largest first, each with its vector of length 1.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    pub(super) vectors: Vec<Vec<f64>>,
}

impl Square {
    pub(super) fn zeros(n: usize) -> Self {
        Self { n, values: vec![0.0; n * n] }
    }

    pub(super) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.n..][..self.n]
    }
}

/// The `count` largest eigenvalues of a symmetric matrix without negative ones.
pub(super) fn largest(matrix: Square, count: usize) -> Eigen {
    let count = count.min(matrix.n);
    if matrix.n <= DIRECT || 4 * (count + OVERSAMPLING) >= matrix.n {
        return all(matrix, count);
    }
    krylov(&matrix, count).unwrap_or_else(|| all(matrix, count))
}

/// All eigenvalues, of which the largest `count` get vectors.
pub(super) fn all(mut matrix: Square, count: usize) -> Eigen {
    let (mut diagonal, mut beside, reflectors) = tridiagonal(&mut matrix);
    let mut rows = rotate(&mut diagonal, &mut beside);
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    let wanted: Vec<_> = order.iter().take(count).map(|&i| std::mem::take(&mut rows[i])).collect();
    let vectors = parallel::map(wanted, |mut vector| {
        for (start, v) in reflectors.iter().enumerate().rev() {
            let tail = &mut vector[start + 1..];
            let twice = 2.0 * dot(v, tail);
            add(tail, -twice, v);
        }
        vector
    });
    Eigen { values: order.iter().map(|&i| diagonal[i]).collect(), vectors }
}

/// Reduces to diagonal and the numbers beside it; the reflectors' vectors have length 1 or 0.
fn tridiagonal(matrix: &mut Square) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let n = matrix.n;
    let mut beside = Vec::with_capacity(n);
    let mut reflectors = Vec::with_capacity(n.saturating_sub(2));
    for k in 0..n.saturating_sub(1) {
        let mut v: Vec<f64> = (k + 1..n).map(|i| matrix.values[i * n + k]).collect();
        let length = norm(&v);
        let alpha = if v[0] > 0.0 { -length } else { length };
        beside.push(if v.len() == 1 { v[0] } else { alpha });
        if v.len() == 1 {
            break;
        }
        v[0] -= alpha;
        let length = norm(&v);
        if length > 0.0 {
            v.iter_mut().for_each(|x| *x /= length);
            reflect(matrix, k + 1, &v);
        }
        reflectors.push(v);
    }
    beside.resize(n, 0.0);
    ((0..n).map(|i| matrix.values[i * n + i]).collect(), beside, reflectors)
}

/// `H M H` on the rows and columns from `start` on, for `H = I - 2 v v^T`.
fn reflect(matrix: &mut Square, start: usize, v: &[f64]) {
    let n = matrix.n;
    let rows = || matrix.values[start * n..].chunks_exact(n).map(|row| &row[start..]);
    let mut w: Vec<f64> = rows().map(|row| dot(row, v)).collect();
    let half = dot(&w, v);
    add(&mut w, -half, v);
    for (i, row) in matrix.values[start * n..].chunks_exact_mut(n).enumerate() {
        let (a, b) = (2.0 * v[i], 2.0 * w[i]);
        for ((x, w), v) in row[start..].iter_mut().zip(&w).zip(v) {
            *x -= a * w + b * v;
        }
    }
}

/// QL with implicit shifts; the diagonal becomes the eigenvalues, and the rows given are the
/// vectors of the tridiagonal matrix.
fn rotate(diagonal: &mut [f64], beside: &mut [f64]) -> Vec<Vec<f64>> {
    let n = diagonal.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let mut row = vec![0.0; n];
            row[i] = 1.0;
            row
        })
        .collect();
    let largest = diagonal.iter().chain(&*beside).fold(0.0, |max: f64, v| max.max(v.abs()));
    let floor = largest * f64::EPSILON * f64::EPSILON;
    for l in 0..n {
        for _ in 0..MAX_SWEEPS {
            let small = |i: usize| {
                let around = diagonal[i].abs() + diagonal[i + 1].abs();
                beside[i].abs() <= (f64::EPSILON * around).max(floor)
            };
            let m = (l..n - 1).find(|&i| small(i)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            sweep(diagonal, beside, &mut rows, l, m);
        }
    }
    rows
}

fn sweep(d: &mut [f64], e: &mut [f64], rows: &mut [Vec<f64>], l: usize, m: usize) {
    let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let mut g = d[m] - d[l] + e[l] / (g + g.hypot(1.0).copysign(g));
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[m] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let r = (d[i] - g) * s + 2.0 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        let (low, high) = rows.split_at_mut(i + 1);
        for (low, high) in low[i].iter_mut().zip(&mut high[0]) {
            (*low, *high) = (c * *low - s * *high, s * *low + c * *high);
        }
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0.0;
}

/// The largest eigenvalues from the space that a random block and its images span; `None` when that
/// has to become nearly the whole space.
fn krylov(matrix: &Square, count: usize) -> Option<Eigen> {
    let (n, block) = (matrix.n, count + OVERSAMPLING);
    let mut random = 0x5851_f42d_4c95_7f2d_u64;
    let mut next: Vec<Vec<f64>> =
        (0..block).map(|_| (0..n).map(|_| uniform(&mut random) - 0.5).collect()).collect();
    let (mut basis, mut images) = (Vec::new(), Vec::new());
    let mut check_at = 4 * block;
    loop {
        let new = orthonormal(&basis, next);
        let image = parallel::map(new.iter().collect(), |v: &Vec<f64>| {
            (0..n).map(|i| dot(matrix.row(i), v)).collect::<Vec<f64>>()
        });
        // What the matrix gives nothing more of is known as a whole.
        let ended = new.len() < block;
        next = image.clone();
        basis.extend(new);
        images.extend(image);
        if basis.len() >= check_at || ended {
            let found = ritz(&basis, &images, count);
            if ended || found.1 <= TOLERANCE {
                return (found.0.vectors.len() == count).then_some(found.0);
            }
            check_at = basis.len() * 3 / 2;
        }
        if basis.len() > n / 2 {
            return None;
        }
    }
}

/// The best eigenvectors within a basis, and their largest residual in the largest eigenvalue.
fn ritz(basis: &[Vec<f64>], images: &[Vec<f64>], count: usize) -> (Eigen, f64) {
    let m = basis.len();
    let rows = parallel::map(basis.iter().collect(), |v: &Vec<f64>| {
        images.iter().map(|image| dot(v, image)).collect::<Vec<f64>>()
    });
    let within = all(Square { n: m, values: rows.concat() }, count.min(m));
    let mix = |vectors: &[Vec<f64>], weights: &[f64]| {
        let mut sum = vec![0.0; vectors[0].len()];
        weights.iter().zip(vectors).for_each(|(&w, v)| add(&mut sum, w, v));
        sum
    };
    let found = parallel::map(within.vectors.iter().zip(&within.values).collect(), |(w, value)| {
        let vector = mix(basis, w);
        let mut residual = mix(images, w);
        add(&mut residual, -value, &vector);
        (vector, norm(&residual))
    });
    let largest = within.values.first().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let residual = found.iter().fold(0.0, |max: f64, (_, r)| max.max(*r)) / largest;
    let values = within.values.into_iter().take(count).collect();
    (Eigen { values, vectors: found.into_iter().map(|(vector, _)| vector).collect() }, residual)
}

/// What of `vectors` is at right angles to `basis` and to each other, with length 1; those that
/// have nothing of their own are left out.
pub(super) fn orthonormal(basis: &[Vec<f64>], vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut new: Vec<Vec<f64>> = Vec::with_capacity(vectors.len());
    for mut v in vectors {
        let before = norm(&v);
        // Twice is enough (Kahan and Parlett).
        for _ in 0..2 {
            for other in basis.iter().chain(&new) {
                let along = dot(other, &v);
                add(&mut v, -along, other);
            }
        }
        let after = norm(&v);
        if after > 1e-13 * before && after > 0.0 {
            v.iter_mut().for_each(|x| *x /= after);
            new.push(v);
        }
    }
    new
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums, for the processor to go on while one waits.
    let (mut sums, n) = ([0.0; 4], a.len().min(b.len()));
    let (a4, b4) = (a[..n].as_chunks::<4>(), b[..n].as_chunks::<4>());
    for (a, b) in a4.0.iter().zip(b4.0) {
        (0..4).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f64 = a4.1.iter().zip(b4.1).map(|(a, b)| a * b).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// Adds `factor * b` to `a`.
pub(super) fn add(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

pub(super) fn norm(v: &[f64]) -> f64 {
    dot(v, v).sqrt()
}

/// `SplitMix64` (Steele et al. 2014), its next 53 bits as a number in [0, 1).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(super::random::STEP);
    super::random::unit(*state)
}
