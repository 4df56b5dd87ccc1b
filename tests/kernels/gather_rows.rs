//! `y[i] = x[index[i]]`, and the way back.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::gather_rows::{GatherRowsParams, NONE, inverse, record, spec};

use super::{Checked, Near, Output, Random, for_all, seed, submit};

/// Gathers by `index`, which has one unused entry before, and expects each row's bits or zeros.
fn check(
    gpu: &Gpu,
    x: &[f32],
    k: usize,
    index: &[u32],
    [x_row, y_row]: [usize; 2],
) -> Checked<Vec<f32>> {
    let y = Output::poisoned(gpu, (y_row + index.len()) * k)?;
    let all: Vec<u32> = std::iter::once(7_000_000).chain(index.iter().copied()).collect();
    let op = gpu.op(&spec(), &[&gpu.upload("index", &all)?, &gpu.upload("x", x)?, &y.tensor])?;
    let params =
        GatherRowsParams { k4: k as u32 / 4, index0: 1, x_row: x_row as u32, y_row: y_row as u32 };
    submit(gpu, |commands| record(commands, &op, params, index.len() as u32))?;
    let value =
        |row: u32, i: usize| if row == NONE { 0.0 } else { x[(x_row + row as usize) * k + i] };
    let exact = |value: f32| Some(Near { value: value.into(), bound: 0.0 });
    let rows = index.iter().flat_map(|&row| (0..k).map(move |i| exact(value(row, i))));
    let expected: Vec<_> = std::iter::repeat_n(None, y_row * k).chain(rows).collect();
    y.check(gpu, &expected)?;
    Ok(y.read(gpu)?[y_row * k..][..index.len() * k].to_vec())
}

#[test]
fn gather_rows_takes_rows_and_brings_them_back() {
    let cases = (1usize..40, 1usize..90, [0usize..3, 0..3], seed());
    for_all(12, cases, |gpu, &(rows, k4, firsts, seed)| {
        let (k, mut random) = (4 * k4, Random(seed));
        let mut index = random.shuffled(rows);
        index.truncate(1 + random.below(rows));
        let x = random.vec((firsts[0] + rows) * k, 1.0);
        let gathered = check(gpu, &x, k, &index, firsts)?;
        let scattered = check(gpu, &gathered, k, &inverse(&index, rows)?, [0, firsts[1]])?;
        for (row, (after, before)) in
            scattered.chunks(k).zip(x[firsts[0] * k..].chunks(k)).enumerate()
        {
            let named = index.contains(&(row as u32));
            assert!(
                if named { after == before } else { after.iter().all(|v| *v == 0.0) },
                "row {row}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_index_without_an_inverse_is_refused() {
    assert_eq!(inverse(&[2, NONE, 0], 4).unwrap(), [2, NONE, 0, NONE]);
    assert!(inverse(&[1, 1], 4).unwrap_err().to_string().contains("twice"));
    assert!(inverse(&[4], 4).unwrap_err().to_string().contains("row 4 of 4"));
}
