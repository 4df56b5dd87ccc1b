//! A device with a base model on it.

use std::sync::{Arc, Mutex};

use epiphyte::chat::Prompt;
use epiphyte::engine::StateWatch;

use crate::adapter::{AdapterProbe, AdapterSource, AdapterState, LoadReport};
use crate::cancel::Awaited;
use crate::error::{bytes, count, number, path as given};
use crate::held::{Lease, Slot};
use crate::lifecycle::{self, Bell};
use crate::options::{self, Message, PromptOptions};
use crate::worker::{self, Promise, lock};
use crate::{
    BatchGeneration, BatchSequence, CancelToken, EpiphyteError, ModelSource, Session, TrainOptions,
    Trainer, app,
};

/// How to open an [`Engine`]. Whatever is none is the runtime's default.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct EngineOptions {
    /// Most tokens of a session; none: what the model was made for, at most 8,192.
    #[uniffi(default = None)]
    pub context: Option<i32>,
    /// Bytes on the device for adapters; the least recently used make room. None: 128 MiB.
    #[uniffi(default = None)]
    pub adapter_budget_bytes: Option<i64>,
    /// Keep the KV cache in f32 although there is f16: exact, twice the memory.
    #[uniffi(default = false)]
    pub kv_f32: bool,
    /// Render chats with this Jinja template instead of the model's own.
    #[uniffi(default = None)]
    pub chat_template: Option<String>,
    /// Where compiled kernels and the self-test's verdicts are kept from one start to the next;
    /// none: the app's own cache folder. An empty one keeps nothing.
    #[uniffi(default = None)]
    pub cache_dir: Option<String>,
    /// `discrete`, `integrated`, `software`, or part of the GPU's name; none: the fastest kind.
    #[uniffi(default = None)]
    pub gpu: Option<String>,
}

impl TryFrom<EngineOptions> for epiphyte::EngineOptions {
    type Error = EpiphyteError;

    fn try_from(options: EngineOptions) -> Result<Self, EpiphyteError> {
        let defaults = Self::default();
        let context = options.context.map(|tokens| count("context", tokens)).transpose()?;
        let adapter_budget =
            options.adapter_budget_bytes.map(|bytes| count("adapter_budget_bytes", bytes));
        Ok(Self {
            gpu: gpu_options(options.gpu, options.cache_dir)?,
            context,
            kv_f32: options.kv_f32,
            adapter_budget: adapter_budget.transpose()?.unwrap_or(defaults.adapter_budget),
            chat_template: options.chat_template,
            ..defaults
        })
    }
}

/// The device of that name, or the one that the environment names, with a cache.
pub(crate) fn gpu_options(
    name: Option<String>,
    cache_dir: Option<String>,
) -> Result<epiphyte::GpuOptions, EpiphyteError> {
    let found = epiphyte::GpuOptions::from_env()?;
    let cache_dir = match cache_dir {
        None => app::cache_dir().or(found.cache_dir),
        Some(dir) => Some(dir).filter(|dir| !dir.is_empty()).map(Into::into),
    };
    Ok(epiphyte::GpuOptions { name: name.or(found.name), cache_dir, ..found })
}

/// What opening a model is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LoadPhase {
    /// Kernels compared with the CPU, once on a driver; counts kernels.
    SelfTest,
    /// Weights sent to the device; counts bytes.
    Weights,
    /// Shaders compiled for this model; counts kernels.
    Shaders,
    /// Anything else.
    Other,
}

/// How far a phase of opening is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct LoadProgress {
    /// Which one.
    pub phase: LoadPhase,
    /// Done so far, in what the phase counts.
    pub done: i64,
    /// In all.
    pub total: i64,
}

impl From<epiphyte::LoadProgress> for LoadProgress {
    fn from(progress: epiphyte::LoadProgress) -> Self {
        let phase = match progress.phase {
            epiphyte::LoadPhase::SelfTest => LoadPhase::SelfTest,
            epiphyte::LoadPhase::Weights => LoadPhase::Weights,
            epiphyte::LoadPhase::Shaders => LoadPhase::Shaders,
            _ => LoadPhase::Other,
        };
        Self { phase, done: bytes(progress.done), total: bytes(progress.total) }
    }
}

/// Hears how far opening is, on a thread of the library's.
#[uniffi::export(with_foreign)]
pub trait LoadListener: Send + Sync {
    /// Something more is done. What it throws, `open` throws.
    fn on_progress(&self, progress: LoadProgress) -> Result<(), EpiphyteError>;
}

/// Work that a device was given since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Record)]
pub struct DeviceWork {
    /// Kernels run.
    pub dispatches: i64,
    /// Submissions.
    pub submits: i64,
    /// Bytes of weights and KV cache that kernels read.
    pub bytes: i64,
    /// Kernels that the self-test compared with the CPU; none where an earlier start has.
    pub tested_kernels: i64,
    /// Kernels compiled that no earlier start with the same cache folder and driver compiled.
    pub compiled_kernels: i64,
}

impl From<epiphyte::engine::DeviceWork> for DeviceWork {
    fn from(work: epiphyte::engine::DeviceWork) -> Self {
        Self {
            dispatches: bytes(work.dispatches),
            submits: bytes(work.submits),
            bytes: bytes(work.bytes),
            tested_kernels: bytes(work.tested_kernels),
            compiled_kernels: bytes(work.compiled_kernels),
        }
    }
}

/// One base model in memory, shared by any number of sessions. Usable from any thread.
#[derive(uniffi::Object)]
pub struct Engine {
    lease: Mutex<Option<Arc<Lease>>>,
    freed: Arc<Promise<()>>,
    bell: Arc<Bell>,
    _watch: StateWatch,
}

impl Engine {
    /// Rung at each change of state.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Errors: [`EpiphyteError::Closed`].
    pub(crate) fn lease(&self) -> Result<Arc<Lease>, EpiphyteError> {
        lock(&self.lease).clone().ok_or_else(|| EpiphyteError::closed("engine"))
    }

    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Arc<epiphyte::Engine>) -> Result<T, EpiphyteError> + Send + 'static,
    ) -> Result<T, EpiphyteError> {
        let lease = self.lease()?;
        worker::run(name, move || work(&lease)).await
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

#[uniffi::export]
impl Engine {
    /// Opens the GPU, checks its driver and loads a model. Takes seconds the first time on a
    /// driver. It stops when `cancel` says so, and when the wait for it is given up.
    #[uniffi::constructor]
    pub async fn open(
        source: ModelSource,
        options: EngineOptions,
        listener: Option<Arc<dyn LoadListener>>,
        cancel: Option<Arc<CancelToken>>,
    ) -> Result<Arc<Self>, EpiphyteError> {
        let awaited = Awaited::new(cancel.as_deref());
        let cancel = awaited.token();
        let options = epiphyte::EngineOptions {
            cancel: cancel.clone(),
            ..epiphyte::EngineOptions::try_from(options)?
        };
        let open = move || {
            let mut thrown = None;
            let mut report = |progress: epiphyte::LoadProgress| {
                if let (Some(listener), None) = (&listener, &thrown)
                    && let Err(error) = listener.on_progress(progress.into())
                {
                    thrown = Some(error);
                    cancel.cancel();
                }
            };
            let opened = epiphyte::Engine::open_gguf(source.gguf()?, options, &mut report);
            thrown.map_or_else(|| Ok(opened?), Err)
        };
        let engine = worker::run("open", open).await?;
        let (freed, (bell, watch)) = (Arc::new(Promise::default()), lifecycle::watch(&engine));
        let lease = Mutex::new(Some(Lease::new(engine, Arc::clone(&freed))));
        Ok(Arc::new(Self { lease, freed, bell, _watch: watch }))
    }

    /// An empty session.
    pub fn session(&self) -> Result<Arc<Session>, EpiphyteError> {
        let lease = self.lease()?;
        Ok(Session::new(Slot::new(lease.session(), lease)))
    }

    /// A session from a file that `Session.save` wrote. Its adapters have to be loaded under the
    /// ids they had.
    pub async fn restore(&self, path: String) -> Result<Arc<Session>, EpiphyteError> {
        let lease = self.lease()?;
        let path = given("path", path)?;
        let session = self.call("restore", move |engine| Ok(engine.restore(path)?)).await?;
        Ok(Session::new(Slot::new(session, lease)))
    }

    /// Reads an adapter and puts it on the device under `id`. One of that id is replaced; sessions
    /// that use it go on with it until their adapters are set again.
    pub async fn load_adapter(
        &self,
        id: String,
        source: AdapterSource,
    ) -> Result<LoadReport, EpiphyteError> {
        let load = move |engine: &Arc<epiphyte::Engine>| source.load_to(engine, &id);
        Ok(LoadReport::from(&*self.call("load_adapter", load).await?))
    }

    /// Forgets an adapter that no session uses.
    pub async fn unload_adapter(&self, id: String) -> Result<(), EpiphyteError> {
        self.call("unload_adapter", move |engine| Ok(engine.unload_adapter(&id)?)).await
    }

    /// The adapters that are loaded, by id.
    pub async fn adapters(&self) -> Result<Vec<AdapterState>, EpiphyteError> {
        self.call("adapters", |engine| {
            Ok(engine.adapters().into_iter().map(AdapterState::from).collect())
        })
        .await
    }

    /// What the file of a loaded adapter held; none for an id that is not loaded.
    pub async fn adapter_report(&self, id: String) -> Result<Option<LoadReport>, EpiphyteError> {
        let report = self.call("adapter_report", move |engine| Ok(engine.adapter_report(&id)));
        Ok(report.await?.map(|report| LoadReport::from(&*report)))
    }

    /// Runs `prompt` with and without an adapter. Throws when it changes nothing.
    pub async fn probe_adapter(
        &self,
        id: String,
        prompt: String,
    ) -> Result<AdapterProbe, EpiphyteError> {
        let probe = move |engine: &Arc<epiphyte::Engine>| Ok(engine.probe_adapter(&id, &prompt)?);
        Ok(self.call("probe_adapter", probe).await?.into())
    }

    /// Tokens of a text as it stands, with what the tokenizer puts before the first.
    pub async fn count_tokens(&self, text: String) -> Result<i32, EpiphyteError> {
        self.call("count_tokens", move |engine| {
            Ok(number(engine.base().tokenizer.encode(&text, Default::default())?.len()))
        })
        .await
    }

    /// The prompt for a conversation, as the model's chat template writes it.
    pub async fn render_chat(
        &self,
        messages: Vec<Message>,
        options: PromptOptions,
    ) -> Result<String, EpiphyteError> {
        let messages = options::messages(messages)?;
        let context = options::json_object("context_json", options.context_json.as_deref())?;
        let add_generation_prompt = options.add_generation_prompt;
        self.call("render_chat", move |engine| {
            let prompt = Prompt { messages: &messages, context: &context, add_generation_prompt };
            Ok(engine.base().chat_template.render_prompt(&prompt)?)
        })
        .await
    }

    /// Answers of several sessions of this engine, computed together.
    pub fn batch(
        &self,
        sequences: Vec<BatchSequence>,
    ) -> Result<Arc<BatchGeneration>, EpiphyteError> {
        self.lease()?;
        BatchGeneration::start(sequences).map(Arc::new)
    }

    /// A training run on this engine's model, ready to be run.
    pub fn trainer(&self, options: TrainOptions) -> Result<Arc<Trainer>, EpiphyteError> {
        Ok(Trainer::new(&self.lease()?, options))
    }

    /// Most tokens of a session.
    pub fn context(&self) -> Result<i32, EpiphyteError> {
        Ok(number(self.lease()?.context()))
    }

    /// The device on a line: name, backend, driver.
    pub fn device(&self) -> Result<String, EpiphyteError> {
        Ok(self.lease()?.device())
    }

    /// Bytes of device memory that everything of this engine takes now, training included.
    pub fn device_bytes(&self) -> Result<i64, EpiphyteError> {
        Ok(bytes(self.lease()?.device_bytes()))
    }

    /// What the device has done so far.
    pub fn counters(&self) -> Result<DeviceWork, EpiphyteError> {
        Ok(self.lease()?.device_work().into())
    }

    /// Names the loaded model: what adapters and saved sessions are made for.
    pub fn fingerprint(&self) -> Result<String, EpiphyteError> {
        Ok(self.lease()?.base().fingerprint.clone())
    }

    /// Whether the self-test found that the device computes training right.
    pub fn trains(&self) -> Result<bool, EpiphyteError> {
        Ok(self.lease()?.trains())
    }

    /// Closes it with all its sessions, answers and training runs, which throw `Closed` from now
    /// on. Never waits: memory is freed when what is running has ended, which `closed` waits for. A
    /// second close does nothing.
    pub fn close(&self) {
        let lease = lock(&self.lease).take();
        if let Some(lease) = lease {
            lease.close();
        }
        self.bell.ring();
    }

    /// Returns once the engine is closed and its memory free.
    pub async fn closed(&self) {
        self.freed.wait().await;
    }
}
