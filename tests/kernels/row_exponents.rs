//! The exponent of each row's largest magnitude, exactly.

use epiphyte::kernels::row_exponents::{RowExponentsParams, record, spec};

use super::{Near, Output, Random, for_all, seed, submit};

#[test]
fn row_exponents_are_those_of_the_largest() {
    let cases =
        ((1usize..9, 1usize..3000), (0usize..3, 0usize..7, 0usize..7), -130i32..120, seed());
    for_all(12, cases, |gpu, &((rows, n), (dy_row, dy_offset, rest), exponent, seed)| {
        let mut random = Random(seed);
        let stride = dy_offset + n + rest;
        // Larger outside, and from row to row.
        let mut dy = random.vec((dy_row + rows) * stride, 3e38);
        for row in 0..rows {
            let at = (dy_row + row) * stride + dy_offset;
            let values = random.vec(n, 1.0);
            let size = 2f64.powi(exponent + row as i32);
            dy[at..at + n]
                .iter_mut()
                .zip(values)
                .for_each(|(dy, v)| *dy = (f64::from(v) * size) as f32);
        }
        let exponents = Output::poisoned(gpu, rows)?;
        let op = gpu.op(&spec(), &[&gpu.upload("dy", &dy)?, &exponents.tensor])?;
        let [n, dy_row, dy_stride, dy_offset] = [n, dy_row, stride, dy_offset].map(|v| v as u32);
        let params = RowExponentsParams { n, dy_row, dy_stride, dy_offset };
        submit(gpu, |commands| record(commands, &op, params, rows as u32))?;
        let largest = |row: usize| {
            let row = &dy[(dy_row as usize + row) * stride + dy_offset as usize..][..n as usize];
            row.iter().fold(0f32, |most, v| most.max(v.abs()))
        };
        let got: Vec<u32> = exponents.read(gpu)?[..rows].iter().map(|v| v.to_bits()).collect();
        let want: Vec<u32> = (0..rows).map(|row| (largest(row).to_bits() >> 23).max(15)).collect();
        assert_eq!(got, want);
        // Nothing after them.
        exponents.check(gpu, &got.iter().map(|v| Some(exact(*v))).collect::<Vec<_>>())
    });
}

/// The bits of an integer, as the output holds them.
fn exact(bits: u32) -> Near {
    Near { value: f64::from(f32::from_bits(bits)), bound: 0.0 }
}
