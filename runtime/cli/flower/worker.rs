//! What a node does with a task: it takes the version, trains or measures, and makes the delta.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::output;
use epiphyte::adapter::Adapter;
use epiphyte::engine::{CancelToken, Change, Engine};
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::{EvaluateOptions, Examples, evaluate};
use epiphyte::federated::flower::{Metric, Task};
use epiphyte::federated::{
    Accept, Delta, DeltaOptions, PublicKey, Published, Residual, SigningKey,
};
use epiphyte::format::write_whole;
use epiphyte::train::data::Dataset;
use epiphyte::train::{TrainOptions, Trainer};

/// The last version, in the node's folder.
pub(super) const VERSION: &str = "version.safetensors";

/// Keeps the node online; fails when the task is not wanted any more.
pub(super) type Alive<'a> = dyn FnMut() -> Result<()> + 'a;

/// A node's examples and settings.
pub(super) struct Worker {
    pub(super) engine: Arc<Engine>,
    pub(super) data: Arc<Dataset>,
    /// The same, whole.
    pub(super) examples: Examples,
    /// The version decides rank, scaling, linears and what is frozen.
    pub(super) options: TrainOptions,
    pub(super) key: SigningKey,
    pub(super) trusted: Vec<PublicKey>,
    /// What the adapter is called.
    pub(super) id: String,
    pub(super) max_norm: Option<f64>,
    pub(super) folder: PathBuf,
    pub(super) cancel: CancelToken,
}

/// What came of a task.
#[derive(Default)]
pub(super) struct Done {
    pub(super) delta: Option<Vec<u8>>,
    pub(super) metrics: Vec<(&'static str, Metric)>,
    pub(super) version: u64,
    pub(super) loss: Option<f64>,
}

impl Worker {
    /// Does what is asked for.
    ///
    /// Errors: [`Error::InvalidDelta`], [`Error::BaseMismatch`] and the like for a version that is
    /// not taken; [`Error::Cancelled`]; as training and evaluating.
    pub(super) fn work(&self, task: &Task, alive: &mut Alive<'_>) -> Result<Done> {
        for key in task.config.keys().filter(|key| *key != "server-round") {
            output::note(&format!(
                "warning: the server's `{key}` is not known here: it changes nothing"
            ));
        }
        let version = self.version(task)?;
        let adapter = version.adapter(&self.engine.base().adapter_shape())?;
        match task.kind.split('.').next() {
            Some("train") => self.train(task, &version, &adapter, alive),
            Some("evaluate") => self.evaluate(&version, &adapter, alive),
            _ => Err(unusable("message_type", "this node trains and evaluates, and nothing else")),
        }
    }

    /// The version in a task, which is taken and kept.
    fn version(&self, task: &Task) -> Result<Published> {
        let missing = || unusable("version", "the message carries none");
        let version = Published::from_bytes(task.payload.clone().ok_or_else(missing)?)?;
        let kept = self.folder.join(VERSION);
        let current = if kept.exists() { Some(Published::open(&kept)?) } else { None };
        let current = current.map(|current| current.manifest.version);
        version.accept(&Accept {
            trusted: &self.trusted,
            base_fingerprint: &self.engine.base().fingerprint,
            adapter: &self.id,
            // The same one comes again, to be evaluated or after a restart.
            current: current.and_then(|current| current.checked_sub(1)),
            max_norm: self.max_norm,
        })?;
        write_whole(&kept, version.bytes())?;
        Ok(version)
    }

    fn train(
        &self,
        task: &Task,
        version: &Published,
        adapter: &Adapter,
        alive: &mut Alive<'_>,
    ) -> Result<Done> {
        let plan = &version.manifest.next;
        let options = TrainOptions {
            freeze: plan.factors.frozen(),
            seed: self.options.seed ^ (plan.round << 32),
            ..self.options.clone().starting_from(adapter)
        };
        let data = Arc::clone(&self.data);
        let mut trainer = Trainer::new(&self.engine, data, options, Some(adapter))?;
        trainer.cancel = self.cancel.clone();
        let bar = output::bar(trainer.total_steps(), "{pos}/{len} {wide_bar} {msg}");
        let mut loss = 0.0;
        while let Some(record) = trainer.step()? {
            loss = record.loss;
            bar.set_message(format!("loss {loss:.4}"));
            bar.inc(1);
            alive()?;
        }
        bar.finish_and_clear();
        let kept = self.residual_file();
        let mut residual = match plan.quantisation.needs_residual() {
            true => Some(Residual::open(&kept)?),
            false => None,
        };
        let bytes =
            trainer.delta(version, &DeltaOptions::default(), residual.as_mut(), &self.key)?;
        residual.map_or(Ok(()), |residual| residual.save(unsent(&kept)))?;
        let norm = Delta::from_bytes(bytes.clone())?.norm();
        let n_examples = Metric::Count(self.data.examples.len() as u64);
        output::note(&format!(
            "round {}: version {}, loss {loss:.4}, norm {norm:.4}, {} bytes to send",
            task.round().unwrap_or(plan.round),
            version.manifest.version,
            bytes.len()
        ));
        Ok(Done {
            delta: Some(bytes),
            metrics: vec![
                ("num-examples", n_examples),
                ("loss", Metric::Real(loss)),
                ("norm", Metric::Real(norm)),
            ],
            version: version.manifest.version,
            loss: Some(loss),
        })
    }

    fn evaluate(
        &self,
        version: &Published,
        adapter: &Adapter,
        alive: &mut Alive<'_>,
    ) -> Result<Done> {
        self.engine.add_adapter(&self.id, adapter)?;
        let mut session = self.engine.session();
        session.set_adapters(&Change { adapters: &[(&self.id, 1.0)], ..Change::default() })?;
        let options = EvaluateOptions { cancel: self.cancel.clone(), ..EvaluateOptions::default() };
        let mut still = Ok(());
        let measured = evaluate(&session, &self.examples, &options, &mut |_| {
            if still.is_ok() {
                still = alive();
            }
        })?;
        still?;
        if measured.cancelled {
            return Err(Error::Cancelled);
        }
        let none = || unusable("data", "none of the examples has an answer to measure");
        let loss = measured.loss.ok_or_else(none)?;
        let count = Metric::Count(self.examples.data.examples.len() as u64);
        let exact = measured.exact_match().map(|exact| ("exact", Metric::Real(exact)));
        let metrics = [("num-examples", count), ("loss", Metric::Real(loss))];
        let version = version.manifest.version;
        output::note(&format!("version {version}: loss {loss:.4} on this node's examples"));
        Ok(Done {
            metrics: metrics.into_iter().chain(exact).collect(),
            version,
            loss: Some(loss),
            ..Done::default()
        })
    }

    fn residual_file(&self) -> PathBuf {
        self.folder.join("residual.safetensors")
    }

    /// The delta arrived: what was left of it counts from now on.
    ///
    /// Errors: [`Error::Io`].
    pub(super) fn sent(&self) -> Result<()> {
        let kept = self.residual_file();
        let unsent = unsent(&kept);
        match unsent.exists() {
            true => std::fs::rename(&unsent, &kept).map_err(|e| Error::io(&kept, e)),
            false => Ok(()),
        }
    }

    /// The delta did not arrive: what was left of it is nobody's.
    ///
    /// Errors: [`Error::Io`].
    pub(super) fn not_sent(&self) -> Result<()> {
        let unsent = unsent(&self.residual_file());
        match unsent.exists() {
            true => std::fs::remove_file(&unsent).map_err(|e| Error::io(&unsent, e)),
            false => Ok(()),
        }
    }
}

fn unsent(kept: &Path) -> PathBuf {
    kept.with_extension("unsent")
}

fn unusable(what: &str, reason: &str) -> Error {
    Error::InvalidDelta { what: what.into(), reason: reason.into() }
}

/// What of an error may be told to the server: nothing of this machine.
pub(super) fn told(error: &Error) -> String {
    match error {
        Error::InvalidDelta { .. }
        | Error::BaseMismatch { .. }
        | Error::InvalidAdapter { .. }
        | Error::Training(_) => error.to_string(),
        _ => "the node could not do it".into(),
    }
}
