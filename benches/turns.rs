//! How long a second session waits while a first one reads a long prompt: `cargo bench --bench
//! turns`. `EPIPHYTE_TEST_MODEL` names another file. Prompts are made-up tokens, which take as long
//! as any.
#![allow(clippy::print_stdout, reason = "a benchmark says what it measured on, or why not")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use epiphyte::{
    CancelToken, Engine, EngineOptions, Error, GenerateOptions, GpuOptions, Result, Session,
};

use common::{MODEL_FILE, model_path};

/// Tokens of the second session's prompts; the last one waits for the first step of the answer.
const PROMPTS: [usize; 4] = [2, 17, 65, 257];

struct Bench {
    engine: Arc<Engine>,
    /// Prompts so far: none begins as another.
    seen: u32,
}

impl Bench {
    /// A session with a prompt that nobody has read.
    fn session(&mut self, tokens: usize) -> Result<Session> {
        self.seen += 1;
        let vocab = self.engine.base().config.vocab_size as u32;
        let first = self.seen.wrapping_mul(0x9E37_79B9);
        let id = |i: u32| first.wrapping_add(i.wrapping_mul(7919)) % vocab;
        let ids: Vec<u32> = (0..tokens as u32).map(id).collect();
        let mut session = self.engine.session();
        session.push_tokens(&ids)?;
        Ok(session)
    }

    /// Milliseconds to each of `count` first tokens, sorted.
    fn first_tokens(&mut self, prompt: usize, count: u32) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for i in 0..count {
            // At any moment of the other's pass.
            std::thread::sleep(Duration::from_millis(u64::from(i * 13 % 31)));
            let mut session = self.session(prompt)?;
            let options = GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
            let start = Instant::now();
            session.generate(options)?.next().transpose()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    /// Milliseconds to fork a session and drop the fork, `count` times, sorted.
    fn forks(&mut self, count: u32) -> Result<Vec<f64>> {
        let mut session = self.session(65)?;
        session.prefill(&CancelToken::default())?;
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            drop(session.fork());
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

fn print(what: &str, times: &[f64]) {
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let [median, p99, most] = [0.5, 0.99, 1.0].map(at);
    println!("{what:<45}{median:>9.2} ms median {p99:>9.2} ms p99 {most:>9.2} ms at most");
}

fn measure(bench: &mut Bench, beside: &str, count: u32) -> Result<()> {
    print(&format!("fork and drop, {beside}"), &bench.forks(count)?);
    for prompt in PROMPTS {
        let times = bench.first_tokens(prompt, count)?;
        print(&format!("first token after {prompt}, {beside}"), &times);
    }
    Ok(())
}

fn main() -> Result<()> {
    let Some(path) = model_path() else {
        println!("skipped: {MODEL_FILE} is not there; run `make model`");
        return Ok(());
    };
    println!("{}", path.display());
    let options = EngineOptions { gpu: GpuOptions::from_env()?, ..EngineOptions::default() };
    let engine = Engine::open(path, options)?;
    let software = engine.gpu().caps().software;
    let (long, count) = if software { (512, 3) } else { (4096, 100) };
    let long = long.min(engine.context());
    println!("{}, beside prompts of {long}", engine.gpu().description());
    let mut bench = Bench { engine: Arc::clone(&engine), seen: 0 };
    // The first ones compile.
    for prompt in PROMPTS {
        bench.first_tokens(prompt, 1)?;
    }
    measure(&mut bench, "alone", count)?;
    let (cancel, read) = (CancelToken::default(), AtomicBool::new(false));
    let mut reader = Bench { engine, seen: 1 << 20 };
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut tokens, start) = (0, Instant::now());
            loop {
                let mut session = reader.session(long)?;
                read.store(true, Ordering::Relaxed);
                match session.prefill(&cancel) {
                    Ok(()) => tokens += long,
                    Err(Error::Cancelled) => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(tokens as f64 / start.elapsed().as_secs_f64())
        });
        while !read.load(Ordering::Relaxed) && !reading.is_finished() {
            std::thread::yield_now();
        }
        let measured = measure(&mut bench, "beside another's prompt", count);
        cancel.cancel();
        let rate = reading.join().expect("the reader's thread ends")?;
        println!("the other reads {rate:.0} tokens/s meanwhile");
        measured
    })
}
