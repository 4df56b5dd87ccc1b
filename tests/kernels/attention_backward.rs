//! The gradient of attention by q, k and v, in its three kernels.

use epiphyte::gpu::Gpu;
use epiphyte::kernels::attention_backward::{
    delta_spec, dkv_spec, dq_spec, record_delta, record_dkv, record_dq,
};

use super::attention_train::{Case, cases, dot};
use super::oracle::{EPS, check_gradient, exp_error, gamma, to_f64};
use super::{Checked, Near, Output, Random, for_all, packed, submit};

/// `delta[t, h] = Σ_e d_out out`, with the sum of the magnitudes.
fn delta(case: &Case, out: &[f64], d_out: &[f64]) -> Vec<(f64, f64)> {
    out.chunks(case.head_dim).zip(d_out.chunks(case.head_dim)).map(|(o, d)| dot(o, d)).collect()
}

/// `d_qkv [T, (H + 2 G), E]` by the formulas of Dao 2023, section 2.2, and how far off the kernels
/// may be.
fn oracle(case: &Case, qkv: &[f64], lse: &[f64], d_out: &[f64], delta: &[f64]) -> Vec<Near> {
    let (e, scale) = (case.head_dim, f64::from(case.params().scale));
    let mut d_qkv = vec![Near { value: 0.0, bound: 0.0 }; case.rows.len() * case.all() * e];
    // Sizes of the sums' terms: their roundings, one after the other.
    let mut sizes = vec![0.0; d_qkv.len()];
    for (t, head) in (0..case.rows.len()).flat_map(|t| (0..case.heads).map(move |head| (t, head))) {
        let at = t * case.heads + head;
        let d = &d_out[at * e..][..e];
        for j in case.seen(t) {
            let ([q_at, ..], [_, k_at, v_at]) = (case.q_k_v(t, head), case.q_k_v(j, head));
            let (score, score_size) = dot(&qkv[q_at..][..e], &qkv[k_at..][..e]);
            let (dp, dp_size) = dot(d, &qkv[v_at..][..e]);
            let p = (score * scale - lse[at]).exp();
            // A dot: 4 roundings in a vec4's, E / 4 additions. A score is scaled, lse taken off;
            // then exp.
            let exponent_error =
                scale * gamma(5 + e / 4) * score_size + EPS * (score * scale - lse[at]).abs();
            let p_error = exponent_error + exp_error(score * scale - lse[at]);
            let ds = p * (dp - delta[at]) * scale;
            let ds_bound =
                ds.abs() * (p_error + 3.0 * EPS) + p * scale * gamma(4 + e / 4) * dp_size;
            let mut add = |at: usize, value: f64, bound: f64| {
                (d_qkv[at].value, d_qkv[at].bound) =
                    (d_qkv[at].value + value, d_qkv[at].bound + bound);
                sizes[at] += value.abs();
            };
            for i in 0..e {
                add(q_at + i, ds * qkv[k_at + i], ds_bound * qkv[k_at + i].abs());
                add(k_at + i, ds * qkv[q_at + i], ds_bound * qkv[q_at + i].abs());
                add(v_at + i, p * d[i], p * p_error * d[i].abs());
            }
        }
    }
    // A product and the additions before and after: at most every row of every head in the group,
    // in whole tiles.
    let additions = gamma(1 + (case.rows.len() + 62) * case.heads / case.kv_heads);
    for (near, size) in d_qkv.iter_mut().zip(sizes) {
        near.bound = 1.01 * (near.bound + additions * size) + 1e-35;
    }
    d_qkv
}

fn check(gpu: &Gpu, case: &Case) -> Checked {
    let mut random = Random(case.seed);
    let (e, heads, rows) = (case.head_dim, case.heads, case.rows.len());
    let qkv = case.qkv(&mut random);
    let d_out = random.vec(rows * heads * e, 1.0);
    let [out, lse] = case.oracle(&to_f64(&qkv[case.row0 * case.all() * e..])).map(|values| {
        let before = case.row0 * values.len() / rows;
        std::iter::repeat_n(f64::NAN, before).chain(values).map(|v| v as f32).collect::<Vec<_>>()
    });
    let delta_out = Output::poisoned(gpu, rows * heads)?;
    let d_qkv = Output::poisoned(gpu, rows * case.all() * e)?;
    let [rows_in, qkv_in] = [gpu.upload("rows", &case.rows)?, gpu.upload("qkv", &qkv)?];
    let [out_in, lse_in, d_in] =
        [gpu.upload("out", &out)?, gpu.upload("lse", &lse)?, gpu.upload("d_out", &d_out)?];
    let delta_op = gpu.op(&delta_spec(e as u32), &[&out_in, &d_in, &delta_out.tensor])?;
    let tensors = [&rows_in, &qkv_in, &lse_in, &d_in, &delta_out.tensor, &d_qkv.tensor];
    let (dq, dkv) = (gpu.op(&dq_spec(e as u32), &tensors)?, gpu.op(&dkv_spec(e as u32), &tensors)?);
    submit(gpu, |commands| {
        record_delta(commands, &delta_op, &case.params());
        record_dq(commands, &dq, &case.params());
        record_dkv(commands, &dkv, &case.params());
    })?;
    let saved = |values: &[f32]| to_f64(&values[case.row0 * values.len() / (case.row0 + rows)..]);
    let d_out = to_f64(&d_out);
    // A dot of E: 4 roundings in a vec4's, E / 4 additions.
    let near =
        |(value, size): (f64, f64)| Some(Near { value, bound: gamma(4 + e / 4) * size + 1e-35 });
    delta_out
        .check(gpu, &delta(case, &saved(&out), &d_out).into_iter().map(near).collect::<Vec<_>>())?;
    // What the other two were given is what they are judged by.
    let given = to_f64(&gpu.read::<f32>(&delta_out.tensor, 0, rows * heads)?);
    let expected = oracle(case, &saved(&qkv), &saved(&lse), &d_out, &given);
    d_qkv.check(gpu, &expected.into_iter().map(Some).collect::<Vec<_>>())
}

#[test]
fn attention_backward_is_the_gradient() {
    for_all(12, cases(), check);
}

#[test]
fn the_oracle_is_the_gradient() {
    let rows = packed(&[3, 1, 4]);
    let case =
        Case { heads: 4, kv_heads: 2, head_dim: 4, rows, row0: 0, window: 2, sharp: 2.0, seed: 3 };
    let mut random = Random(case.seed);
    let qkv = to_f64(&case.qkv(&mut random));
    let d_out = to_f64(&random.vec(case.rows.len() * case.heads * case.head_dim, 1.0));
    let [out, lse] = case.oracle(&qkv);
    let deltas: Vec<f64> = delta(&case, &out, &d_out).into_iter().map(|(sum, _)| sum).collect();
    let gradient: Vec<f64> =
        oracle(&case, &qkv, &lse, &d_out, &deltas).into_iter().map(|near| near.value).collect();
    check_gradient(|qkv| dot(&case.oracle(qkv)[0], &d_out).0, &qkv, &gradient);
}
