//! Importance matrices of our own: what goes into each column of a model's matrices over a text,
//! and how much the loss depends on each matrix.
//!
//! In: a model and a text. Out: a file as `llama-imatrix` writes it, which
//! [`crate::quantize::Imatrix`] reads.

mod slopes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::base::ModulePath;
use crate::engine::{CancelToken, Engine, Squares};
use crate::error::{Error, Result};
use crate::quantize::{Imatrix, ImatrixEntry, ImatrixText};
use crate::tokenizer::EncodeOptions;
use slopes::Slopes;

/// How to measure.
#[derive(Clone, Debug)]
pub struct ImportanceOptions {
    /// Tokens of a window; a text is cut into such, of which each stands alone.
    pub window: usize,
    /// Windows, at most; `None` for all.
    pub chunks: Option<usize>,
    /// Measure how much the loss depends on each matrix, too, by gradients over the beginning of
    /// each window. A budget of bits is spent by it.
    pub slopes: bool,
    /// Ends it between two windows.
    pub cancel: CancelToken,
}

impl Default for ImportanceOptions {
    /// As llama.cpp: windows of 512 tokens.
    fn default() -> Self {
        Self { window: 512, chunks: None, slopes: true, cancel: CancelToken::default() }
    }
}

/// What was measured.
pub struct Importance {
    engine: Arc<Engine>,
    squares: Squares,
    /// Of each linear; empty where they were not asked for.
    slopes: BTreeMap<ModulePath, f64>,
    window: usize,
    chunks: usize,
}

/// Runs `text` through the model, a window after the other, and adds up the squares of what goes
/// into the linears of the layers, and the squares of their gradients. `progress` hears of windows
/// done and in all.
///
/// Errors: [`Error::InvalidArgument`] for a window of no tokens, and for a text that does not fill
/// one; [`Error::Cancelled`]; as [`crate::Session::prefill`]
/// and [`Trainer::new`](crate::train::Trainer::new).
pub fn importance(
    engine: &Arc<Engine>,
    text: &str,
    options: &ImportanceOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Importance> {
    let ImportanceOptions { window, chunks, cancel, .. } = options;
    let invalid = |name, reason: String| Err(Error::InvalidArgument { name, reason });
    if *window == 0 {
        return invalid("window", "a window has 1 token or more".into());
    }
    let tokenizer = &engine.base().tokenizer;
    let ids = tokenizer.encode(text, EncodeOptions::default())?;
    let all = (ids.len() / window).min(chunks.unwrap_or(usize::MAX));
    if all == 0 {
        let n = ids.len();
        let reason = format!("{n} tokens do not fill a window of {window}; give a longer one");
        return invalid("text", reason);
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut squares = Squares::new(&engine.base().adapter_shape());
    let mut slopes =
        (options.slopes && *window > 1).then(|| Slopes::new(engine, *window)).transpose()?;
    progress(0, all);
    for (done, ids) in ids.chunks_exact(*window).take(all).enumerate() {
        let mut ids = ids.to_vec();
        if let Some(bos) = bos {
            ids[0] = bos;
        }
        let mut session = engine.session();
        session.push_tokens(&ids)?;
        squares.append(&session.input_squares(cancel)?);
        cancel.check()?;
        slopes.as_mut().map(|slopes| slopes.add(&ids)).transpose()?;
        progress(done + 1, all);
    }
    let slopes = slopes.map(|slopes| slopes.means()).unwrap_or_default();
    Ok(Importance { engine: Arc::clone(engine), squares, slopes, window: *window, chunks: all })
}

impl Importance {
    /// Windows that were measured.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Tokens that were measured.
    pub fn tokens(&self) -> u64 {
        self.squares.tokens
    }

    /// Matrices of which it tells.
    pub fn n_matrices(&self) -> usize {
        self.squares.by_module().count()
    }

    /// Writes it in GGUF, as of a text called `dataset`. Complete or not there at all; a file that
    /// is there is replaced.
    ///
    /// Errors: [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>, dataset: &str) -> Result<()> {
        let base = self.engine.base();
        let slope = |module: ModulePath| self.slopes.get(&module).copied();
        let entry = |(module, sums)| ImatrixEntry { module, sums, slope: slope(module) };
        let entries: Vec<_> = self.squares.by_module().map(entry).collect();
        let text = ImatrixText {
            dataset,
            window: self.window,
            chunks: self.chunks,
            tokens: self.squares.tokens,
        };
        Imatrix::write(path.as_ref(), base.config.family().gguf, &entries, &text)
    }
}
