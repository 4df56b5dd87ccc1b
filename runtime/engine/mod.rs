//! One base in memory, many sessions over it.
//!
//! [`Base`] (immutable, shared) ← [`Session`] ← batch of sessions ← [`Engine`], which owns the
//! device.

pub mod adapters;
pub mod base;
pub mod batch;
mod benches;
mod compute;
pub mod context;
mod device;
mod embed;
mod executor;
mod gate;
pub mod generation;
mod inputs;
mod lane;
pub mod lifecycle;
mod lookup;
pub mod options;
mod pass;
pub mod plan;
pub mod pressure;
mod residents;
mod seat;
pub mod session;
mod snapshot;
mod steps;
mod turns;
mod working;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use adapters::{Change, KvPolicy, Probe};
pub use base::Base;
pub use batch::{Batch, BatchToken, Sequence, generate_batch};
pub(crate) use benches::Bench;
pub use context::ContextPolicy;
pub use device::{DeviceSpeed, DeviceWork};
pub use embed::EmbedOptions;
pub use generation::Generation;
pub(crate) use inputs::Squares;
pub use lifecycle::{EnginePhase, EngineState, StateWatch, ThermalState, TrainingPace};
pub use options::{AnswerStats, FinishReason, GenerateOptions, Sampling, Token};
pub use pressure::{ClassBytes, MemoryLevel, MemoryReport};
pub use residents::AdapterState;
pub use session::Session;
pub use working::pass_rows;

use crate::base::ModelConfig;
pub use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::gpu::{Gpu, GpuOptions};
use crate::progress::{LoadProgress, Loading};
use crate::selftest;
use benches::Benches;
use executor::Executor;
use gate::Gate;
use lifecycle::Lifecycle;
use lookup::StepTimes;
use residents::SetId;
use seat::Seat;
use session::Returned;
use turns::Turns;

/// How to open an [`Engine`].
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Which device, and which of its abilities to leave unused.
    pub gpu: GpuOptions,
    /// Most tokens of a session; `None`: what the model was made for, at most 8,192.
    pub context: Option<usize>,
    /// Keep the KV cache in f32 although there is f16: exact, twice the memory.
    pub kv_f32: bool,
    /// Skip the start-up self-test.
    pub skip_self_test: bool,
    /// Bytes on the device for adapters, as far as it can bind them; the least recently used make
    /// room.
    pub adapter_budget: u64,
    /// Render chats with this Jinja template instead of the model's own.
    pub chat_template: Option<String>,
    /// Stops opening: between two kernels that are tested or compiled, and two tensors.
    pub cancel: CancelToken,
}

impl Default for EngineOptions {
    /// All the device can do, the model's context up to 8,192, 128 MiB of adapters.
    fn default() -> Self {
        Self {
            gpu: GpuOptions::default(),
            context: None,
            kv_f32: false,
            skip_self_test: false,
            adapter_budget: 128 << 20,
            chat_template: None,
            cancel: CancelToken::default(),
        }
    }
}

/// A device with a base on it.
pub struct Engine {
    first: Gpu,
    /// The GPU again, if the first device was lost.
    second: OnceLock<Gpu>,
    base: Base,
    seat: Turns<Seat>,
    /// Who has the activations of a [`executor::Space`] for a pass. Taken one at a time, and never
    /// while having a turn at the executor.
    steps: Turns<()>,
    prompts: Turns<()>,
    /// Whoever computes again what had to make room is inside, so that it is not taken twice.
    recoveries: Gate,
    pub(crate) benches: Benches,
    lifecycle: Lifecycle,
    /// Arithmetic of the largest part of a long pass so far: what a turn of a short one may hold,
    /// so that it has not many more of them to wait for.
    long_part: AtomicU64,
    /// What steps have taken so far.
    step_times: StepTimes,
    /// What sessions no longer need, until the next turn.
    returned: Mutex<Vec<Returned>>,
    setup: Setup,
    kv_f16: bool,
    next_run: AtomicU64,
    trains: bool,
}

/// What decides the sizes of an executor, beside model and device.
struct Setup {
    /// Most tokens of a session.
    context: usize,
    kv_f32: bool,
    adapter_budget: u64,
}

impl Engine {
    /// Opens the device, checks its kernels, and loads the model file at `path`.
    ///
    /// Errors: [`Error::NoGpu`], [`Error::Gpu`], [`Error::OutOfMemory`]; [`Error::Cancelled`], after
    /// which nothing of it is left; as [`Gguf::open`] and [`ModelConfig::from_gguf`].
    pub fn open(path: impl AsRef<Path>, options: EngineOptions) -> Result<Arc<Self>> {
        Self::open_with(path, options, &mut |_| {})
    }

    /// As [`Engine::open`]; `progress` hears what it is busy with and how far it is.
    ///
    /// Errors: as [`Engine::open`].
    pub fn open_with(
        path: impl AsRef<Path>,
        options: EngineOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Arc<Self>> {
        // The file first: a bad one is refused before a device is opened.
        Self::open_gguf(Gguf::open(path)?, options, progress)
    }

    /// As [`Engine::open_with`], for a model file that is open already. One without a name (in
    /// memory, or by a descriptor) stays open as long as the engine, which may have to read it
    /// again.
    ///
    /// Errors: as [`Engine::open`].
    pub fn open_gguf(
        gguf: Gguf,
        options: EngineOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Arc<Self>> {
        ModelConfig::from_gguf(&gguf)?.check_tensors(&gguf)?;
        let loading = &mut Loading::new(progress, &options.cancel);
        loading.cancel.check()?;
        let mut gpu = Gpu::open(options.gpu.clone())?;
        let trains = options.skip_self_test || selftest::run_for(&mut gpu, loading)?.trains;
        let mut engine = Self::load_on(gpu, &gguf, &options, loading)?;
        if let Some(engine) = Arc::get_mut(&mut engine) {
            engine.trains = trains;
            engine.base.keep(gguf);
        }
        Ok(engine)
    }

    /// Loads an open model file onto an open device, whose kernels [`selftest::run_for`] has
    /// checked.
    ///
    /// Errors: as [`Engine::open`].
    pub(crate) fn load_on(
        gpu: Gpu,
        gguf: &Gguf,
        options: &EngineOptions,
        loading: &mut Loading<'_>,
    ) -> Result<Arc<Self>> {
        let (base, weights) = Base::load(&gpu, gguf, options.chat_template.as_deref(), loading)?;
        let most = base.config.max_position_embeddings;
        let context = options.context.unwrap_or(base.config.usual_context());
        if context == 0 || context > most {
            let reason = format!("{context} tokens; this model allows 1 to {most}");
            return Err(Error::InvalidArgument { name: "context", reason });
        }
        let (kv_f32, adapter_budget) = (options.kv_f32, options.adapter_budget);
        let setup = Setup { context, kv_f32, adapter_budget };
        let executor = Executor::load(&gpu, &base, weights, &setup, loading)?;
        let kv_f16 = gpu.caps().f16 && !kv_f32;
        // At once: the app may be killed, and the next start should find them.
        gpu.save_pipelines();
        // One that comes last is not lost either.
        loading.cancel.check()?;
        Ok(Arc::new(Self {
            first: gpu,
            second: OnceLock::new(),
            base,
            seat: Turns::new(Seat::Taken(Box::new(executor))),
            steps: Turns::default(),
            prompts: Turns::default(),
            recoveries: Gate::default(),
            benches: Benches::default(),
            lifecycle: Lifecycle::default(),
            long_part: AtomicU64::default(),
            step_times: StepTimes::default(),
            returned: Mutex::default(),
            setup,
            kv_f16,
            next_run: AtomicU64::new(1),
            trains: true,
        }))
    }

    internal! {
        /// As [`Engine::load_on`].
        pub fn from_gguf(
            gpu: Gpu,
            gguf: &Gguf,
            options: &EngineOptions,
            progress: &mut dyn FnMut(LoadProgress),
        ) -> Result<Arc<Self>> {
            Self::load_on(gpu, gguf, options, &mut Loading::new(progress, &options.cancel))
        }
    }

    /// An empty session.
    pub fn session(self: &Arc<Self>) -> Session {
        Session::new(Arc::clone(self))
    }

    /// A session from a file that [`Session::save`] wrote.
    ///
    /// Its adapters have to be loaded under the ids they had.
    ///
    /// Errors: [`Error::BaseMismatch`] for another base; [`Error::AdapterNotLoaded`] and
    /// [`Error::AdapterMismatch`] naming the adapter; [`Error::InvalidFile`]; [`Error::Io`];
    /// [`Error::ContextFull`] when it does not fit; as [`Session::set_adapters`].
    pub fn restore(self: &Arc<Self>, path: impl AsRef<Path>) -> Result<Session> {
        snapshot::restore(self, path.as_ref())
    }

    /// The loaded model.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Whether the self-test found that the device computes training right.
    pub fn trains(&self) -> bool {
        self.trains
    }

    /// Most tokens of a session.
    pub fn context(&self) -> usize {
        self.setup.context
    }

    /// Takes back what a session no longer needs, at once.
    fn give_back(&self, returned: Returned) {
        if !returned.pages.is_empty() || returned.set != SetId::default() {
            self.returned().push(returned);
        }
    }

    fn returned(&self) -> MutexGuard<'_, Vec<Returned>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_id(&self) -> u64 {
        self.next_run.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.gpu().save_pipelines();
    }
}
