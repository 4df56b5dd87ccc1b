//! `x[t] = W[token_ids[t]]`.

use epiphyte::DType;
use epiphyte::kernels::embedding::{EmbeddingParams, record, spec};

use super::oracle::EPS;
use super::weights::{Weights, row_unit};
use super::{Near, Output, Random, for_all, seed, submit};

/// A table in two chunks of rows; both are looked up, one after the other, into the same x.
fn looks_up(dtype: DType) {
    let cases = (1usize..40, 1usize..40, 0usize..5, 1usize..9, seed());
    for_all(3, cases, |gpu, &(first, second, odd, tokens, seed)| {
        let mut random = Random(seed);
        let w =
            Weights::random(dtype, first + second, row_unit(dtype) * (2 * odd + 1), &mut random);
        let token_ids: Vec<u32> = (0..tokens).map(|_| random.below(w.n) as u32).collect();
        let ids = gpu.upload("token_ids", &token_ids)?;
        let x = Output::poisoned(gpu, tokens * w.k)?;
        for rows in [0..first, first..w.n] {
            let (words, scales) = w.upload(gpu, rows.clone())?;
            let op = gpu.op(&spec(dtype), &[&ids, &words, &scales, &x.tensor])?;
            let (row0, rows) = (rows.start as u32, rows.len() as u32);
            let params = EmbeddingParams { k_blocks: (w.k / 32) as u32, row0, rows, scale: 1.0 };
            submit(gpu, |commands| record(commands, &op, params, tokens as u32))?;
        }
        // d q is exact: 11 bits of d, at most 13 of scale and quant. With a minimum the sum is
        // rounded, once on either side; so is the product with a level of 24 bits.
        let is_rounded = matches!(
            dtype,
            DType::Q4_1
                | DType::Q5_1
                | DType::Q4_K
                | DType::Q5_K
                | DType::Q2_1
                | DType::Q2_K
                | DType::NF4
                | DType::NF4_DQ
        );
        let expected: Vec<_> = token_ids
            .iter()
            .flat_map(|&id| &w.values[id as usize * w.k..][..w.k])
            .map(|&v| {
                Some(Near {
                    value: v.into(),
                    bound: if is_rounded { EPS * f64::from(v.abs()) } else { 0.0 },
                })
            })
            .collect();
        x.check(gpu, &expected)
    });
}

#[test]
fn embedding_looks_up_rows_of_every_format() {
    DType::ALL.into_iter().for_each(looks_up);
}

#[test]
fn embedding_leaves_rows_of_other_chunks_alone() {
    for_all(4, (1usize..9, seed()), |gpu, &(tokens, seed)| {
        let w = Weights::random(DType::Q4_0, 4, 32, &mut Random(seed));
        let ids =
            gpu.upload("token_ids", &(0..tokens as u32).map(|i| i % 4).collect::<Vec<_>>())?;
        let (words, scales) = w.upload(gpu, 1..3)?;
        let x = Output::poisoned(gpu, tokens * 32)?;
        let op = gpu.op(&spec(w.dtype), &[&ids, &words, &scales, &x.tensor])?;
        let params = EmbeddingParams { k_blocks: 1, row0: 1, rows: 2, scale: 1.0 };
        submit(gpu, |commands| record(commands, &op, params, tokens as u32))?;
        let expected: Vec<_> = (0..tokens * 32)
            .map(|i| (i / 32 % 4, i % 32))
            .map(|(id, k)| {
                (id == 1 || id == 2)
                    .then(|| Near { value: w.values[id * 32 + k].into(), bound: 0.0 })
            })
            .collect();
        x.check(gpu, &expected)
    });
}
