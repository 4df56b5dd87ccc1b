//! Training, and how long a token takes that is asked for meanwhile: `cargo bench --bench train`.
//! `EPIPHYTE_TEST_MODEL` names another file. Rows are made-up tokens, which take as long as any.
#![allow(clippy::print_stdout, reason = "a benchmark says what it measured on, or why not")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use epiphyte::train::data::{Dataset, Example};
use epiphyte::train::schedule::{Decay, Warmup};
use epiphyte::train::{TrainOptions, Trainer, data};
use epiphyte::{Engine, EngineOptions, Error, GenerateOptions, GpuOptions, Result};

use common::{MODEL_FILE, model_path};

const RANK: usize = 16;
const ROWS: u32 = 64;
/// Steps that are not timed: the first one compiles.
const WARM_UP: usize = 2;

/// How much is measured.
struct Size {
    seq_len: usize,
    steps: usize,
    asked: u32,
    prompt: usize,
}

/// `len` tokens, others for every `row`.
fn tokens(engine: &Engine, row: u32, len: usize) -> Vec<u32> {
    let (first, vocab) = (row.wrapping_mul(0x9E37_79B9), engine.base().config.vocab_size as u32);
    (0..len as u32).map(|i| first.wrapping_add(i.wrapping_mul(7919)) % vocab).collect()
}

fn trainer(engine: &Arc<Engine>, size: &Size, checkpoint_every: Option<usize>) -> Result<Trainer> {
    let weights: Vec<f32> = (0..size.seq_len).map(|i| if i == 0 { 0.0 } else { 1.0 }).collect();
    let row = |row| Example { ids: tokens(engine, row, size.seq_len), weights: weights.clone() };
    let options = TrainOptions {
        rank: RANK,
        decay: Decay::Constant,
        warmup: Warmup::Steps(0),
        duration: data::TrainLength::Steps(u64::MAX),
        seq_len: size.seq_len,
        checkpoint_every,
        ..TrainOptions::default()
    };
    Trainer::new(engine, Arc::new(Dataset::of((0..ROWS).map(row))), options, None)
}

/// Milliseconds of each of `count` tokens, each the first after `prompt` tokens that no session has
/// seen.
fn ask(engine: &Arc<Engine>, prompt: usize, count: u32, seen: &mut u32) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for i in 0..count {
        // At any moment of a step.
        std::thread::sleep(Duration::from_millis(u64::from(i * 13 % 31)));
        *seen += 1;
        let mut session = engine.session();
        session.push_tokens(&tokens(engine, ROWS + *seen, prompt))?;
        let start = Instant::now();
        let options = GenerateOptions { max_tokens: 1, ignore_eos: true, ..Default::default() };
        session.generate(options)?.try_for_each(|token| token.map(drop))?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() as f64 * part).ceil() as usize).max(1) - 1]
}

/// Asks while a trainer steps; gives its tokens a second meanwhile, too.
fn ask_beside(
    mut trainer: Trainer,
    prompt: usize,
    count: u32,
    seen: &mut u32,
) -> Result<(Vec<f64>, f64)> {
    let (engine, cancel, started) =
        (Arc::clone(trainer.engine()), trainer.cancel.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let training = scope.spawn(|| {
            let (mut tokens, mut seconds) = (0, 0.0);
            loop {
                match trainer.step() {
                    Ok(Some(record)) => {
                        (tokens, seconds) = (tokens + record.tokens, seconds + record.seconds)
                    }
                    Ok(None) | Err(Error::Cancelled) => return Ok(tokens as f64 / seconds),
                    Err(error) => return Err(error),
                }
                started.store(true, Ordering::Relaxed);
            }
        });
        while !started.load(Ordering::Relaxed) && !training.is_finished() {
            std::thread::yield_now();
        }
        let times = ask(&engine, prompt, count, seen);
        cancel.cancel();
        Ok((times?, training.join().expect("the trainer's thread ends")?))
    })
}

fn main() -> Result<()> {
    let Some(path) = model_path() else {
        println!("skipped: {MODEL_FILE} is not there; run `make model`");
        return Ok(());
    };
    println!("{}", path.display());
    let engine =
        Engine::open(path, EngineOptions { gpu: GpuOptions::from_env()?, ..Default::default() })?;
    let most = engine.base().config.max_position_embeddings;
    let size = match engine.gpu().caps().software {
        false => Size { seq_len: most.min(512), steps: 20, asked: 200, prompt: 64 },
        true => Size { seq_len: most.min(32), steps: 2, asked: 3, prompt: 8 },
    };
    println!(
        "{}, rank {RANK} on every linear, rows of {}",
        engine.gpu().description(),
        size.seq_len
    );
    for (name, every) in [("kept", None), ("computed again", Some(1))] {
        let mut trainer = trainer(&engine, &size, every)?;
        let mut rates = Vec::new();
        for _ in 0..WARM_UP + size.steps {
            rates.extend(trainer.step()?.map(|record| record.tokens as f64 / record.seconds));
        }
        rates.drain(..WARM_UP);
        rates.sort_by(f64::total_cmp);
        println!("activations {name:<20}{:>10.0} tokens/s", percentile(&rates, 0.5));
    }
    let mut seen = 0;
    // The last token of a prompt waits for the first step of the answer.
    for prompt in [1, 1 + size.prompt] {
        ask(&engine, prompt, 1, &mut seen)?;
        let alone = ask(&engine, prompt, size.asked, &mut seen)?;
        let (beside, rate) =
            ask_beside(trainer(&engine, &size, Some(1))?, prompt, size.asked, &mut seen)?;
        for (name, times) in [("alone", &alone), ("beside training", &beside)] {
            let [median, p99] = [0.5, 0.99].map(|part| percentile(times, part));
            println!(
                "a token after {prompt:>2}, {name:<15}{median:>10.2} ms median, {p99:.2} ms p99"
            );
        }
        let longest = percentile(&beside, 1.0) - percentile(&alone, 0.5);
        println!("  waits {longest:.2} ms at most, the run makes {rate:.0} tokens/s meanwhile");
    }
    Ok(())
}
