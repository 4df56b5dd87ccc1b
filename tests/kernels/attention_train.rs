//! `softmax(q kᵀ scale) v` over the earlier rows of each row's own sequence, and its log-sum-exp.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::attention_train::{AttentionTrainParams, record, spec};
use proptest::prelude::*;

use super::oracle::{DIV, EPS, exp_error, gamma, log_error, to_f64};
use super::{Checked, Near, Output, Random, for_all, packed, seed, submit};

/// A micro-batch and its heads.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// First row and end of each row's sequence.
    pub(super) rows: Vec<[u32; 2]>,
    pub(super) row0: usize,
    /// Positions that a row sees; 0 for all.
    pub(super) window: usize,
    /// Size of q: the larger, the more the softmax is one position's.
    pub(super) sharp: f32,
    pub(super) seed: u64,
}

/// Lengths around the edges of tiles, packed in any order.
pub(super) fn cases() -> impl Strategy<Value = Case> {
    let len = prop_oneof![
        proptest::sample::select(vec![1usize, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65]),
        1usize..40
    ];
    let lens = prop_oneof![
        proptest::collection::vec(len.clone(), 1..3),
        proptest::collection::vec(1usize..9, 2..8),
        len.prop_map(|len| vec![len]),
    ];
    let group = proptest::sample::select(vec![1usize, 2, 3]);
    let head_dim = proptest::sample::select(vec![64usize, 80, 96, 128, 256]);
    let sharp = prop_oneof![Just(0.1f32), Just(3.0), Just(30.0)];
    let window = proptest::sample::select(vec![0usize, 0, 1, 7, 32, 40]);
    (1usize..3, group, head_dim, lens, 0usize..3, window, sharp, seed()).prop_map(
        |(kv_heads, group, head_dim, lens, row0, window, sharp, seed)| Case {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            rows: packed(&lens),
            row0,
            window,
            sharp,
            seed,
        },
    )
}

impl Case {
    /// Heads in a row of `qkv`.
    pub(super) fn all(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    pub(super) fn params(&self) -> AttentionTrainParams {
        AttentionTrainParams {
            rows: self.rows.len() as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            row0: self.row0 as u32,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window as u32,
        }
    }

    /// `[row0 + T, (H + 2 G) E]`; q of the size `sharp`, k and v of 1.
    pub(super) fn qkv(&self, random: &mut Random) -> Vec<f32> {
        let mut qkv = random.vec((self.row0 + self.rows.len()) * self.all() * self.head_dim, 1.0);
        for row in qkv.chunks_mut(self.all() * self.head_dim) {
            row[..self.heads * self.head_dim].iter_mut().for_each(|q| *q *= self.sharp);
        }
        qkv
    }

    /// Where q, k and v of row t (not counting `row0`) lie in `qkv`, for a query head.
    pub(super) fn q_k_v(&self, t: usize, head: usize) -> [usize; 3] {
        let kv_head = head / (self.heads / self.kv_heads);
        let heads = [head, self.heads + kv_head, self.heads + self.kv_heads + kv_head];
        heads.map(|head| (t * self.all() + head) * self.head_dim)
    }

    /// The rows that row t sees.
    pub(super) fn seen(&self, t: usize) -> std::ops::RangeInclusive<usize> {
        let window = if self.window == 0 { usize::MAX } else { self.window };
        (self.rows[t][0] as usize).max((t + 1).saturating_sub(window))..=t
    }

    /// `out [T, H, E]` and `lse [T, H]` of `qkv` without rows before.
    pub(super) fn oracle(&self, qkv: &[f64]) -> [Vec<f64>; 2] {
        let (e, scale) = (self.head_dim, f64::from(self.params().scale));
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for (t, head) in
            (0..self.rows.len()).flat_map(|t| (0..self.heads).map(move |head| (t, head)))
        {
            let q = &qkv[self.q_k_v(t, head)[0]..][..e];
            let scores =
                self.seen(t).map(|j| scale * dot(q, &qkv[self.q_k_v(j, head)[1]..][..e]).0);
            let scores: Vec<f64> = scores.collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
            let column = |i: usize| {
                let terms = self
                    .seen(t)
                    .zip(&scores)
                    .map(|(j, s)| (s - log_sum).exp() * qkv[self.q_k_v(j, head)[2] + i]);
                terms.sum::<f64>()
            };
            out.extend((0..e).map(column));
            lse.push(log_sum);
        }
        [out, lse]
    }

    /// Bounds on what the kernel makes of `out` and `lse`.
    fn bounds(&self, qkv: &[f64], lse: &[f64]) -> [Vec<f64>; 2] {
        let (e, scale) = (self.head_dim, f64::from(self.params().scale));
        let (mut out_bounds, mut lse_bounds) = (Vec::new(), Vec::new());
        for (t, head) in
            (0..self.rows.len()).flat_map(|t| (0..self.heads).map(move |head| (t, head)))
        {
            let (q, lse) = (&qkv[self.q_k_v(t, head)[0]..][..e], lse[t * self.heads + head]);
            let dots: Vec<_> =
                self.seen(t).map(|j| dot(q, &qkv[self.q_k_v(j, head)[1]..][..e])).collect();
            let (least, top) =
                dots.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, top), d| {
                    (least.min(d.0 * scale), top.max(d.0 * scale))
                });
            // A score: 4 roundings in a vec4's dot, E / 4 additions, the scale.
            let score_error =
                scale * gamma(5 + e / 4) * dots.iter().map(|d| d.1).fold(0.0, f64::max);
            let fall = top - least + 2.0 * score_error;
            // Tiles that the row's tile walks over: from the first row of its first row's sequence.
            let tiles = (t + 32 - self.rows[t / 32 * 32][0] as usize).div_ceil(32) + 1;
            // A weight: e^(score - top), then for each tile a factor e^(top - larger top); its
            // steps sum to <= fall.
            let weight_error = score_error
                + exp_error(fall)
                + EPS * fall
                + (4.0 * tiles as f64 + 3.0 * fall) * EPS;
            // Each lane adds two weights a tile, then come 16 lanes; `out` adds up to 32 products a
            // tile.
            let sum_error = weight_error + gamma(2 * tiles + 16);
            let error = sum_error + weight_error + gamma(32 * tiles + 1) + DIV;
            let column = |i: usize| {
                let v = |j: usize| qkv[self.q_k_v(j, head)[2] + i].abs();
                let sum: f64 = dots
                    .iter()
                    .zip(self.seen(t))
                    .map(|(d, j)| (d.0 * scale - lse).exp() * v(j))
                    .sum();
                1.01 * error * sum + 1e-35
            };
            out_bounds.extend((0..e).map(column));
            let log = lse - top;
            lse_bounds
                .push(1.01 * (score_error + sum_error + log_error(log.exp()) + EPS * lse.abs()));
        }
        [out_bounds, lse_bounds]
    }
}

/// The product and the sum of its terms' magnitudes.
pub(super) fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    a.iter().zip(b).map(|(a, b)| a * b).fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
}

fn check(gpu: &Gpu, case: &Case) -> Checked {
    let qkv = case.qkv(&mut Random(case.seed));
    let saved = case.row0 + case.rows.len();
    let out = Output::poisoned(gpu, saved * case.heads * case.head_dim)?;
    let lse = Output::poisoned(gpu, saved * case.heads)?;
    let inputs = [gpu.upload("rows", &case.rows)?, gpu.upload("qkv", &qkv)?];
    let op =
        gpu.op(&spec(case.head_dim as u32), &[&inputs[0], &inputs[1], &out.tensor, &lse.tensor])?;
    submit(gpu, |commands| record(commands, &op, &case.params()))?;
    let qkv = to_f64(&qkv[case.row0 * case.all() * case.head_dim..]);
    let values = case.oracle(&qkv);
    let bounds = case.bounds(&qkv, &values[1]);
    for ((output, before), (values, bounds)) in
        [(&out, case.heads * case.head_dim), (&lse, case.heads)]
            .into_iter()
            .zip(values.iter().zip(&bounds))
    {
        let near = values.iter().zip(bounds).map(|(&value, &bound)| Some(Near { value, bound }));
        let expected: Vec<_> = std::iter::repeat_n(None, case.row0 * before).chain(near).collect();
        output.check(gpu, &expected)?;
    }
    Ok(())
}

#[test]
fn attention_of_packed_sequences_is_the_formula() {
    for_all(12, cases(), check);
}
