//! Kotlin and Swift see this crate: thin wrappers around `epiphyte`, which knows nothing of them.
//!
//! Names are the runtime's own. Paths are strings; counts are signed, as these languages like them,
//! and refused below 0. No call blocks: what may wait is asynchronous and works on a thread of its
//! own (`worker`), the rest reads or sets a flag. Handles are usable from any thread, and freed
//! when they are closed (`held`).

// That a future may go from thread to thread is proved down to the types of wgpu.
#![recursion_limit = "256"]

mod adapter;
#[cfg(target_os = "android")]
mod android;
mod answer;
mod app;
mod batch;
mod cancel;
mod engine;
mod error;
mod federated;
mod flower;
mod generation;
mod held;
mod lifecycle;
mod options;
mod plan;
mod session;
mod shortcut;
mod source;
mod train;
mod train_options;
mod worker;

pub use adapter::{
    AdapterFormat, AdapterProbe, AdapterSource, AdapterState, AdapterWeight, KvPolicy, LoadReport,
    ReportItem, ReportModule, Verdict,
};
pub use app::{AppInfo, app_info};
pub use batch::{BatchGeneration, BatchSequence, BatchToken};
pub use cancel::CancelToken;
pub use engine::{DeviceWork, Engine, EngineOptions, LoadListener, LoadPhase, LoadProgress};
pub use error::EpiphyteError;
pub use federated::{
    AcceptOptions, AdapterVersion, Canary, Delta, DeltaLosses, DeltaOptions, Factor, KeyKind,
    PublicKey, SigningCallback, SigningKey, parse_public_key,
};
pub use flower::{
    FlowerAnswer, FlowerClient, FlowerEnd, FlowerLeave, FlowerMetric, FlowerOptions, FlowerReply,
    FlowerRequest, FlowerStatus, FlowerStep, FlowerTask, FlowerValue,
};
pub use generation::Generation;
pub use lifecycle::{
    EnginePhase, EngineState, MemoryLevel, MemoryReport, States, ThermalState, TrainingPace,
    memory_level_from_memory_warning, memory_level_from_trim_memory, thermal_state_from_android,
};
pub use options::{
    AnswerStats, FinishReason, GenerateOptions, LogitBias, Message, PromptOptions, ResponseFormat,
    Sampling, Token,
};
pub use plan::{ClassBytes, MemoryClass, MemoryPlan, MemoryPlanOptions, TrainingPlan, memory_plan};
pub use session::Session;
pub use shortcut::{epiphyte_batch_generation_take, epiphyte_generation_take};
pub use source::ModelSource;
pub use train::{
    DataReport, Losses, TrainEnd, TrainListener, TrainOutcome, TrainPhase, TrainProgress,
    TrainWarning, Trainer,
};
pub use train_options::{
    Example, LrDecay, LrWarmup, Optimizer, TrainData, TrainDuration, TrainOptions, ValidationSplit,
};

uniffi::setup_scaffolding!();
