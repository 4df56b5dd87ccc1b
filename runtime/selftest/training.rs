//! What training adds: gradients of the small kernels, the loss, the optimisers. Attention's are in
//! `attention_train`.

use super::cases::{
    Case, Near, Outcome, Random, UNTOUCHED, case, poisoned, rms_scale, silu, subgroups, submit,
};
use crate::base::layout::Activation;
use crate::error::Result;
use crate::gpu::{Caps, Gpu};
use crate::kernels::adamw::{self, AdamW};
use crate::kernels::cross_entropy::{self, CrossEntropyParams};
use crate::kernels::gather_rows::{self, GatherRowsParams, NONE};
use crate::kernels::grad_norm::{self, FinalParams, PartialParams};
use crate::kernels::proximal::{self, ProximalParams};
use crate::kernels::rms_norm_backward::{self, RmsNormBackwardParams};
use crate::kernels::sgd::{self, SgdParams};
use crate::kernels::swiglu_backward::{self, SwiGluBackwardParams};

/// Two workgroups of an optimiser, the second not whole.
const WEIGHTS: usize = 1500;
const LR: f64 = 0.1;

pub(super) fn cases(caps: &Caps) -> Vec<Case> {
    let mut cases = super::attention_train::cases();
    for add in [false, true] {
        let variant = if add { "5 rows, added" } else { "5 rows" };
        cases.push(case("rms_norm_backward", variant.into(), subgroups(caps), move |gpu| {
            rms_norm(gpu, add)
        }));
    }
    cases.push(case("swiglu_backward", "5 rows".into(), vec![], swiglu));
    cases.push(case("cross_entropy", "3 rows".into(), vec![], cross_entropy));
    cases.push(case("gather_rows", "4 of 6".into(), vec![], gather));
    cases.push(case("grad_norm_final", "2 runs".into(), vec![], norm));
    for (variant, norm) in [("clipped", 4.0), ("a NaN changes nothing", f32::NAN)] {
        cases.push(case("adamw", variant.into(), vec![], move |gpu| adamw(gpu, norm)));
    }
    for momentum in [false, true] {
        let variant = if momentum { "momentum" } else { "plain" };
        cases.push(case("sgd", variant.into(), vec![], move |gpu| sgd(gpu, momentum)));
    }
    cases.push(case("proximal", "2 groups".into(), vec![], proximal));
    cases
}

fn rms_norm(gpu: &Gpu, add: bool) -> Result<Vec<Outcome>> {
    let (rows, k, eps, mut random) = (5, 100, 1e-5, Random(31));
    let (x, gain, dy, held) =
        (random.vec(rows * k), random.vec(k), random.vec(rows * k), random.vec(rows * k));
    let dx = poisoned(gpu, if add { &held } else { &[] }, rows * k)?;
    let inputs = [gpu.upload("x", &x)?, gpu.upload("gain", &gain)?, gpu.upload("dy", &dy)?];
    let spec = rms_norm_backward::spec(gpu.caps(), add);
    let op = gpu.op(&spec, &[&inputs[0], &inputs[1], &inputs[2], &dx])?;
    let params =
        RmsNormBackwardParams { rows: rows as u32, k4: k as u32 / 4, eps, ..Default::default() };
    submit(gpu, |commands| {
        rms_norm_backward::record(commands, &op, params);
        Ok(())
    })?;
    let near = |i: usize| {
        let (row, scale) = (i / k * k..(i / k + 1) * k, rms_scale(&x[i / k * k..][..k], eps));
        let g = |i: usize| f64::from(gain[i % k]) * f64::from(dy[i]);
        let pull = row.map(|i| g(i) * f64::from(x[i])).sum::<f64>() / k as f64 * scale * scale;
        let before = if add { f64::from(held[i]) } else { 0.0 };
        Near { value: before + scale * (g(i) - f64::from(x[i]) * pull), bound: 1e-5 }
    };
    Ok(vec![Outcome::read(gpu, &dx, (0..rows * k).map(near).collect())?])
}

fn swiglu(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (rows, f, mut random) = (5, 72, Random(32));
    let gu: Vec<f32> = random.vec(rows * 2 * f).iter().map(|v| 8.0 * v).collect();
    let dh = random.vec(rows * f);
    let tensor = poisoned(gpu, &gu, gu.len())?;
    let op =
        gpu.op(&swiglu_backward::spec(Activation::Silu), &[&gpu.upload("dh", &dh)?, &tensor])?;
    let params = SwiGluBackwardParams { f4: f as u32 / 4, ..Default::default() };
    submit(gpu, |commands| {
        swiglu_backward::record(commands, &op, params, rows as u32);
        Ok(())
    })?;
    let near = |at: usize| {
        let (row, i) = (at / (2 * f), at % f);
        let [gate, up] = [0, f].map(|part| f64::from(gu[row * 2 * f + part + i]));
        let sigmoid = 1.0 / (1.0 + (-gate).exp());
        let slope = if at % (2 * f) < f {
            up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        } else {
            silu(gate)
        };
        Near { value: f64::from(dh[row * f + i]) * slope, bound: 1e-4 }
    };
    Ok(vec![Outcome::read(gpu, &tensor, (0..gu.len()).map(near).collect())?])
}

fn cross_entropy(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (vocab, targets, weights) = (777, [5_u32, 776, 0], [0.25_f32, 0.5, 0.0]);
    let logits: Vec<f32> = Random(33).vec(3 * vocab).iter().map(|v| 8.0 * v).collect();
    let (tensor, losses) = (poisoned(gpu, &logits, logits.len())?, poisoned(gpu, &[], 3)?);
    let inputs = [gpu.upload("targets", &targets)?, gpu.upload("weights", &weights)?];
    let op = gpu.op(&cross_entropy::spec(), &[&inputs[0], &inputs[1], &tensor, &losses])?;
    let params =
        CrossEntropyParams { vocab: vocab as u32, stride: vocab as u32, row0: 0, loss0: 0 };
    submit(gpu, |commands| {
        cross_entropy::record(commands, &op, params, 3);
        Ok(())
    })?;
    let (mut loss, mut gradient) = (Vec::new(), Vec::new());
    for (c, row) in logits.chunks(vocab).enumerate() {
        let weight = f64::from(weights[c]);
        let lse = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        loss.push(Near {
            value: weight * (lse - f64::from(row[targets[c] as usize])),
            bound: 1e-5,
        });
        gradient.extend(row.iter().enumerate().map(|(v, x)| {
            let hit = f64::from(u8::from(v == targets[c] as usize));
            Near { value: weight * ((f64::from(*x) - lse).exp() - hit), bound: 1e-6 }
        }));
    }
    Ok(vec![Outcome::read(gpu, &losses, loss)?, Outcome::read(gpu, &tensor, gradient)?])
}

fn gather(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let (k, index) = (36, [5, NONE, 0, 3]);
    let x = Random(34).vec(6 * k);
    let y = poisoned(gpu, &[], index.len() * k)?;
    let op =
        gpu.op(&gather_rows::spec(), &[&gpu.upload("index", &index)?, &gpu.upload("x", &x)?, &y])?;
    let params = GatherRowsParams { k4: k as u32 / 4, ..Default::default() };
    submit(gpu, |commands| {
        gather_rows::record(commands, &op, params, index.len() as u32);
        Ok(())
    })?;
    let value = |row: u32, i: usize| {
        x.get((row as usize).saturating_mul(k).saturating_add(i)).copied().unwrap_or(0.0)
    };
    let rows = index.iter().flat_map(|&row| (0..k).map(move |i| value(row, i)));
    Ok(vec![Outcome::read(gpu, &y, rows.map(|v| Near { value: v.into(), bound: 0.0 }).collect())?])
}

fn norm(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let grads = Random(35).vec(grad_norm::RUN as usize + 100);
    let count = grad_norm::partials(grads.len() as u32);
    let (partials, out) = (poisoned(gpu, &[], count as usize)?, poisoned(gpu, &[], 1)?);
    let first = gpu.op(&grad_norm::partial_spec(), &[&gpu.upload("grads", &grads)?, &partials])?;
    let last = gpu.op(&grad_norm::final_spec(), &[&partials, &out])?;
    submit(gpu, |commands| {
        let len = grads.len() as u32;
        grad_norm::record_partial(commands, &first, PartialParams { len, ..Default::default() });
        grad_norm::record_final(commands, &last, FinalParams { count, ..Default::default() });
        Ok(())
    })?;
    let value = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    Ok(vec![Outcome::read(gpu, &out, vec![Near { value, bound: 1e-5 * value }])?])
}

/// Gradients clipped from 4 to 1, at step 3; all is kept where the norm is NaN.
fn adamw(gpu: &Gpu, norm: f32) -> Result<Vec<Outcome>> {
    let mut random = Random(36);
    let [grads, weights, m, v] = [(); 4].map(|()| random.vec(WEIGHTS));
    let v: Vec<f32> = v.iter().map(|v| v.abs() + 0.125).collect();
    let held = [&grads, &weights, &m, &v];
    let [g_out, w_out, m_out, v_out] = held.map(|held| poisoned(gpu, held, WEIGHTS));
    let (g_out, w_out, m_out, v_out) = (g_out?, w_out?, m_out?, v_out?);
    let op =
        gpu.op(&adamw::spec(), &[&gpu.upload("norm", &[norm])?, &g_out, &w_out, &m_out, &v_out])?;
    let rule = AdamW::default();
    submit(gpu, |commands| {
        adamw::record(commands, &op, &rule.params(0..WEIGHTS as u32, LR, 3, 1.0));
        Ok(())
    })?;
    let after = |i: usize| {
        let [g, w, m, v] = held.map(|held| f64::from(held[i]));
        if norm.is_nan() {
            return [w, m, v];
        }
        let g = g * (1.0 / (4.0 + 1e-6));
        let (m, v) =
            (rule.beta1 * m + (1.0 - rule.beta1) * g, rule.beta2 * v + (1.0 - rule.beta2) * g * g);
        let (m_hat, v_hat) = (m / (1.0 - rule.beta1.powi(3)), v / (1.0 - rule.beta2.powi(3)));
        [w - LR * rule.weight_decay * w - LR * m_hat / (v_hat.sqrt() + rule.eps), m, v]
    };
    let all: Vec<_> = (0..WEIGHTS).map(after).collect();
    let want =
        |part: usize| all.iter().map(|values| Near { value: values[part], bound: 1e-6 }).collect();
    let zeros = vec![Near { value: 0.0, bound: 0.0 }; WEIGHTS];
    let outcomes = [(&g_out, zeros), (&w_out, want(0)), (&m_out, want(1)), (&v_out, want(2))];
    outcomes.into_iter().map(|(out, want)| Outcome::read(gpu, out, want)).collect()
}

/// Gradients clipped from 4 to 1.
fn sgd(gpu: &Gpu, momentum: bool) -> Result<Vec<Outcome>> {
    let mut random = Random(37);
    let [grads, weights, buffer] = [(); 3].map(|()| random.vec(WEIGHTS));
    let (g_out, w_out) = (poisoned(gpu, &grads, WEIGHTS)?, poisoned(gpu, &weights, WEIGHTS)?);
    let b_out = poisoned(gpu, if momentum { &buffer } else { &[] }, WEIGHTS)?;
    let op =
        gpu.op(&sgd::spec(momentum), &[&gpu.upload("norm", &[4_f32])?, &g_out, &w_out, &b_out])?;
    let (len, lr, kept, weight_decay) = (WEIGHTS as u32, LR as f32, 0.875, 0.25);
    let params =
        SgdParams { len, max_norm: 1.0, lr, momentum: kept, weight_decay, ..Default::default() };
    submit(gpu, |commands| {
        sgd::record(commands, &op, &params);
        Ok(())
    })?;
    let step = |i: usize| {
        let before = if momentum { f64::from(kept) * f64::from(buffer[i]) } else { 0.0 };
        f64::from(grads[i]) / (4.0 + 1e-6)
            + f64::from(weight_decay) * f64::from(weights[i])
            + before
    };
    let near = |value: f64| Near { value, bound: 1e-6 };
    let zeros = vec![near(0.0); WEIGHTS];
    let stepped = (0..WEIGHTS).map(|i| near(f64::from(weights[i]) - LR * step(i))).collect();
    let kept = (0..WEIGHTS).map(|i| if momentum { near(step(i)) } else { UNTOUCHED }).collect();
    let outcomes = [(&g_out, zeros), (&w_out, stepped), (&b_out, kept)];
    outcomes.into_iter().map(|(out, want)| Outcome::read(gpu, out, want)).collect()
}

fn proximal(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let mut random = Random(38);
    let [grads, weights, start] = [(); 3].map(|()| random.vec(WEIGHTS));
    let g_out = poisoned(gpu, &grads, WEIGHTS)?;
    let inputs = [gpu.upload("weights", &weights)?, gpu.upload("start", &start)?];
    let op = gpu.op(&proximal::spec(), &[&inputs[0], &inputs[1], &g_out])?;
    submit(gpu, |commands| {
        proximal::record(commands, &op, &ProximalParams { len: WEIGHTS as u32, mu: 0.5 });
        Ok(())
    })?;
    let near = |i: usize| {
        let pull = 0.5 * (f64::from(weights[i]) - f64::from(start[i]));
        Near { value: f64::from(grads[i]) + pull, bound: 1e-6 }
    };
    Ok(vec![Outcome::read(gpu, &g_out, (0..WEIGHTS).map(near).collect())?])
}
