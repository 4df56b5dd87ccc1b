//! A text as one vector: the model's last hidden states, pooled.

use std::sync::Arc;

use crate::cancel::CancelToken;
use crate::classify::{Features, Pooling};
use crate::error::{Error, Result};
use crate::gpu::Tensor;

use super::pass::{Computed, Prefilled};
use super::{Engine, Session};

/// How to make a vector of a text. The default is the mean as it is.
#[derive(Clone, Debug, Default)]
pub struct EmbedOptions {
    /// Which hidden states, and at what length.
    pub features: Features,
    /// Stops it from elsewhere.
    pub cancel: CancelToken,
}

/// Hidden states, added up.
struct Pool {
    pooling: Pooling,
    sum: Vec<f64>,
    rows: usize,
}

impl Pool {
    fn new(pooling: Pooling, width: usize) -> Self {
        Self { pooling, sum: vec![0.0; width], rows: 0 }
    }

    fn add(&mut self, states: &[f32]) {
        for row in states.chunks_exact(self.sum.len()) {
            match self.pooling {
                Pooling::Mean => {
                    self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                    self.rows += 1;
                }
                Pooling::Last => {
                    self.sum.iter_mut().zip(row).for_each(|(sum, x)| *sum = f64::from(*x));
                    self.rows = 1;
                }
            }
        }
    }

    /// The vector, of states that were `scale` times too large.
    fn vector(&self, scale: f32, normalize: bool) -> Vec<f32> {
        let norm = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let divisor = if normalize { norm } else { self.rows as f64 * f64::from(scale) };
        let divisor = if divisor == 0.0 { 1.0 } else { divisor };
        self.sum.iter().map(|x| (x / divisor) as f32).collect()
    }
}

impl Session {
    /// The vector of all its tokens, of the model's `hidden_size`: its states after the last norm
    /// (transformers' `last_hidden_state`), pooled. Everything is computed anew, under the session's
    /// adapters.
    ///
    /// Errors: [`Error::InvalidArgument`] for an empty session; as [`Session::prefill`].
    pub fn embed(&mut self, options: &EmbedOptions) -> Result<Vec<f32>> {
        if self.tokens.is_empty() {
            let reason = "the session is empty; push a text first".into();
            return Err(Error::InvalidArgument { name: "session", reason });
        }
        let engine = Arc::clone(&self.engine);
        let mut kept = None;
        loop {
            let mut pool = Pool::new(options.features.pooling, engine.base.config.hidden_size);
            if engine.surviving(|| self.pool(&mut pool, &options.cancel))? == Prefilled::Whole {
                let scale = engine.base.config.traits.logit_scale;
                return Ok(pool.vector(scale, options.features.normalize));
            }
            // What had to make room is not taken a second time.
            kept.get_or_insert_with(|| engine.recoveries.enter_first());
        }
    }

    /// Adds up the states of all tokens.
    fn pool(&mut self, pool: &mut Pool, cancel: &CancelToken) -> Result<Prefilled> {
        let engine = Arc::clone(&self.engine);
        self.drop_kv();
        *pool = Pool::new(pool.pooling, pool.sum.len());
        drop(engine.executor_with(self.set)?);
        let (end, width) = (self.tokens.len(), pool.sum.len());
        self.reserve(end)?;
        let rows = super::pass_rows(engine.gpu().caps()).min(end);
        let readback = engine.gpu().readback("hidden states", (rows * width * 4) as u64)?;
        let prefilled = self.run(end, &[], cancel, |start, computed| {
            let is_last = start + computed.first + computed.count as usize == end;
            if pool.pooling == Pooling::Mean || is_last {
                pool.add(&engine.read_states(computed, &readback)?);
            }
            Ok(())
        });
        // The last token may be fed again.
        self.leave_behind(self.kv_len.saturating_sub(1));
        prefilled
    }
}

impl Engine {
    /// The states `[rows, D]` of a pass after the last norm, by way of `readback`.
    ///
    /// Errors: as [`Engine::run`].
    fn read_states(&self, computed: &Computed<'_>, readback: &Tensor) -> Result<Vec<f32>> {
        let (pass, rows) = (computed.pass(), computed.count);
        let index =
            self.run(self.executor()?, pass, std::iter::empty(), |executor, commands| {
                executor.copy_states(commands, pass.space, rows, readback);
            })?;
        let mut states = vec![0.0; rows as usize * self.base.config.hidden_size];
        self.gpu().take(readback, index, &mut states)?;
        Ok(states)
    }
}
