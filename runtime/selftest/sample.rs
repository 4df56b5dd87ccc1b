//! Logits to tokens: penalty and biases, thresholds, the draw.

use super::cases::{Case, GUARD, Near, Outcome, Random, case, poisoned, submit};
use crate::error::Result;
use crate::gpu::{Gpu, Tensor};
use crate::kernels::sample::{self, Sampler};
use crate::kernels::sample_mask;

/// More than one run, and not whole ones.
const VOCAB: usize = 1500;
const POSITION: u32 = 41;
const UNUSED: u32 = 0xdead_beef;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("sample_adjust", "penalty and bias".into(), vec![], adjust),
        case("sample_mask", "two rows".into(), vec![], mask),
        case("sample_threshold", "top-k".into(), vec![], |gpu| {
            threshold(gpu, Sampler { top_k: 7, ..drawn() })
        }),
        case("sample_threshold", "top-p".into(), vec![], |gpu| {
            threshold(gpu, Sampler { top_p: 0.5, ..drawn() })
        }),
        case("sample_final", "greedy".into(), vec![], |gpu| {
            draw(gpu, Sampler { temperature: 0.0, ..drawn() })
        }),
        case("sample_final", "drawn".into(), vec![], |gpu| draw(gpu, drawn())),
    ]
}

/// Nothing shut out, at temperature 1.
fn drawn() -> Sampler {
    let (temperature, top_p, repetition_penalty) = (1.0, 1.0, 1.0);
    Sampler { temperature, top_p, repetition_penalty, seed_lo: 5, seed_hi: 6, ..Sampler::default() }
}

/// A row of logits in [-8, 8), each its own.
fn logits() -> Vec<f32> {
    let mut random = Random(21);
    (0..VOCAB).map(|v| 8.0 * random.signed() + v as f32 * 1e-6).collect()
}

fn adjust(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let logits = logits();
    let seen: Vec<u32> =
        (0..sample::seen_words(VOCAB as u32)).map(|i| 0x8000_0101_u32.rotate_left(i)).collect();
    let sampler = Sampler { repetition_penalty: 1.5, bias_count: 2, ..drawn() };
    let biases = [[9, 2.5_f32.to_bits()], [1499, (-3_f32).to_bits()]];
    let out = poisoned(gpu, &logits, VOCAB)?;
    let inputs = [
        gpu.upload("samplers", &[sampler])?,
        gpu.upload("seen", &seen)?,
        gpu.upload("biases", &biases)?,
    ];
    let op = gpu.op(&sample::adjust_spec(), &[&inputs[0], &inputs[1], &inputs[2], &out])?;
    submit(gpu, |commands| {
        sample::record_adjust(commands, &op, VOCAB as u32, 1);
        Ok(())
    })?;
    let near = |(v, logit): (usize, &f32)| {
        let logit = f64::from(*logit);
        let penalised = if logit > 0.0 { logit / 1.5 } else { logit * 1.5 };
        let value = if seen[v / 32] >> (v % 32) & 1 == 1 { penalised } else { logit };
        let bias: f64 = biases
            .iter()
            .filter(|b| b[0] as usize == v)
            .map(|b| f64::from(f32::from_bits(b[1])))
            .sum();
        Near { value: value + bias, bound: 1e-5 }
    };
    Ok(vec![Outcome::read(gpu, &out, logits.iter().enumerate().map(near).collect())?])
}

fn mask(gpu: &Gpu) -> Result<Vec<Outcome>> {
    let logits = [logits(), logits()].concat();
    let words = sample_mask::mask_words(VOCAB as u32) as usize;
    let masks: Vec<u32> = (0..2 * words as u32).map(|i| 0x0f0f_1234_u32.rotate_left(i)).collect();
    let out = poisoned(gpu, &logits, logits.len())?;
    let op = gpu.op(&sample_mask::spec(), &[&gpu.upload("masks", &masks)?, &out])?;
    submit(gpu, |commands| {
        sample_mask::record(commands, &op, VOCAB as u32, 2);
        Ok(())
    })?;
    let near = |(at, logit): (usize, &f32)| {
        let (m, v) = (at / VOCAB, at % VOCAB);
        let may = masks[m * words + v / 32] >> (v % 32) & 1 == 1;
        Near {
            value: if may { f64::from(*logit) } else { -1e36 },
            bound: if may { 0.0 } else { 1e30 },
        }
    };
    Ok(vec![Outcome::read(gpu, &out, logits.iter().enumerate().map(near).collect())?])
}

fn threshold(gpu: &Gpu, sampler: Sampler) -> Result<Vec<Outcome>> {
    let logits = logits();
    let thresholds = poisoned(gpu, &[], 1)?;
    let inputs = [gpu.upload("samplers", &[sampler])?, gpu.upload("logits", &logits)?];
    let words =
        |name, len: u32| gpu.upload(name, &vec![0_u32; (len * sample::TALLIED_ROWS) as usize]);
    let (tallies, found) = (words("tallies", sample::TALLIES)?, words("found", sample::FOUND)?);
    let tensors = [&inputs[0], &inputs[1], &tallies, &found, &thresholds];
    let op = gpu.op(&sample::threshold_spec(), &tensors)?;
    submit(gpu, |commands| {
        sample::record_threshold(commands, &op, VOCAB as u32, 1);
        Ok(())
    })?;
    let mut sorted = logits;
    sorted.sort_by(|a, b| b.total_cmp(a));
    // The logit at which as many tokens, or as much mass, are in.
    let share = |logit: &f32| f64::from(*logit).exp();
    let all: f64 = sorted.iter().map(share).sum();
    let mut mass = 0.0;
    let is_last = |(count, logit): &(usize, &f32)| {
        mass += share(logit);
        if sampler.top_k > 0 {
            count + 1 == sampler.top_k as usize
        } else {
            mass >= f64::from(sampler.top_p) * all
        }
    };
    let value =
        sorted.iter().enumerate().find(is_last).map_or(f64::NAN, |(_, logit)| f64::from(*logit));
    Ok(vec![Outcome::read(gpu, &thresholds, vec![Near { value, bound: 1e-3 }])?])
}

fn draw(gpu: &Gpu, sampler: Sampler) -> Result<Vec<Outcome>> {
    let logits = logits();
    let seen_words = sample::seen_words(VOCAB as u32) as usize;
    let words = |label: &str, len: usize| gpu.upload(label, &vec![UNUSED; len + GUARD]);
    let runs = VOCAB.div_ceil(sample::RUN as usize);
    let (partials, token_ids, ring) =
        (words("partials", 2 * runs)?, words("token_ids", 1)?, words("ring", 4)?);
    let (rows, seen) = (
        gpu.upload("rows", &[[0, POSITION], [UNUSED; 2]])?,
        gpu.upload("seen", &vec![0_u32; seen_words])?,
    );
    let inputs = [
        gpu.upload("samplers", &[sampler])?,
        gpu.upload("logits", &logits)?,
        poisoned(gpu, &[], 1)?,
    ];
    let partial =
        gpu.op(&sample::partial_spec(), &[&inputs[0], &rows, &inputs[1], &inputs[2], &partials])?;
    let last = gpu.op(&sample::final_spec(), &[&partials, &token_ids, &rows, &seen, &ring])?;
    submit(gpu, |commands| {
        sample::record_partial(commands, &partial, VOCAB as u32, 1);
        sample::record_final(commands, &last, VOCAB as u32, 1, 3);
        Ok(())
    })?;
    let value = |(v, logit): (usize, &f32)| {
        let noise = if sampler.temperature > 0.0 {
            gumbel([sampler.seed_lo, sampler.seed_hi, POSITION, v as u32])
        } else {
            0.0
        };
        (v as u32, f64::from(*logit) + noise)
    };
    let best = logits.iter().enumerate().map(value).max_by(|a, b| a.1.total_cmp(&b.1));
    let token = best.map_or(0, |(token, _)| token);
    let mut bits = vec![0; seen_words];
    bits[token as usize / 32] = 1 << (token % 32);
    Ok(vec![
        exact(gpu, &token_ids, &[token])?,
        exact(gpu, &ring, &[UNUSED, UNUSED, UNUSED, token])?,
        exact(gpu, &rows, &[0, POSITION + 1])?,
        exact(gpu, &seen, &bits)?,
    ])
}

/// Words that must be these, and [`UNUSED`] after. Halves of them, which f32 holds exactly.
fn exact(gpu: &Gpu, tensor: &Tensor, want: &[u32]) -> Result<Outcome> {
    let mut want = want.to_vec();
    want.resize(tensor.bytes() as usize / 4, UNUSED);
    let halves =
        |words: &[u32]| words.iter().flat_map(|w| [w & 0xffff, w >> 16]).collect::<Vec<_>>();
    let got = halves(&gpu.read(tensor, 0, want.len())?).iter().map(|half| *half as f32).collect();
    let near = |half: &u32| Near { value: f64::from(*half), bound: 0.0 };
    Ok(Outcome { got, want: halves(&want).iter().map(near).collect() })
}

/// Gumbel noise from PCG4D (Jarzynski & Olano 2020, JCGT 9(3)), as `sample_partial` makes it.
fn gumbel(counter: [u32; 4]) -> f64 {
    let mix = |[mut x, mut y, mut z, mut w]: [u32; 4]| {
        x = x.wrapping_add(y.wrapping_mul(w));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        w = w.wrapping_add(y.wrapping_mul(z));
        [x, y, z, w]
    };
    let spread = counter.map(|v| v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let [.., bits] = mix(mix(spread).map(|v| v ^ (v >> 16)));
    let u = (f64::from(bits) + 0.5) / 2_f64.powi(32);
    -(-(-u).ln_1p()).ln()
}
