//! `epiphyte bench`: prompt and decode speed, what they cost the device, and what adapters cost.

mod adapters;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters};
use super::{ModelArgs, SamplingArgs, output};
use epiphyte::GpuOptions;
use epiphyte::engine::{
    CancelToken, Change, DeviceSpeed, Engine, GenerateOptions, Sampling, Sequence, Session,
    generate_batch,
};
use epiphyte::error::{Error, Result};

/// Repeats of a measurement, of which the median counts.
const REPEATS: usize = 5;
/// Where a software GPU takes longer than this, in seconds, once must do.
const PATIENCE: f64 = 20.0;

/// Measure prompt and decode speed
#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to decode after a prompt of one token
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Sequences to decode in one batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    sequences: usize,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Make K random adapters on every linear of the layers; sequence i runs under number i mod K
    #[arg(long = "adapters", value_name = "K", conflicts_with = "adapters")]
    random_adapters: Option<usize>,
    /// Rank of the random adapters
    #[arg(long, value_name = "R", default_value_t = 16, requires = "random_adapters")]
    rank: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    device: String,
    prompt_tokens: usize,
    prompt_tps: f64,
    prompt_repeats: usize,
    decode_tokens: usize,
    sequences: usize,
    /// Of all sequences together.
    decode_tps: f64,
    decode_repeats: usize,
    bytes_per_token: f64,
    dispatches_per_token: f64,
    /// Bytes a second.
    read_bandwidth: f64,
    bandwidth_percent: f64,
    dispatch_gap_seconds: f64,
    load_seconds: f64,
    load_to_first_token_seconds: f64,
    adapters: Adapters,
    /// Null without random ones.
    random_adapters: Option<adapters::Report>,
    device_bytes: u64,
    peak_host_bytes: Option<u64>,
}

pub(super) fn run(args: &BenchArgs, gpu: GpuOptions) -> Result<()> {
    let sampling = args.sampling.sampling()?;
    check(args)?;
    let start = Instant::now();
    let engine = args.model.open(gpu)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let mut bench = Bench { engine, random: 0, sampling, sets: Vec::new(), rank: 0 };
    bench.decode(1, 1)?;
    let load_to_first_token_seconds = start.elapsed().as_secs_f64();
    let adapters = Adapters::load(&args.adapters, &bench.engine)?;
    bench.sets.extend(adapters.set());
    if let Some(count) = args.random_adapters {
        bench.make_adapters(count, args.rank)?;
    }
    let (prompt_seconds, prompt_repeats) =
        bench.median("prompt", |bench| bench.prompt(args.prompt))?;
    let before = bench.engine.device_work();
    let (decode_seconds, decode_repeats) =
        bench.median("decode", |bench| bench.decode(args.sequences, args.max_tokens))?;
    let decoded = (args.sequences * args.max_tokens) as f64;
    let (runs, after) = ((decode_repeats + 1) as f64, bench.engine.device_work());
    let [dispatches_per_token, bytes_per_token] =
        [after.dispatches - before.dispatches, after.bytes - before.bytes]
            .map(|count| count as f64 / (runs * decoded));
    let cost = |_| bench.adapters(args.sequences, args.max_tokens, decoded / decode_seconds);
    let random_adapters = args.random_adapters.map(cost).transpose()?;
    let device_bytes = bench.engine.device_bytes();
    let DeviceSpeed { read_bandwidth, dispatch_gap_seconds, .. } = bench.engine.device_speed()?;
    let report = Report {
        device: bench.engine.device(),
        prompt_tokens: args.prompt,
        prompt_tps: args.prompt as f64 / prompt_seconds,
        prompt_repeats,
        decode_tokens: args.max_tokens,
        sequences: args.sequences,
        decode_tps: decoded / decode_seconds,
        decode_repeats,
        bytes_per_token,
        dispatches_per_token,
        read_bandwidth,
        bandwidth_percent: 100.0 * bytes_per_token * decoded / decode_seconds / read_bandwidth,
        dispatch_gap_seconds,
        load_seconds,
        load_to_first_token_seconds,
        adapters,
        random_adapters,
        device_bytes,
        peak_host_bytes: output::peak_host_bytes(),
    };
    if args.json { output::json(&report) } else { print(&report) }
}

/// Errors: [`Error::InvalidArgument`], before a model is loaded in vain.
fn check(args: &BenchArgs) -> Result<()> {
    let counts = [
        ("prompt", args.prompt),
        ("max-tokens", args.max_tokens),
        ("sequences", args.sequences),
        ("adapters", args.random_adapters.unwrap_or(1)),
        ("rank", args.rank),
    ];
    match counts.into_iter().find(|(_, n)| *n == 0) {
        Some((name, _)) => Err(Error::InvalidArgument {
            name,
            reason: "0 is too few to measure; give at least 1".into(),
        }),
        None => Ok(()),
    }
}

struct Bench {
    engine: Arc<Engine>,
    random: u64,
    sampling: Sampling,
    /// Sequence i runs under number i modulo their number; none is the base alone.
    sets: Vec<Set>,
    /// Of random adapters.
    rank: usize,
}

/// Adapters with their weights.
type Set = Vec<(String, f32)>;

impl Bench {
    /// A session for sequence `index`. Tokens that no earlier prompt began with: a repeated one
    /// would be reused, not computed.
    fn session(&mut self, index: usize, tokens: usize) -> Result<Session> {
        let vocab = self.engine.base().tokenizer.vocab_size().max(1) as u64;
        let ids: Vec<u32> =
            (0..tokens).map(|_| (split_mix(&mut self.random) % vocab) as u32).collect();
        let mut session = self.engine.session();
        session.push_tokens(&ids)?;
        if !self.sets.is_empty() {
            let set = &self.sets[index % self.sets.len()];
            let adapters: Vec<(&str, f32)> =
                set.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
            session.set_adapters(&Change { adapters: &adapters, ..Change::default() })?;
        }
        Ok(session)
    }

    /// Seconds for a prompt. The last token of a session waits for the first decode step, so there
    /// is one more.
    fn prompt(&mut self, tokens: usize) -> Result<f64> {
        let mut session = self.session(0, tokens + 1)?;
        let start = Instant::now();
        session.prefill(&CancelToken::default())?;
        self.engine.wait()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn options(&self, max_tokens: usize) -> GenerateOptions {
        GenerateOptions {
            max_tokens,
            ignore_eos: true,
            sampling: self.sampling.clone(),
            // What a step takes, whatever the model says.
            prompt_lookup_num_tokens: Some(0),
            ..Default::default()
        }
    }

    /// Seconds to decode `tokens` tokens of each sequence.
    fn decode(&mut self, sequences: usize, tokens: usize) -> Result<f64> {
        let mut sessions =
            (0..sequences).map(|i| self.session(i, 1)).collect::<Result<Vec<_>>>()?;
        let options = self.options(tokens);
        let start = Instant::now();
        let batch = sessions
            .iter_mut()
            .map(|session| Sequence { session, options: options.clone() })
            .collect();
        generate_batch(batch, |_, _| ControlFlow::Continue(()))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The median of [`REPEATS`] after a warm-up, and how many there were.
    fn median(
        &mut self,
        what: &'static str,
        mut once: impl FnMut(&mut Self) -> Result<f64>,
    ) -> Result<(f64, usize)> {
        let bar =
            output::bar(REPEATS as u64 + 1, "{msg} {pos}/{len} {wide_bar}").with_message(what);
        let slow = once(self)? > PATIENCE && self.engine.is_software();
        bar.inc(1);
        let repeats = if slow { 1 } else { REPEATS };
        let mut seconds = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            seconds.push(once(self)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        seconds.sort_by(f64::total_cmp);
        Ok((seconds[repeats / 2], repeats))
    }
}

/// Steele, Lea and Flood's `SplitMix64` (2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn print(report: &Report) -> Result<()> {
    let r = report;
    let of = |n: usize| if n == 1 { "once, it is slow".into() } else { format!("median of {n}") };
    let batch = if r.sequences == 1 {
        String::new()
    } else {
        format!(", {} sequences together", r.sequences)
    };
    let percent = r.bandwidth_percent;
    output::line(&format!("device     {}", r.device))?;
    output::line(&format!(
        "prompt     {:.1} tokens/s ({} tokens, {})",
        r.prompt_tps,
        r.prompt_tokens,
        of(r.prompt_repeats)
    ))?;
    output::line(&format!(
        "decode     {:.1} tokens/s ({} tokens{batch}, {})",
        r.decode_tps,
        r.decode_tokens,
        of(r.decode_repeats)
    ))?;
    output::line(&format!(
        "a token    {} read, {:.0} dispatches",
        output::human_bytes(r.bytes_per_token as u64),
        r.dispatches_per_token
    ))?;
    output::line(&format!("bandwidth  {percent:.1} % of {:.1} GB/s", r.read_bandwidth / 1e9))?;
    output::line(&format!("dispatch   {:.1} µs each, dependent", r.dispatch_gap_seconds * 1e6))?;
    if let Some(adapters) = &r.random_adapters {
        adapters.print()?;
    }
    output::line(&format!(
        "load       {:.2} s, {:.2} s to the first token",
        r.load_seconds, r.load_to_first_token_seconds
    ))?;
    output::line(&format!("memory     {}", output::memory(r.device_bytes, r.peak_host_bytes)))
}
