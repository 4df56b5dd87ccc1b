//! Logits to tokens: penalties, thresholds, the draw, and what follows from it.

use epiphyte::gpu::{Commands, Gpu, Tensor};
use epiphyte::kernels::sample::{self, Sampler};
use proptest::prelude::*;

use super::oracle::{DIV, EPS, exp_error, gamma, log_error};
use super::{Checked, GUARD, Near, Output, Random, for_all, seed, submit};

const OFF: Sampler = Sampler {
    temperature: 0.0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    top_k: 0,
    seed_lo: 0,
    seed_hi: 0,
    bias_start: 0,
    bias_count: 0,
};

/// One call of the sampler: a row of logits for each of `samplers`.
struct Batch<'a> {
    vocab: usize,
    samplers: &'a [Sampler],
    logits: &'a [f32],
    /// Page table and position.
    rows: &'a [[u32; 2]],
}

/// What the kernels left.
#[derive(Debug, PartialEq)]
struct Drawn {
    token_ids: Vec<u32>,
    rows: Vec<[u32; 2]>,
    seen: Vec<u32>,
    ring: Vec<u32>,
    thresholds: Vec<f32>,
}

/// Tokens seen before, and the ring's earlier contents.
const SEEN: u32 = 0x8000_0001;
const UNUSED: u32 = 0xdead_beef;
const RING_OFFSET: usize = 3;
/// Words of a row.
const TALLIES: usize = sample::TALLIES as usize;
const TALLIED: usize = sample::TALLIED_ROWS as usize;

impl Batch<'_> {
    fn draw(&self, gpu: &Gpu) -> Checked<Drawn> {
        let (vocab, m) = (self.vocab as u32, self.samplers.len());
        let (runs, seen_len) =
            (vocab.div_ceil(sample::RUN) as usize, sample::seen_words(vocab) as usize * m);
        let samplers = gpu.upload("samplers", self.samplers)?;
        let rows = gpu.upload("rows", self.rows)?;
        let logits = gpu.upload("logits", self.logits)?;
        let thresholds = gpu.upload("thresholds", &vec![f32::NAN; m])?;
        let partials = gpu.upload("partials", &vec![UNUSED; 2 * runs * m])?;
        let token_ids = gpu.upload("token_ids", &vec![UNUSED; m + GUARD])?;
        let seen = gpu.upload("seen", &vec![SEEN; seen_len + GUARD])?;
        let ring = gpu.upload("ring", &vec![UNUSED; RING_OFFSET + m + GUARD])?;
        // Of the three tallies the first, and the largest key.
        let is_empty = |i: usize| i % TALLIES < TALLIES / 3 || i % TALLIES == TALLIES - 1;
        let poison = |i| if is_empty(i) { 0 } else { UNUSED };
        let tallies =
            gpu.upload("tallies", &(0..TALLIES * TALLIED).map(poison).collect::<Vec<u32>>())?;
        let found = gpu.upload("found", &vec![UNUSED; sample::FOUND as usize * TALLIED])?;
        let limit = gpu
            .op(&sample::threshold_spec(), &[&samplers, &logits, &tallies, &found, &thresholds])?;
        let partial =
            gpu.op(&sample::partial_spec(), &[&samplers, &rows, &logits, &thresholds, &partials])?;
        let choose =
            gpu.op(&sample::final_spec(), &[&partials, &token_ids, &rows, &seen, &ring])?;
        submit(gpu, |commands: &mut Commands<'_>| {
            sample::record_threshold(commands, &limit, vocab, m as u32);
            sample::record_partial(commands, &partial, vocab, m as u32);
            sample::record_final(commands, &choose, vocab, m as u32, RING_OFFSET as u32);
        })?;
        let words = |tensor: &Tensor, len: usize| gpu.read::<u32>(tensor, 0, len);
        let left = words(&tallies, TALLIES * TALLIED)?;
        if (0..left.len()).any(|i| is_empty(i) && left[i] != 0) {
            return Err("the next token's tally is not empty".into());
        }
        Ok(Drawn {
            token_ids: words(&token_ids, m + GUARD)?,
            rows: gpu.read(&rows, 0, m)?,
            seen: words(&seen, seen_len + GUARD)?,
            ring: words(&ring, RING_OFFSET + m + GUARD)?,
            thresholds: gpu.read(&thresholds, 0, m)?,
        })
    }

    /// The value and token of each row's best; for one run of the vocabulary.
    fn best(&self, gpu: &Gpu) -> Checked<Vec<(f32, u32)>> {
        let m = self.samplers.len();
        let inputs = [gpu.upload("samplers", self.samplers)?, gpu.upload("rows", self.rows)?];
        let inputs = [
            &inputs[0],
            &inputs[1],
            &gpu.upload("logits", self.logits)?,
            &gpu.storage("thresholds", 4 * m as u64)?,
        ];
        let partials = gpu.upload("partials", &vec![UNUSED; 2 * m])?;
        let op = gpu.op(
            &sample::partial_spec(),
            &[inputs[0], inputs[1], inputs[2], inputs[3], &partials],
        )?;
        submit(gpu, |commands| sample::record_partial(commands, &op, self.vocab as u32, m as u32))?;
        let partials: Vec<[u32; 2]> = gpu.read(&partials, 0, m)?;
        Ok(partials.iter().map(|[value, token]| (f32::from_bits(*value), *token)).collect())
    }

    fn row(&self, m: usize) -> &[f32] {
        &self.logits[m * self.vocab..][..self.vocab]
    }
}

/// What must follow from the tokens `next`.
fn after(batch: &Batch<'_>, next: &[u32], thresholds: Vec<f32>) -> Drawn {
    let guarded = |mut words: Vec<u32>, fill| {
        words.resize(words.len() + GUARD, fill);
        words
    };
    let width = batch.vocab.div_ceil(32);
    let mut seen = vec![SEEN; width * next.len()];
    for (m, &token) in next.iter().enumerate() {
        seen[m * width + token as usize / 32] |= 1 << (token % 32);
    }
    let mut ring = vec![UNUSED; RING_OFFSET];
    ring.extend(next);
    Drawn {
        token_ids: guarded(next.to_vec(), UNUSED),
        rows: batch.rows.iter().map(|[table, position]| [*table, position + 1]).collect(),
        seen: guarded(seen, SEEN),
        ring: guarded(ring, UNUSED),
        thresholds,
    }
}

fn same(got: &Drawn, want: &Drawn) -> Checked {
    // Debug, since thresholds that were not computed are NaN.
    let equal = format!("{got:?}") == format!("{want:?}");
    if equal { Ok(()) } else { Err(format!("got {got:?}, not {want:?}").into()) }
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    for_all(
        12,
        (1usize..5000, 1usize..5, 1usize..40, seed()),
        |gpu, &(vocab, rows, values, seed)| {
            let mut random = Random(seed);
            // Few values, so that the largest comes often; among them what a grammar may shut out.
            let palette: Vec<f32> =
                random.vec(values, 20.0).into_iter().chain([f32::NEG_INFINITY]).collect();
            let logits: Vec<f32> =
                (0..vocab * rows).map(|_| palette[random.below(values + 1)]).collect();
            let rows: Vec<[u32; 2]> = (0..rows as u32).map(|m| [m, 7 * m]).collect();
            let batch =
                Batch { vocab, samplers: &vec![OFF; rows.len()], logits: &logits, rows: &rows };
            let best = |m| {
                // The first of the largest: only a larger one takes its place.
                let largest = |best: usize, v: usize| {
                    if batch.row(m)[v] > batch.row(m)[best] { v } else { best }
                };
                (0..vocab).fold(0, largest) as u32
            };
            let next: Vec<u32> = (0..rows.len()).map(best).collect();
            same(&batch.draw(gpu)?, &after(&batch, &next, vec![f32::NAN; rows.len()]))
        },
    );
}

/// PCG4D (Jarzynski & Olano 2020), its last word.
fn pcg4d(seed: [u32; 4]) -> u32 {
    let [mut x, mut y, mut z, mut w] =
        seed.map(|v| v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    for round in 0..2 {
        x = x.wrapping_add(y.wrapping_mul(w));
        y = y.wrapping_add(z.wrapping_mul(x));
        z = z.wrapping_add(x.wrapping_mul(y));
        w = w.wrapping_add(y.wrapping_mul(z));
        if round == 0 {
            [x, y, z, w] = [x, y, z, w].map(|v| v ^ (v >> 16));
        }
    }
    w
}

/// `-log(-log(1 - u))`, u from 32 bits, and how far off it may be in f32.
fn gumbel(bits: u32) -> Near {
    let u = (f64::from(bits) + 0.5) / 2f64.powi(32);
    // The conversion and the addition of a half.
    let u_error = 2.0 * EPS * u;
    let e = -(-u).ln_1p();
    let e_error = if u < 0.03 {
        // The series: 5 nested terms, each a few roundings on ever smaller parts, and what is cut
        // off, below u^5 / 6.
        (6.0 * EPS + u.powi(5) / 6.0) * e + u_error
    } else {
        log_error(1.0 - u) + (u_error + EPS * (1.0 - u)) / ((1.0 - u) - u_error).max(2f64.powi(-25))
    };
    // u is kept below 1 - 2^-24, so that E stays below 17.
    let value = -e.min(24.0 * 2f64.ln()).ln();
    let moved = e_error / (e - e_error).max(0.5 * e);
    Near { value, bound: 1.01 * moved + log_error(e) }
}

/// Value of each token before the largest is taken.
fn noisy(logits: &[f32], s: &Sampler, position: u32) -> Vec<Near> {
    let near = |(v, logit): (u32, &f32)| {
        let scaled = f64::from(*logit) / f64::from(s.temperature);
        let noise = gumbel(pcg4d([s.seed_lo, s.seed_hi, position, v]));
        let value = scaled + noise.value;
        Near { value, bound: noise.bound + DIV * scaled.abs() + EPS * value.abs() }
    };
    (0u32..).zip(logits).map(near).collect()
}

#[test]
fn a_draw_takes_the_largest_with_gumbel_noise() {
    let temperature = prop_oneof![Just(0.1f32), Just(0.8), Just(3.0)];
    for_all(
        12,
        (1usize..4000, 1usize..5, temperature, seed()),
        |gpu, &(vocab, rows, temperature, seed)| {
            let mut random = Random(seed);
            let logits = random.vec(vocab * rows, 6.0);
            let samplers: Vec<Sampler> = (0..rows)
                .map(|_| Sampler {
                    temperature,
                    seed_lo: random.bits() as u32,
                    seed_hi: random.bits() as u32,
                    ..OFF
                })
                .collect();
            let rows: Vec<[u32; 2]> =
                (0..rows as u32).map(|m| [m, random.below(1 << 17) as u32]).collect();
            let batch = Batch { vocab, samplers: &samplers, logits: &logits, rows: &rows };
            let drawn = batch.draw(gpu)?;
            for (m, sampler) in samplers.iter().enumerate() {
                let values = noisy(batch.row(m), sampler, rows[m][1]);
                let got = values[drawn.token_ids[m] as usize];
                if let Some(better) =
                    values.iter().position(|v| v.value - v.bound > got.value + got.bound)
                {
                    return Err(format!(
                        "row {m} drew {} ({got:?}), not {better} ({:?})",
                        drawn.token_ids[m], values[better]
                    )
                    .into());
                }
            }
            same(
                &drawn,
                &after(&batch, &drawn.token_ids[..rows.len()], vec![f32::NAN; rows.len()]),
            )?;
            same(&batch.draw(gpu)?, &drawn)?;
            // The last row alone draws what it drew among others.
            let m = rows.len() - 1;
            let alone =
                Batch { vocab, samplers: &samplers[m..], logits: batch.row(m), rows: &rows[m..] };
            let token = alone.draw(gpu)?.token_ids[0];
            if token == drawn.token_ids[m] {
                Ok(())
            } else {
                Err(format!("alone, row {m} drew {token}").into())
            }
        },
    );
}

#[test]
fn noise_is_gumbels_over_its_whole_range() {
    for_all(4, seed(), |gpu, seed| {
        let sampler = Sampler {
            temperature: 1.0,
            seed_lo: *seed as u32,
            seed_hi: (seed >> 32) as u32,
            ..OFF
        };
        let rows: Vec<[u32; 2]> = (0..2000).map(|position| [0, position]).collect();
        // One token: what is best is its noise, large or small.
        let batch =
            Batch { vocab: 1, samplers: &vec![sampler; 2000], logits: &[0.0; 2000], rows: &rows };
        for ((value, token), [_, position]) in batch.best(gpu)?.into_iter().zip(&rows) {
            let near = noisy(&[0.0], &sampler, *position)[0];
            if token != 0 || !near.holds(value) {
                return Err(
                    format!("position {position}: {value} of token {token}, not {near:?}").into()
                );
            }
        }
        Ok(())
    });
}

/// χ² of the tokens that one seed draws at the first `draws` positions, against their
/// probabilities.
fn chi_square(
    gpu: &Gpu,
    logits: &[f32],
    sampler: Sampler,
    allowed: usize,
    draws: usize,
) -> Checked<f64> {
    let rows: Vec<[u32; 2]> = (0..draws as u32).map(|position| [0, position]).collect();
    let (vocab, mut counts) = (logits.len(), vec![0.0; logits.len()]);
    for rows in rows.chunks(512) {
        let all = logits.repeat(rows.len());
        let samplers = vec![sampler; rows.len()];
        let batch = Batch { vocab, samplers: &samplers, logits: &all, rows };
        let drawn = batch.draw(gpu)?;
        drawn.token_ids[..rows.len()].iter().for_each(|token| counts[*token as usize] += 1.0);
    }
    // Logits fall, so that the first `allowed` are the likeliest.
    let weights: Vec<f64> =
        logits[..allowed].iter().map(|l| f64::from(l / sampler.temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    if counts[allowed..].iter().any(|count| *count > 0.0) {
        return Err(format!("a token was drawn that is shut out: {counts:?}").into());
    }
    Ok(weights
        .iter()
        .zip(counts)
        .map(|(w, n)| (n - draws as f64 * w / sum).powi(2) / (draws as f64 * w / sum))
        .sum())
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [1.0f32, 0.7, 0.4, 0.0, -0.3, -0.8, -1.5, -2.0];
    // χ² of 7 degrees of freedom is above 29.9 once in 10⁴; the seed is fixed, so it is the same
    // draw every time.
    for_all(1, Just(()), |gpu, ()| {
        // Thresholds take long on a software GPU: fewer draws with them.
        for (temperature, top_k, allowed, draws) in
            [(0.7, 0, 8, 4096), (2.0, 0, 8, 4096), (1.0, 3, 3, 500)]
        {
            let sampler = Sampler { temperature, top_k, seed_lo: 42, ..OFF };
            let chi = chi_square(gpu, &logits, sampler, allowed, draws)?;
            if chi > 29.9 {
                return Err(
                    format!("χ² is {chi} at temperature {temperature}, top-k {top_k}").into()
                );
            }
        }
        Ok(())
    });
}

/// Where a threshold may lie, by sorting: `Err` says why `got` is not one.
fn check_threshold(logits: &[f32], s: &Sampler, got: f32) -> Checked {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (top, t) = (f64::from(sorted[0]), f64::from(s.temperature));
    let k = if s.top_k == 0 { sorted.len() } else { sorted.len().min(s.top_k as usize) };
    // Without top-k nothing is shut out by it.
    let kept = if k < sorted.len() { sorted[k - 1] } else { f32::NEG_INFINITY };
    let fall = |v: f32| (f64::from(v) - top) / t;
    let mass = |keep: &dyn Fn(f32) -> bool| {
        logits.iter().filter(|v| keep(**v)).map(|v| fall(*v).exp()).sum::<f64>()
    };
    let wanted = f64::from(s.top_p) * mass(&|v| v >= kept);
    // Of every weight e^((v - top) / T): the difference, the division, exp, and its rounding to a
    // multiple of 2^-31, half of which it may be off, and in f32 another. Sums are exact; top-p's
    // part of them is rounded four times.
    let weight = |v: f32| (exp_error(fall(v)) + (EPS + DIV) * fall(v).abs() + EPS) * fall(v).exp();
    let total: f64 = mass(&|_| true);
    let margin = 1.01
        * (2.0 * logits.iter().map(|v| weight(*v)).sum::<f64>()
            + 2.0 * logits.len() as f64 * 2f64.powi(-31)
            + 4.0 * EPS * total);
    let by_mass = s.top_p < 1.0;
    let too_high = by_mass && mass(&|v| v >= got) < wanted - margin;
    let too_low =
        if by_mass { mass(&|v| v > got) > wanted + margin || got < kept } else { got < kept };
    // min-p: the log, the product with T, the sum with top; an infinite log when it is off.
    let floor = if s.min_p > 0.0 { top + t * f64::from(s.min_p).ln() } else { f64::NEG_INFINITY };
    let floor_error = if s.min_p > 0.0 {
        t * log_error(s.min_p.into()) + EPS * ((top - floor).abs() + floor.abs())
    } else {
        0.0
    };
    let at_floor = (f64::from(got) - floor).abs() <= floor_error;
    let unlimited = kept == f32::NEG_INFINITY && !by_mass && s.min_p == 0.0;
    let wrong = if unlimited {
        // What is minus infinity was shut out before.
        logits.iter().any(|v| v.is_finite() && *v < got).then_some("something is shut out")
    } else if f64::from(got) < floor - floor_error {
        Some("below min-p")
    } else if too_low {
        Some("too much is let through")
    } else if got > sorted[0] {
        Some("the likeliest is shut out")
    } else if !at_floor && too_high {
        Some("too little is let through")
    } else if !at_floor && !by_mass && got > kept {
        Some("top-k's last is shut out")
    } else {
        None
    };
    wrong.map_or(Ok(()), |wrong| {
        Err(format!("threshold {got}: {wrong}; top-k's last is {kept}, min-p's {floor}").into())
    })
}

fn restricted() -> impl Strategy<Value = Sampler> {
    let top_k = prop_oneof![Just(0u32), Just(1), Just(2), 1u32..60, Just(10_000)];
    let top_p = prop_oneof![Just(1.0f32), Just(0.0), Just(0.95), Just(0.999_999_94), 0.0f32..1.0];
    let min_p = prop_oneof![Just(0.0f32), Just(1.0), Just(0.05), 0.0f32..1.0];
    (prop_oneof![Just(0.05f32), Just(0.8), Just(5.0)], top_k, top_p, min_p).prop_map(
        |(temperature, top_k, top_p, min_p)| Sampler { temperature, top_k, top_p, min_p, ..OFF },
    )
}

#[test]
fn thresholds_let_through_what_sorting_does() {
    // More than are tallied at a time.
    let samplers = proptest::collection::vec(restricted(), TALLIED + 3);
    for_all(
        10,
        (samplers, 1usize..2500, 1usize..3000, seed()),
        |gpu, (samplers, vocab, values, seed)| {
            let mut random = Random(*seed);
            // Fewer values than tokens give ties; some tokens are shut out beforehand.
            let palette: Vec<f32> =
                random.vec(*values, 8.0).into_iter().chain([f32::NEG_INFINITY]).collect();
            let mut logits: Vec<f32> =
                (0..vocab * samplers.len()).map(|_| palette[random.below(values + 1)]).collect();
            logits.chunks_mut(*vocab).for_each(|row| row[row.len() / 2] = palette[0]);
            let rows = vec![[0, 5]; samplers.len()];
            let batch = Batch { vocab: *vocab, samplers, logits: &logits, rows: &rows };
            let drawn = batch.draw(gpu)?;
            for (m, sampler) in samplers.iter().enumerate().filter(|(_, s)| s.is_restricted()) {
                let threshold = drawn.thresholds[m];
                check_threshold(batch.row(m), sampler, threshold)
                    .map_err(|e| format!("row {m}: {e}"))?;
                let token = drawn.token_ids[m];
                if batch.row(m)[token as usize] < threshold {
                    return Err(format!("row {m} drew {token}, which is shut out").into());
                }
            }
            Ok(())
        },
    );
}

#[test]
fn penalty_and_biases_change_their_tokens_alone() {
    let cases = (1usize..700, proptest::collection::vec((0.5f32..2.0, 0usize..6), 1..4), seed());
    for_all(12, cases, |gpu, (vocab, settings, seed)| {
        let (mut random, vocab) = (Random(*seed), *vocab);
        let (mut samplers, mut biases) = (Vec::new(), Vec::new());
        for &(repetition_penalty, bias_count) in settings {
            let (bias_start, bias_count) = (biases.len() as u32, bias_count as u32);
            samplers.push(Sampler { repetition_penalty, bias_start, bias_count, ..OFF });
            biases.extend(
                (0..bias_count).map(|_| [random.below(vocab) as u32, random.signed(5.0).to_bits()]),
            );
        }
        let width = sample::seen_words(vocab as u32) as usize;
        let seen: Vec<u32> =
            (0..width * samplers.len()).map(|_| (random.bits() & random.bits()) as u32).collect();
        let logits = Output::holding(gpu, random.vec(vocab * samplers.len(), 10.0), false)?;
        let inputs = [
            gpu.upload("samplers", &samplers)?,
            gpu.upload("seen", &seen)?,
            gpu.upload("biases", &biases)?,
        ];
        let op =
            gpu.op(&sample::adjust_spec(), &[&inputs[0], &inputs[1], &inputs[2], &logits.tensor])?;
        submit(gpu, |commands| {
            sample::record_adjust(commands, &op, vocab as u32, samplers.len() as u32)
        })?;
        let near = |at: usize| {
            let (m, v) = (at / vocab, at % vocab);
            let (s, logit) = (&samplers[m], f64::from(logits.before[at]));
            let is_seen = seen[m * width + v / 32] >> (v % 32) & 1 == 1;
            let penalty = f64::from(s.repetition_penalty);
            let penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
            let own = biases[s.bias_start as usize..][..s.bias_count as usize]
                .iter()
                .filter(|b| b[0] == v as u32);
            let added: Vec<f64> = own.map(|b| f64::from(f32::from_bits(b[1]))).collect();
            let value = if is_seen { penalised } else { logit } + added.iter().sum::<f64>();
            let size = penalised.abs() + added.iter().map(|b| b.abs()).sum::<f64>();
            // The division or product, then an addition a bias.
            (is_seen || !added.is_empty())
                .then(|| Near { value, bound: DIV * size + gamma(added.len()) * size })
        };
        logits.check(gpu, &(0..vocab * samplers.len()).map(near).collect::<Vec<_>>())
    });
}
