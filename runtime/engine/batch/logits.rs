//! The logits of several sessions' next tokens in one pass, for whoever chooses them on the host.

use std::sync::Arc;

use super::{Batch, Sequence};
use crate::engine::executor::Space;
use crate::engine::options::GenerateOptions;
use crate::engine::pass::Pass;
use crate::engine::steps::how;
use crate::engine::{Engine, Session};
use crate::error::Result;
use crate::model::decoder::Decoder;

/// The logits `[V]` after the last token of each session, computed together. The sessions hold what
/// they held.
///
/// Errors: as [`Batch::new`] and [`Session::prefill`].
pub fn next_logits(sessions: &mut [Session]) -> Result<Vec<Vec<f32>>> {
    let options = || GenerateOptions { max_tokens: 1, ..GenerateOptions::default() };
    let sequence = |session| Sequence { session, options: options() };
    let mut batch = Batch::new(sessions.iter_mut().map(sequence).collect())?;
    let engine = Arc::clone(&batch.engine);
    engine.surviving(|| batch.logits(&engine))
}

impl Batch<'_> {
    fn logits(&mut self, engine: &Engine) -> Result<Vec<Vec<f32>>> {
        self.renew_readbacks()?;
        let (rows, vocab) = (self.lanes.len(), engine.base.config.vocab_size);
        let readback = engine.gpu().readback("logits", (rows * vocab * 4) as u64)?;
        let mut kept = None;
        let (index, how) = loop {
            self.prepare()?;
            let _claim = engine.steps.take();
            let Some(mut turn) = self.load(engine)? else {
                // What had to make room is not taken a second time.
                kept.get_or_insert_with(|| engine.recoveries.enter_first());
                continue;
            };
            let runs = &self.make_room(&mut turn)?[..rows];
            let how = how(runs);
            let pass = Pass { space: Space::Steps, runs, how, cancel: None, inputs: None };
            let parts = turn.parts().chain(Decoder::head_parts(0, rows as u32));
            let copied = engine.run(turn, &pass, parts, |executor, commands| {
                executor.copy_logits(commands, Space::Steps, rows as u32, &readback, 0);
            })?;
            break (copied, how);
        };
        let mut logits = vec![0.0; rows * vocab];
        engine.gpu().take(&readback, index, &mut logits)?;
        self.lanes.iter_mut().for_each(|lane| lane.session.computed(1, how));
        Ok(logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect())
    }
}
