//! Memory, added up before any of it is taken.

use epiphyte::base::ModelConfig;
use epiphyte::engine::plan::{Caps, Class, Serving, tally};
use epiphyte::train::TrainOptions as RunOptions;
use epiphyte::train::plan::{Choice, Free, Wish, choose};

use crate::engine::gpu_options;
use crate::error::{bytes, count, number};
use crate::{EpiphyteError, ModelSource, TrainOptions, worker};

/// What the memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MemoryClass {
    /// The model's weights.
    Weights,
    /// Factors of adapters.
    Adapter,
    /// Of a training run: one number a trained parameter.
    Gradients,
    /// Of a training run.
    OptimizerStates,
    /// Grows with the tokens at work.
    Activations,
    /// Keys and values of conversations.
    KvCache,
    /// Anything else.
    Overhead,
}

impl From<Class> for MemoryClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Weights => Self::Weights,
            Class::Adapter => Self::Adapter,
            Class::Gradients => Self::Gradients,
            Class::OptimizerStates => Self::OptimizerStates,
            Class::Activations => Self::Activations,
            Class::KvCache => Self::KvCache,
            Class::Overhead => Self::Overhead,
        }
    }
}

/// Bytes for one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ClassBytes {
    /// What for.
    pub class: MemoryClass,
    /// How many.
    pub bytes: i64,
}

impl From<&epiphyte::engine::ClassBytes> for ClassBytes {
    fn from(of_class: &epiphyte::engine::ClassBytes) -> Self {
        Self { class: of_class.class.into(), bytes: bytes(of_class.bytes) }
    }
}

/// What is to be planned.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct MemoryPlanOptions {
    /// Most tokens of a session; none: as an engine's.
    #[uniffi(default = None)]
    pub context: Option<i32>,
    /// Tokens that all sessions hold together; none: one full context, or none beside a training.
    #[uniffi(default = None)]
    pub kv_tokens: Option<i32>,
    /// Sessions that hold them, at most; none: as few as the context lets. It counts in models with
    /// windows.
    #[uniffi(default = None)]
    pub sessions: Option<i32>,
    /// Keep the KV cache in f32.
    #[uniffi(default = false)]
    pub kv_f32: bool,
    /// A training run beside it; its folder and data are not looked at.
    #[uniffi(default = None)]
    pub training: Option<TrainOptions>,
    /// Bytes on the device; a plan above throws `OverBudget`. Of a training run that leaves them
    /// open, it decides `micro_batch`, `recompute_layers` and, last, `seq_len`.
    #[uniffi(default = None)]
    pub memory_budget_bytes: Option<i64>,
    /// As an engine's.
    #[uniffi(default = None)]
    pub gpu: Option<String>,
}

/// The settings of a training run that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct TrainingPlan {
    /// As [`TrainOptions`] has it.
    pub micro_batch: i32,
    /// As [`TrainOptions`] has it.
    pub seq_len: i32,
    /// As [`TrainOptions`] has it.
    pub recompute_layers: i32,
    /// Parameters of the adapter.
    pub trainable_parameters: i64,
}

/// A sum of memory.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryPlan {
    /// Bytes in all.
    pub total_bytes: i64,
    /// What the driver is asked for.
    pub reserved_bytes: i64,
    /// By what it is for.
    pub classes: Vec<ClassBytes>,
    /// Where one was planned.
    pub training: Option<TrainingPlan>,
}

impl From<&epiphyte::engine::plan::MemoryPlan> for MemoryPlan {
    fn from(plan: &epiphyte::engine::plan::MemoryPlan) -> Self {
        let class = |(class, of_class): (Class, u64)| ClassBytes {
            class: class.into(),
            bytes: bytes(of_class),
        };
        Self {
            total_bytes: bytes(plan.total_bytes()),
            reserved_bytes: bytes(plan.reserved_bytes),
            classes: plan.classes().into_iter().map(class).collect(),
            training: None,
        }
    }
}

/// Adds up what a model takes on this device, and a training run beside it. No weight is loaded.
#[uniffi::export]
pub async fn memory_plan(
    source: ModelSource,
    options: MemoryPlanOptions,
) -> Result<MemoryPlan, EpiphyteError> {
    worker::run("memory_plan", move || plan(source, options)).await
}

fn plan(source: ModelSource, options: MemoryPlanOptions) -> Result<MemoryPlan, EpiphyteError> {
    let budget_bytes =
        options.memory_budget_bytes.map(|bytes| count("memory_budget_bytes", bytes)).transpose()?;
    let kv_tokens = options.kv_tokens.map(|tokens| count("kv_tokens", tokens)).transpose()?;
    let context = options.context.map(|tokens| count("context", tokens)).transpose()?;
    let sessions = options.sessions.map(|sessions| count("sessions", sessions)).transpose()?;
    let gguf = source.gguf()?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let caps = Caps::open(gpu_options(options.gpu, Some(String::new()))?)?;
    let Some(training) = options.training else {
        let context = context.unwrap_or(config.usual_context());
        let adapter_budget = epiphyte::EngineOptions::default().adapter_budget;
        let (kv_f32, adapters) = (options.kv_f32, &[][..]);
        let kv_tokens = kv_tokens.unwrap_or(context);
        let sessions = sessions.unwrap_or(0);
        let serving = Serving { context, kv_f32, kv_tokens, sessions, adapters, adapter_budget };
        let plan = tally(&caps, &config, Some(&gguf), &serving)?.plan();
        plan.within(budget_bytes, || "use a smaller context, or a smaller model".into())?;
        return Ok(MemoryPlan::from(&plan));
    };
    let mut run = RunOptions::default();
    training.settings(&mut run, &config)?;
    let wish = Wish {
        options: run,
        free: Free {
            micro_batch: training.micro_batch.is_none(),
            checkpoint: training.recompute_layers.is_none(),
            seq_len: training.seq_len.is_none(),
        },
        budget_bytes,
        kv_tokens: kv_tokens.unwrap_or(0),
        kv_f32: options.kv_f32,
    };
    let Choice { shape, plan, .. } = choose(&gguf, &config, &caps, wish)?;
    let training = TrainingPlan {
        micro_batch: number(shape.micro_batch),
        seq_len: number(shape.seq_len),
        recompute_layers: number(shape.checkpoint_every.unwrap_or(0)),
        trainable_parameters: bytes(shape.parameters(&config) as u64),
    };
    Ok(MemoryPlan { training: Some(training), ..MemoryPlan::from(&plan) })
}
