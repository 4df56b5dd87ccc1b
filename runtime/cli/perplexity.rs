//! `epiphyte perplexity`: how well the model predicts a text, by llama.cpp's definition.
//!
//! The text is tokenised once and cut into windows of `c` tokens that do not overlap. In each, the
//! tokens at c/2 + 1 to c - 1 are scored from the ones before; where the file asks for a BOS it
//! replaces the window's first token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters};
use super::{ModelArgs, ModelFile, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::engine::Engine;
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::log_softmax;
use epiphyte::tokenizer::EncodeOptions;

/// Measure how well the model predicts a text
#[derive(Args)]
pub(super) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelFile,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The text, UTF-8
    #[arg(short, long)]
    file: PathBuf,
    /// Tokens of a window
    #[arg(short = 'c', long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Windows to score [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    /// Scored tokens.
    tokens: usize,
    windows: usize,
    /// Mean negative log-likelihood of each window, in nats a token.
    window_nll: Vec<f64>,
    adapters: Adapters,
    device: String,
    seconds: f64,
}

pub(super) fn run(args: &PerplexityArgs, gpu: GpuOptions) -> Result<()> {
    let too_few = |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
    if args.window < 4 {
        return too_few("window", "a window has 4 tokens or more");
    }
    if args.chunks == Some(0) {
        return too_few("chunks", "there is nothing to score in 0 windows; give at least 1");
    }
    let text = read(&args.file)?;
    let engine = ModelArgs { file: args.model.clone(), context: Some(args.window) }.open(gpu)?;
    let adapters = Adapters::load(&args.adapters, &engine)?;
    let start = Instant::now();
    let ids = engine.base().tokenizer.encode(&text, EncodeOptions::default())?;
    let windows = (ids.len() / args.window).min(args.chunks.unwrap_or(usize::MAX));
    if windows == 0 {
        let reason = format!(
            "{} tokens do not fill a window of {}; give a longer text",
            ids.len(),
            args.window
        );
        return Err(Error::InvalidFile { path: args.file.clone(), reason });
    }
    let bar =
        output::bar(windows as u64, "{pos}/{len} windows, perplexity {msg} {wide_bar} {eta} left");
    let mut window_nll = Vec::with_capacity(windows);
    let stop = interrupt::listen("");
    for window in ids.chunks_exact(args.window).take(windows) {
        // What is scored so far is a result, too.
        if stop.token.is_cancelled() && !window_nll.is_empty() {
            break;
        }
        window_nll.push(nll(&engine, &adapters, window)?);
        bar.set_message(format!("{:.4}", perplexity(&window_nll)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = Report {
        perplexity: perplexity(&window_nll),
        tokens: window_nll.len() * scores(args.window),
        windows: window_nll.len(),
        window_nll,
        adapters,
        device: engine.device(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        output::json(&report)?;
    } else {
        let Report { perplexity, tokens, windows, seconds, .. } = report;
        output::line(&format!(
            "perplexity {perplexity:.4} ({tokens} tokens scored in {windows} windows, \
            {seconds:.1} s)"
        ))?;
    }
    if stop.token.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Scores in a window.
fn scores(window: usize) -> usize {
    window - 1 - window / 2
}

/// Every window has as many scores, so the mean of their means is the mean of all.
fn perplexity(window_nll: &[f64]) -> f64 {
    (window_nll.iter().sum::<f64>() / window_nll.len() as f64).exp()
}

/// Mean negative log-likelihood of the second half of `window`.
fn nll(engine: &Arc<Engine>, adapters: &Adapters, window: &[u32]) -> Result<f64> {
    let tokenizer = &engine.base().tokenizer;
    let mut ids = window.to_vec();
    if let (Some(first), Some(bos)) =
        (ids.first_mut(), tokenizer.bos().filter(|_| tokenizer.add_bos()))
    {
        *first = bos;
    }
    let mut session = engine.session();
    adapters.apply(&mut session)?;
    // The last token is predicted, it predicts none.
    session.push_tokens(&ids[..ids.len() - 1])?;
    let mut sum = 0.0;
    session.logits(ids.len() / 2, |index, logits| sum -= log_softmax(logits, ids[index + 1]))?;
    Ok(sum / scores(ids.len()) as f64)
}

pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| Error::InvalidFile {
        path: path.into(),
        reason: format!("not UTF-8 from byte {} on; convert it", e.utf8_error().valid_up_to()),
    })
}
