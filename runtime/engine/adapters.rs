//! Adapters of an engine and of its sessions: load, refuse, swap, mix.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::adapter::{Adapter, LoadReport};
use crate::error::{Error, Result};
use crate::parallel;
use crate::progress::Loading;

use super::residents::{AdapterState, Incoming, ReadAgain, SetId};
use super::{Engine, Session};

/// What becomes of the transcript when a session's adapters change.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPolicy {
    /// It is computed again under the new adapters when it is next needed: as if they had been
    /// there from the start.
    #[default]
    Recompute,
    /// Its keys and values stay as the old adapters made them, so that the swap costs nothing. What
    /// follows then differs from a fresh run with either set.
    Keep,
}

/// The adapters a session is to use, with their weights, and what becomes of its history.
#[derive(Clone, Debug, Default)]
pub struct Change<'a> {
    /// Ids and weights; `y += weight * scaling * B A x` for each.
    pub adapters: &'a [(&'a str, f32)],
    /// What becomes of what was said.
    pub history: KvPolicy,
}

/// What an adapter does to the logits of one prompt.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Largest change of a logit after the last token.
    pub max_abs_difference: f32,
    /// Root of the mean square of the changes.
    pub rms_difference: f32,
    /// The most likely next token is another one.
    pub changes_next_token: bool,
}

impl Engine {
    /// Reads an adapter (a PEFT folder or file, or a GGUF LoRA) and puts it on the device under
    /// `id`.
    ///
    /// One of that id is replaced, also in mid-answer: sessions that use it, and their forks, go on
    /// with the old one until their adapters are set again; sessions that ask for the id from now
    /// on get the new one. The old one leaves the device with the last session that uses it.
    ///
    /// Errors: [`Error::BaseMismatch`] when it was made for another base, and
    /// [`Error::FingerprintVersion`] when that can't be told; as [`Adapter::load`];
    /// [`Error::AdapterBudget`], also when there is no room beside one in use;
    /// [`Error::OutOfMemory`]. Nothing has changed then.
    pub fn load_adapter(&self, id: &str, path: impl AsRef<Path>) -> Result<Arc<LoadReport>> {
        let adapter = Adapter::load(path.as_ref(), self.base.adapted())?;
        adapter.check_base(&self.base.fingerprint)?;
        self.insert_adapter(id, &adapter, Some(path.as_ref()))
    }

    /// As [`Engine::load_adapter`], also for an adapter that was made for another base of the same
    /// shape: its report names that base.
    ///
    /// Errors: as [`Engine::load_adapter`], less [`Error::BaseMismatch`].
    pub fn load_foreign_adapter(
        &self,
        id: &str,
        path: impl AsRef<Path>,
    ) -> Result<Arc<LoadReport>> {
        let adapter = Adapter::load(path.as_ref(), self.base.adapted())?;
        self.insert_adapter(id, &adapter, Some(path.as_ref()))
    }

    /// Puts an adapter from memory on the device under `id`; replaces one as
    /// [`Engine::load_adapter`] does.
    ///
    /// Errors: as [`Engine::load_adapter`].
    pub fn add_adapter(&self, id: &str, adapter: &Adapter) -> Result<Arc<LoadReport>> {
        adapter.check_base(&self.base.fingerprint)?;
        let shape = self.base.adapter_shape();
        parallel::map(adapter.modules.iter().collect(), |module| module.check(&shape))
            .into_iter()
            .collect::<Result<()>>()?;
        self.insert_adapter(id, adapter, None)
    }

    /// Puts an adapter that fits the base's shape on the device, without asking which base it was
    /// made for.
    fn insert_adapter(
        &self,
        id: &str,
        adapter: &Adapter,
        path: Option<&Path>,
    ) -> Result<Arc<LoadReport>> {
        let shape = self.base.adapter_shape();
        let incoming = Incoming::new(id, adapter, &shape, path)?;
        self.surviving(|| self.send_adapter(id, incoming.clone()))
    }

    fn send_adapter(&self, id: &str, incoming: Incoming) -> Result<Arc<LoadReport>> {
        // Before the turn, so that nobody waits for the compiler.
        let specs = self.executor()?.adapted_specs(self.gpu().caps());
        self.gpu().compile_all(specs, &mut Loading::to_the_end(&mut |_| {}))?;
        let mut executor = self.executor()?;
        let gpu = self.gpu();
        if executor.registry.fits(&incoming) {
            executor.make_u(gpu)?;
        }
        let inserted = executor.registry.insert(gpu, id, incoming);
        executor.bind_adapters(gpu)?;
        inserted?;
        gpu.check()?;
        let report = executor.registry.report(id).unwrap_or_default();
        drop(executor);
        // Binding the first adapter compiles, too.
        gpu.save_pipelines();
        Ok(report)
    }

    /// A set of `adapters` for a session that has `current`; `None` where that is it.
    fn acquire(&self, current: SetId, adapters: &[(String, f32)]) -> Result<Option<SetId>> {
        let seat = self.seat();
        if seat.registry().is(current, adapters) {
            return Ok(None);
        }
        let (mut read, mut executor) = (ReadAgain::new(), self.with_model(seat)?);
        // What is read between two turns may meanwhile have been replaced, or others sent away.
        loop {
            let absent = executor.registry.absent(adapters, &read)?;
            if absent.is_empty() {
                break;
            }
            executor = self.read_between(executor, &absent, &mut read)?;
        }
        let acquired = executor.registry.acquire(self.gpu(), adapters, &read);
        // The first of a set's adapters may have moved the buffers before the second failed.
        let moved = executor.bind_adapters(self.gpu());
        let set = acquired?;
        if let Err(error) = moved {
            executor.registry.release(set);
            return Err(error);
        }
        executor.registry.release(current);
        Ok(Some(set))
    }

    /// Forgets an adapter.
    ///
    /// Errors: [`Error::AdapterInUse`].
    pub fn unload_adapter(&self, id: &str) -> Result<()> {
        self.seat().registry_mut().remove(id)
    }

    /// The adapters that are loaded, by id, with those that were replaced and are still in use.
    pub fn adapters(&self) -> Vec<AdapterState> {
        self.seat().registry().states()
    }

    /// What the file of a loaded adapter held.
    pub fn adapter_report(&self, id: &str) -> Option<Arc<LoadReport>> {
        self.seat().registry().report(id)
    }

    /// Runs `prompt` with and without an adapter.
    ///
    /// Errors: [`Error::InvalidAdapter`] when it changes nothing; as [`Session::logits`].
    pub fn probe_adapter(self: &Arc<Self>, id: &str, prompt: &str) -> Result<Probe> {
        let last = |adapters: &[(&str, f32)]| -> Result<(usize, Vec<f32>)> {
            let mut session = self.session();
            session.set_adapters(&Change { adapters, ..Change::default() })?;
            session.push_text(prompt)?;
            let mut last = Vec::new();
            let tokens = session.tokens().len();
            session.logits(tokens.saturating_sub(1), |_, logits| last = logits.to_vec())?;
            Ok((tokens, last))
        };
        let ((tokens, without), (_, with)) = (last(&[])?, last(&[(id, 1.0)])?);
        let differences = || without.iter().zip(&with).map(|(a, b)| (a - b).abs());
        let best = |logits: &[f32]| {
            logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i)
        };
        let squares = differences().map(|d| f64::from(d) * f64::from(d)).sum::<f64>();
        let probe = Probe {
            tokens,
            max_abs_difference: differences().fold(0.0, f32::max),
            rms_difference: (squares / without.len().max(1) as f64).sqrt() as f32,
            changes_next_token: best(&without) != best(&with),
        };
        if probe.max_abs_difference > 0.0 {
            return Ok(probe);
        }
        let reason =
            "it changes nothing the model says of this prompt; its B factors may be zero: train it"
                .to_string();
        Err(Error::InvalidAdapter { what: id.into(), reason })
    }
}

impl Session {
    /// Changes the adapters. With those that are on the device already only a number is written at
    /// the next step.
    ///
    /// Errors: [`Error::AdapterNotLoaded`]; [`Error::InvalidArgument`] for more than can run
    /// together; [`Error::AdapterSets`]; [`Error::AdapterBudget`]; as [`Adapter::load`] when one has
    /// to be read again. The session is then as it was.
    pub fn set_adapters(&mut self, change: &Change<'_>) -> Result<()> {
        let adapters: Vec<(String, f32)> =
            change.adapters.iter().map(|(id, weight)| ((*id).to_string(), *weight)).collect();
        let engine = Arc::clone(&self.engine);
        let Some(set) = engine.surviving(|| engine.acquire(self.set, &adapters))? else {
            if self.mixed && change.history == KvPolicy::Recompute {
                self.forget_kv();
            }
            return Ok(());
        };
        self.set = set;
        match change.history {
            KvPolicy::Keep => self.mixed |= self.kv_len > 0,
            KvPolicy::Recompute => self.forget_kv(),
        }
        Ok(())
    }

    /// Its adapters and their weights.
    pub fn adapters(&self) -> Vec<(String, f32)> {
        self.engine.seat().registry().adapters(self.set).to_vec()
    }
}
