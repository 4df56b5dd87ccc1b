//! The settings of a run by the memory there is: what `plan` prints and `train` takes, from one
//! function.

use super::{Free, MemoryPlan, Model, engine_bytes, fit, weight_bytes};
use crate::base::ModelConfig;
use crate::engine::pass_rows;
use crate::error::Result;
use crate::format::gguf::Gguf;
use crate::gpu::{Caps, Gpu, GpuOptions};
use crate::train::TrainOptions;
use crate::train::buffers::TrainShape;

/// Context of an engine that only trains: sessions are not what it is for.
pub const TRAIN_CONTEXT: usize = 32;

/// What of a device decides how much memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The KV cache is in f16.
    pub f16: bool,
    /// It has cooperative matrices.
    pub cooperative_matrix: bool,
    /// Rows of a pass when it answers.
    pub pass_rows: usize,
}

impl Device {
    /// A phone's, where there is none to ask.
    pub const ASSUMED: Self = Self { f16: true, cooperative_matrix: false, pass_rows: 512 };

    /// That of the GPU that `gpu` names.
    ///
    /// Errors: [`crate::Error::NoGpu`], [`crate::Error::Gpu`].
    pub fn open(gpu: GpuOptions) -> Result<Self> {
        Gpu::open(gpu).map(|gpu| Self::of(gpu.caps()))
    }

    /// That of an open device.
    pub(crate) fn of(caps: &Caps) -> Self {
        Self {
            f16: caps.f16,
            cooperative_matrix: caps.cooperative_matrix.is_some(),
            pass_rows: pass_rows(caps),
        }
    }

    /// `config` on this device, with its weights and what an engine of `context` positions takes
    /// beside them.
    ///
    /// Errors: as [`weight_bytes`].
    pub fn model<'a>(
        &self,
        gguf: &Gguf,
        config: &'a ModelConfig,
        context: usize,
    ) -> Result<Model<'a>> {
        let kv_element_bytes = if self.f16 { 2 } else { 4 };
        let mut model = Model {
            config,
            weight_bytes: weight_bytes(gguf, config)?,
            kv_element_bytes,
            engine_bytes: 0,
        };
        if context > 0 {
            model.engine_bytes = engine_bytes(&model, self.pass_rows, context);
        }
        Ok(model)
    }
}

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
pub fn choose(gguf: &Gguf, config: &ModelConfig, device: &Device, wish: Wish) -> Result<Choice> {
    let model = device.model(gguf, config, TRAIN_CONTEXT)?;
    let Wish { mut options, free, budget_bytes, kv_tokens } = wish;
    let asked = options.shape(config, device.cooperative_matrix)?;
    let Some(budget) = budget_bytes else {
        let plan = MemoryPlan::training(&model, &asked, kv_tokens)?;
        return Ok(Choice { options, shape: asked, plan, decided: Vec::new() });
    };
    let wanted = TrainShape {
        micro_batch: if free.micro_batch { options.step_examples() } else { asked.micro_batch },
        checkpoint_every: if free.checkpoint { None } else { asked.checkpoint_every },
        ..asked.clone()
    };
    let (shape, plan) = fit(&model, &wanted, free, kv_tokens, budget)?;
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
