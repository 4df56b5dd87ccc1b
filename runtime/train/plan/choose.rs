//! The settings of a run by the memory there is: what `plan` prints and `train` takes, from one
//! function.

use super::{Free, Site, fit};
use crate::base::ModelConfig;
use crate::engine::plan::{Serving, tally};
use crate::error::Result;
use crate::format::gguf::Gguf;
use crate::gpu::{Caps, MemoryPlan};
use crate::train::TrainOptions;
use crate::train::buffers::TrainShape;

/// Context of an engine that only trains: sessions are not what it is for.
pub const TRAIN_CONTEXT: usize = 32;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The settings; what is [`Free`] is a choice of last resort, or where there is no budget.
    pub options: TrainOptions,
    /// What the budget may decide.
    pub free: Free,
    /// Bytes on the device; `None` decides nothing.
    pub budget_bytes: Option<u64>,
    /// Positions of conversations beside the run.
    pub kv_tokens: usize,
    /// Those are kept in f32 although there is f16.
    pub kv_f32: bool,
}

/// What a run is to be.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Choice {
    /// The settings that fit. A step means what it meant in the wish.
    pub options: TrainOptions,
    /// Their sizes.
    pub shape: TrainShape,
    /// Their memory.
    pub plan: MemoryPlan,
    /// What the budget decided, for people.
    pub decided: Vec<String>,
}

/// Adds the memory of a run up and, where there is a budget, takes what is free as large as fits:
/// passes of up to a whole step, activations kept, examples of the length asked for.
///
/// Errors: as [`fit`], [`TrainShape::check`] and [`TrainOptions::shape`].
pub fn choose(gguf: &Gguf, config: &ModelConfig, caps: &Caps, wish: Wish) -> Result<Choice> {
    let Wish { mut options, free, budget_bytes, kv_tokens, kv_f32 } = wish;
    let serving = Serving { context: TRAIN_CONTEXT, kv_tokens, kv_f32, ..Serving::default() };
    let site = Site { config, beside: tally(caps, config, Some(gguf), &serving)? };
    let asked = options.shape()?;
    let Some(budget) = budget_bytes else {
        let plan = site.training(&asked)?;
        return Ok(Choice { options, shape: asked, plan, decided: Vec::new() });
    };
    let wanted = TrainShape {
        micro_batch: if free.micro_batch { options.step_examples() } else { asked.micro_batch },
        checkpoint_every: if free.checkpoint { None } else { asked.checkpoint_every },
        ..asked.clone()
    };
    let (shape, plan) = fit(&site, &wanted, free, budget)?;
    let decided = decided(&asked, &shape);
    options.micro_batch = shape.micro_batch;
    options.seq_len = shape.seq_len;
    options.checkpoint_every = shape.checkpoint_every;
    Ok(Choice { options, shape, plan, decided })
}

fn decided(asked: &TrainShape, shape: &TrainShape) -> Vec<String> {
    let mut said = vec![format!("passes of {} tokens", shape.tokens())];
    said.push(match shape.checkpoint_every {
        None => "activations kept".into(),
        Some(1) => "activations computed again layer by layer".into(),
        Some(k) => format!("activations computed again in runs of {k} layers"),
    });
    if shape.seq_len < asked.seq_len {
        let (now, before) = (shape.seq_len, asked.seq_len);
        said.push(format!(
            "examples of at most {now} tokens instead of {before}: longer ones are cut"
        ));
    }
    said
}
