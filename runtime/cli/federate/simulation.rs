//! The rounds: every device trains and writes its delta, the server averages the files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;

use super::devices::Device;
use crate::delta::now;
use epiphyte::adapter::Adapter;
use epiphyte::engine::{CancelToken, Change, Engine};
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::{EvaluateOptions, Examples, evaluate};
use epiphyte::federated::aggregate::{
    AggregateOptions, Inputs, OptimizerState, Outcome, Trust, aggregate,
};
use epiphyte::federated::simulate::choose;
use epiphyte::federated::{Accept, DeltaOptions, Published, RoundPlan, Signer, SigningKey, start};
use epiphyte::format::write_whole;
use epiphyte::train::data::{Dataset, TrainLength};
use epiphyte::train::{TrainOptions, Trainer};

/// What the adapter is called: of its versions, and on the device.
const ID: &str = "simulation";

/// How well an adapter does on the examples to measure on.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Score {
    /// Mean, in nats a token.
    pub(super) loss: Option<f64>,
    /// Part of the answers, 0 to 1.
    pub(super) exact_match: Option<f64>,
}

/// What came of a round.
#[derive(Serialize)]
pub(super) struct Round {
    pub(super) round: u64,
    factors: &'static str,
    taken: usize,
    refused: usize,
    /// Mean of the devices' last losses.
    train_loss: f64,
    /// Deltas, all together.
    pub(super) uploaded_bytes: u64,
    /// The version, to each device of the round.
    pub(super) downloaded_bytes: u64,
    /// Norm of the mean of the deltas.
    mean_norm: Option<f64>,
    /// How far from the exact mean, as a part of it.
    mode_error: Option<f64>,
    pub(super) score: Option<Score>,
    seconds: f64,
}

/// A simulation, ready to run.
pub(super) struct Simulation {
    pub(super) engine: Arc<Engine>,
    pub(super) devices: Vec<Device>,
    pub(super) test: Option<Examples>,
    pub(super) how: AggregateOptions,
    /// Of a device's training; the round decides what is frozen.
    pub(super) options: TrainOptions,
    /// Devices of a round.
    pub(super) per_round: usize,
    pub(super) evaluate_every: u64,
    pub(super) server: SigningKey,
    pub(super) out: PathBuf,
    pub(super) cancel: CancelToken,
    pub(super) bar: ProgressBar,
}

impl Simulation {
    /// Version 1: of a fresh adapter, or of `init`.
    pub(super) fn begin(&self, init: &Adapter, plan: RoundPlan) -> Result<Published> {
        let version = start(ID, init, plan, &self.server)?;
        self.publish(&version)?;
        Ok(version)
    }

    /// One round from `parent`: the version after it, if there was one, and what came of it.
    ///
    /// Errors: [`Error::Cancelled`]; as [`Trainer::step`], [`Trainer::delta`] and [`aggregate`].
    pub(super) fn round(
        &mut self,
        parent: &Published,
        state: &mut OptimizerState,
    ) -> Result<(Option<Published>, Round)> {
        let (began, plan) = (Instant::now(), parent.manifest.next.clone());
        // As a device takes it.
        parent.accept(&Accept {
            trusted: &[self.server.public_key()],
            base_fingerprint: &self.engine.base().fingerprint,
            adapter: ID,
            current: parent.manifest.version.checked_sub(1).filter(|version| *version > 0),
            max_norm: None,
        })?;
        let (files, train_loss) = self.send(parent)?;
        let keys = self.devices.iter().map(|device| device.key.public_key());
        let trust = Trust { devices: Some(keys.collect()), workers: Vec::new(), now: now() };
        let inputs = Inputs { parent, options: &self.how, trust: &trust, files: &files };
        let Outcome { version, report } = aggregate(&inputs, plan.clone(), state, &self.server)?;
        write_whole(
            &self.out.join(format!("round-{}.json", plan.round)),
            report.to_json().as_bytes(),
        )?;
        version.as_ref().map_or(Ok(()), |version| self.publish(version))?;
        let due = version.as_ref().filter(|_| plan.round.is_multiple_of(self.evaluate_every));
        let adapter = due.map(|version| version.adapter(&self.engine.base().adapter_shape()));
        let score = adapter.transpose()?.map(|adapter| self.measure(Some(&adapter)));
        let round = Round {
            round: plan.round,
            factors: plan.factors.name(),
            taken: report.taken,
            refused: report.refused,
            train_loss,
            uploaded_bytes: report.n_bytes,
            downloaded_bytes: (parent.bytes().len() * files.len()) as u64,
            mean_norm: report.mean_norm,
            mode_error: report.mode_error.map(|error| error.relative()),
            score: score.transpose()?.flatten(),
            seconds: began.elapsed().as_secs_f64(),
        };
        Ok((version, round))
    }

    /// What each device of the round does: it trains and writes its delta. Gives the files, and the
    /// mean of the last losses.
    fn send(&mut self, parent: &Published) -> Result<(Vec<PathBuf>, f64)> {
        let plan = &parent.manifest.next;
        let init = parent.adapter(&self.engine.base().adapter_shape())?;
        let seed = self.options.seed ^ (plan.round << 32);
        let folder = self.out.join(format!("round-{}", plan.round));
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let (mut files, mut losses) = (Vec::new(), 0.0);
        for place in choose(self.devices.len(), self.per_round, seed) {
            let options = TrainOptions {
                freeze: plan.factors.frozen(),
                seed: seed.wrapping_add(place as u64),
                ..self.options.clone()
            };
            let (trainer, loss) = self.train(&self.devices[place].data, options, &init)?;
            let Device { key, residual, .. } = &mut self.devices[place];
            let kept = plan.quantisation.needs_residual().then_some(residual);
            let bytes = trainer.delta(parent, &DeltaOptions::default(), kept, key)?;
            let path = folder.join(format!("device-{place}.delta"));
            write_whole(&path, &bytes)?;
            files.push(path);
            losses += loss;
            self.bar.inc(1);
        }
        let mean = losses / files.len().max(1) as f64;
        Ok((files, mean))
    }

    fn publish(&self, version: &Published) -> Result<()> {
        let name = format!("version-{}.safetensors", version.manifest.version);
        write_whole(&self.out.join(name), version.bytes())
    }

    /// Trains from `init`; gives the last loss, too.
    pub(super) fn train(
        &self,
        data: &Arc<Dataset>,
        options: TrainOptions,
        init: &Adapter,
    ) -> Result<(Trainer, f64)> {
        let options = TrainOptions {
            rank: init.config.r,
            lora_alpha: init.config.lora_alpha,
            use_rslora: init.config.use_rslora,
            ..options
        };
        let mut trainer = Trainer::new(&self.engine, Arc::clone(data), options, Some(init))?;
        trainer.cancel = self.cancel.clone();
        let mut last = 0.0;
        while let Some(record) = trainer.step()? {
            last = record.loss;
        }
        Ok((trainer, last))
    }

    /// Loss and answers on the examples to measure on, if there are any.
    pub(super) fn measure(&self, adapter: Option<&Adapter>) -> Result<Option<Score>> {
        let Some(test) = &self.test else { return Ok(None) };
        let mut session = self.engine.session();
        if let Some(adapter) = adapter {
            self.engine.add_adapter(ID, adapter)?;
            session.set_adapters(&Change { adapters: &[(ID, 1.0)], ..Change::default() })?;
        }
        let options = EvaluateOptions { cancel: self.cancel.clone(), ..EvaluateOptions::default() };
        let measured = evaluate(&session, test, &options, &mut |_| {})?;
        if measured.cancelled {
            return Err(Error::Cancelled);
        }
        self.bar.inc(1);
        Ok(Some(Score { loss: measured.loss, exact_match: measured.exact_match() }))
    }

    /// What each device reaches alone, in as many steps as it takes in `rounds` rounds of all.
    pub(super) fn local(&self, init: &Adapter, rounds: u64) -> Result<Vec<Option<Score>>> {
        let options = self.longer(rounds);
        let alone = |device: &Device| {
            let (trainer, _) = self.train(&device.data, options.clone(), init)?;
            self.bar.inc(1);
            self.measure(Some(&trainer.adapter()?))
        };
        self.devices.iter().map(alone).collect()
    }

    /// What one run on all examples reaches that sees as many of them as all devices together.
    pub(super) fn central(&self, init: &Adapter, rounds: u64) -> Result<Option<Score>> {
        let mut all = Dataset::default();
        self.devices.iter().for_each(|device| all.append(Dataset::clone(&device.data)));
        let options = match self.options.duration {
            // A pass over all is one of every device.
            TrainLength::Epochs(_) => {
                self.longer((rounds * self.per_round as u64).div_ceil(self.devices.len() as u64))
            }
            _ => self.longer(rounds * self.per_round as u64),
        };
        let (trainer, _) = self.train(&Arc::new(all), options, init)?;
        self.bar.inc(1);
        self.measure(Some(&trainer.adapter()?))
    }

    fn longer(&self, times: u64) -> TrainOptions {
        let duration = match self.options.duration {
            TrainLength::Steps(steps) => TrainLength::Steps(steps.saturating_mul(times)),
            TrainLength::Epochs(epochs) => TrainLength::Epochs(epochs.saturating_mul(times)),
            TrainLength::Auto => TrainLength::Auto,
        };
        TrainOptions { duration, ..self.options.clone() }
    }
}
