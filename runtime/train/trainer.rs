//! A training run, a step at a time: pause by not calling, cancel between submissions, resume from
//! a file.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::adapter::Adapter;
use crate::cancel::CancelToken;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::federated::{self, DeltaOptions, Published, Residual, Signer};
use crate::gpu::{Commands, Gpu, Tally};

use super::bench::{Tools, Workbench};
use super::buffers::{PARAMS, START};
use super::checkpoint::{self, Checkpoint, Position, RunId};
use super::data::batch::{BatchOptions, Loader, MicroBatch};
use super::data::{Cursor, Dataset};
use super::factors::{FactorOptions, Layout};
use super::options::TrainOptions;
use super::plan::Site;
use super::schedule::Schedule;
use super::signals::StepRecord;

/// Fine-tunes an adapter on the resident base, which serves on meanwhile.
///
/// A step is submitted in small units; what sessions of the same engine ask for gets its turn
/// between two of them.
pub struct Trainer {
    engine: Arc<Engine>,
    options: TrainOptions,
    bench: Workbench,
    loader: Loader,
    schedule: Schedule,
    data_fingerprint: String,
    /// The step that the optimiser's moments began after.
    moments_from: u64,
    bytes: u64,
    /// Stops a step between two submissions; the step is then as if it had not begun.
    pub cancel: CancelToken,
}

/// Why a device that failed the self-test of training is not trained on.
pub(crate) fn computes_wrong() -> Error {
    let what =
        "training on this device, whose driver computes gradients wrong (see `epiphyte doctor`),"
            .into();
    Error::Unsupported { what, hint: "try another driver or adapter".into() }
}

/// The checkpoint at `path`, which is of this run.
fn checkpoint_of(
    path: &Path,
    engine: &Engine,
    data: &Dataset,
    options: &TrainOptions,
) -> Result<Checkpoint> {
    let (checkpoint, base) = (Checkpoint::read(path)?, engine.base());
    let options = options.resolved(&base.config, data.examples.len());
    checkpoint.check(
        path,
        RunId { base: &base.fingerprint, data: &data.fingerprint(), options: &options },
    )?;
    Ok(checkpoint)
}

impl Trainer {
    /// A run over `data`, from fresh factors or those of `init`.
    ///
    /// Errors: [`Error::InvalidArgument`] naming a setting, or for a frozen factor of zeros; as
    /// [`Loader::new`]; [`Error::InvalidAdapter`] for an `init` of other modules; [`Error::OutOfMemory`];
    /// [`Error::Gpu`].
    pub fn new(
        engine: &Arc<Engine>,
        data: Arc<Dataset>,
        options: TrainOptions,
        init: Option<&Adapter>,
    ) -> Result<Self> {
        let trainer = Self::begin(engine, data, options)?;
        let layout = &trainer.bench.layout;
        let params = init.map_or_else(
            || Ok(layout.fresh(trainer.options.seed)),
            |adapter| layout.of_adapter(adapter),
        )?;
        layout.check_frozen(&params)?;
        let start = &params[..layout.trained()];
        trainer.bench.write(&[(PARAMS, &params), (START, start)])?;
        Ok(trainer)
    }

    /// Goes on from a checkpoint, bit for bit as the run that wrote it would have on the same
    /// device. `options` may have another duration: the learning rate is then, from here on, that
    /// of a run of so many steps.
    ///
    /// Errors: as [`Trainer::new`]; [`Error::BaseMismatch`], [`Error::InvalidFile`] for a
    /// checkpoint of another base, other settings or other data, or a damaged one;
    /// [`Error::InvalidArgument`] for fewer steps than are done.
    pub fn resume(
        engine: &Arc<Engine>,
        data: Arc<Dataset>,
        options: TrainOptions,
        path: &Path,
    ) -> Result<Self> {
        let checkpoint = checkpoint_of(path, engine, &data, &options)?;
        let mut trainer = Self::begin(engine, data, options)?;
        trainer.load(path, &checkpoint)?;
        Ok(trainer)
    }

    /// Goes on from `adapter`, which a run left that ended where the file of
    /// [`Trainer::save_position`] says. The optimiser's moments begin anew.
    ///
    /// Errors: as [`Trainer::resume`]; [`Error::InvalidAdapter`] for an adapter of other modules.
    pub fn extend(
        engine: &Arc<Engine>,
        data: Arc<Dataset>,
        options: TrainOptions,
        path: &Path,
        adapter: &Adapter,
    ) -> Result<Self> {
        let checkpoint = checkpoint_of(path, engine, &data, &options)?;
        let mut trainer = Self::new(engine, data, options, Some(adapter))?;
        trainer.go_to(&checkpoint)?;
        // Where the whole run began, not what is added to it.
        let vectors = trainer.bench.vectors();
        let start = vectors.iter().filter(|vector| vector.name == START);
        trainer.bench.write(&checkpoint.states(path, start)?)?;
        trainer.moments_from = checkpoint.position.cursor.step;
        Ok(trainer)
    }

    /// Puts the run where a checkpoint of it stands; also after its device was lost.
    ///
    /// Errors: as [`Trainer::resume`]; the run is then as it was.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let checkpoint = Checkpoint::read(path)?;
        checkpoint.check(path, self.id())?;
        self.load(path, &checkpoint)
    }

    fn load(&mut self, path: &Path, checkpoint: &Checkpoint) -> Result<()> {
        let vectors = self.bench.vectors();
        let states = checkpoint.states(path, &vectors)?;
        self.go_to(checkpoint)?;
        self.bench.renew_state()?;
        self.bench.write(&states)
    }

    fn go_to(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let Position { cursor, moments_from } = checkpoint.position;
        if cursor.step > self.total_steps() {
            let reason = format!(
                "{} in all, but {} are done; give more, or start anew",
                self.total_steps(),
                cursor.step
            );
            return Err(Error::InvalidArgument { name: "steps", reason });
        }
        self.loader = self.loader.at(cursor)?;
        self.moments_from = moments_from;
        Ok(())
    }

    fn id(&self) -> RunId<'_> {
        RunId {
            base: &self.engine.base().fingerprint,
            data: &self.data_fingerprint,
            options: &self.options,
        }
    }

    /// The first step of a run, without its factors.
    fn begin(engine: &Arc<Engine>, data: Arc<Dataset>, options: TrainOptions) -> Result<Self> {
        options.check()?;
        if !engine.trains() {
            return Err(computes_wrong());
        }
        let (gpu, base) = (engine.gpu(), engine.base());
        let options = options.resolved(&base.config, data.examples.len());
        let shape = options.shape()?;
        let data_fingerprint = data.fingerprint();
        let batches = BatchOptions {
            batch_size: options.step_examples(),
            seq_len: options.seq_len,
            micro_batch: options.micro_batch,
            seed: options.seed,
            duration: options.duration,
        };
        let loader = Loader::new(data, batches, Cursor::default())?;
        let rate = options.learning_rate.unwrap_or_default();
        let schedule = Schedule::new(options.decay, rate, options.warmup, loader.total_steps())?;
        let layout = Layout::new(&base.adapter_shape(), &options)?;
        let beside = Tally::new(gpu.caps());
        let bytes = Site { config: &base.config, beside }.training(&shape)?.total_bytes();
        let bench = Workbench::new(engine, shape, layout)?;
        let (engine, cancel) = (Arc::clone(engine), CancelToken::default());
        // Compiled and allocated now, not at the first step.
        bench.work(&cancel, &options, |_, _, _| Ok(()))?;
        engine.save_pipelines();
        Ok(Self {
            engine,
            options,
            bench,
            loader,
            schedule,
            data_fingerprint,
            moments_from: 0,
            bytes,
            cancel,
        })
    }

    /// Takes one step of the optimiser; `None` when the run is over. One that is stopped because
    /// the model has to make room is taken again.
    ///
    /// Errors: [`Error::Cancelled`] and [`Error::Background`], and the step can be taken again;
    /// [`Error::DeviceLost`], and factors and moments with it: [`Trainer::restore`] goes on from a
    /// checkpoint, where a device could be opened again; [`Error::Training`] when loss
    /// or gradients are no numbers: the factors are as they were after the step before;
    /// [`Error::Gpu`].
    pub fn step(&mut self) -> Result<Option<StepRecord>> {
        let start = Instant::now();
        let before = self.loader.clone();
        let Some(step) = self.loader.next_step() else { return Ok(None) };
        let number = self.loader.cursor().step;
        let lr = self.schedule.lr(number - 1);
        let update = |commands: &mut Commands<'_>, tools: &Tools| {
            let moment = number - self.moments_from;
            tools.update.record(commands, &self.bench.layout, &self.options, lr, moment);
        };
        let taken = self.bench.work(&self.cancel, &self.options, |gpu, tools, cancel| {
            let taken = take(gpu, tools, &step.micro_batches, cancel, update)?;
            if !(taken.0.is_finite() && taken.1.is_finite()) {
                tools.clear_gradients(gpu);
            }
            Ok(taken)
        });
        if !matches!(taken, Ok((loss, norm)) if loss.is_finite() && norm.is_finite()) {
            // As if it had not begun.
            self.loader = before;
        }
        let (loss, norm) = taken?;
        if !(loss.is_finite() && norm.is_finite()) {
            let reason = format!(
                "step {number}: the loss or its gradient is not a number; a smaller learning rate \
                may help"
            );
            return Err(Error::Training(reason));
        }
        Ok(Some(StepRecord {
            step: number,
            epoch: step.epoch,
            loss,
            lr,
            tokens: step.micro_batches.iter().map(MicroBatch::len).sum(),
            seconds: start.elapsed().as_secs_f64(),
            grad_norm: Some(norm),
            validation_loss: None,
        }))
    }

    /// Mean loss of `batches` by their weights, in nats a token.
    ///
    /// Errors: [`Error::Cancelled`]; [`Error::InvalidArgument`] when nothing has a weight, or a
    /// batch is longer than those of the run; [`Error::Gpu`].
    pub fn evaluate(&self, batches: &[MicroBatch]) -> Result<f64> {
        let weight: f64 = batches.iter().map(MicroBatch::weight).sum();
        let most = self.options.micro_batch * self.options.seq_len;
        if weight <= 0.0 || batches.iter().any(|batch| batch.len() > most) {
            let reason = format!("nothing to measure in batches of at most {most} tokens");
            return Err(Error::InvalidArgument { name: "validation", reason });
        }
        self.bench.work(&self.cancel, &self.options, |gpu, tools, cancel| {
            let loss = |batch| {
                cancel.check()?;
                tools.graph.loss(gpu, batch, weight, cancel)
            };
            batches.iter().map(loss).sum()
        })
    }

    /// The factors as they are now.
    ///
    /// Errors: [`Error::Gpu`].
    pub fn adapter(&self) -> Result<Adapter> {
        let params = self.bench.read(|name| name == PARAMS)?;
        params.first().map_or_else(|| self.as_adapter(&[]), |(_, params)| self.as_adapter(params))
    }

    /// What training changed since `parent`, which it began from, as a signed file to upload: by
    /// the plan that the version carries. The factors of its round are what should have been
    /// trained ([`TrainOptions::freeze`]). Without a count of examples, the run's own is told.
    ///
    /// Errors: as [`federated::make`] and [`Trainer::adapter`].
    pub fn delta(
        &self,
        parent: &Published,
        options: &DeltaOptions,
        residual: Option<&mut Residual>,
        signer: &dyn Signer,
    ) -> Result<Vec<u8>> {
        let examples =
            if options.examples > 0 { options.examples } else { self.loader.examples() as u64 };
        let options = DeltaOptions { examples, ..*options };
        federated::make(parent, &self.adapter()?, &options, residual, signer)
    }

    /// Values for every factor, as an adapter.
    fn as_adapter(&self, values: &[f32]) -> Result<Adapter> {
        let base = self.engine.base();
        let options = FactorOptions::new(&self.options, &base.fingerprint)?;
        self.bench.layout.adapter(values, &options, &base.adapter_shape())
    }

    /// Writes everything that [`Trainer::resume`] needs to `path`: whole or not at all.
    ///
    /// Errors: [`Error::Io`]; [`Error::Gpu`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let states = self.bench.read(|_| true)?;
        checkpoint::write(path, &states, self.id(), self.position())
    }

    /// Writes to `path` where the run stands, without its numbers, but where it began if that
    /// pulls: what [`Trainer::extend`] needs beside the adapter.
    ///
    /// Errors: [`Error::Io`]; [`Error::Gpu`].
    pub fn save_position(&self, path: &Path) -> Result<()> {
        let start = match self.options.proximal_mu > 0.0 {
            true => self.bench.read(|name| name == START)?,
            false => Vec::new(),
        };
        checkpoint::write(path, &start, self.id(), self.position())
    }

    fn position(&self) -> Position {
        Position { cursor: self.cursor(), moments_from: self.moments_from }
    }

    /// Gradients of the factors after a pass over `batches` and no update, without a proximal term:
    /// `A` and `B` of each module, as an adapter. Those of a frozen factor are zeros.
    ///
    /// Errors: as [`Trainer::step`].
    pub fn gradients(&self, batches: &[MicroBatch]) -> Result<(f64, Adapter)> {
        let weight: f64 = batches.iter().map(MicroBatch::weight).sum();
        let never = CancelToken::default();
        let (loss, gradients) = self.bench.work(&never, &self.options, |gpu, tools, cancel| {
            let losses =
                batches.iter().map(|batch| tools.graph.backward(gpu, batch, weight, cancel));
            let loss = losses.sum::<Result<f64>>()?;
            let layout = &self.bench.layout;
            let mut gradients: Vec<f32> =
                gpu.read(&tools.graph.buffers.grads, 0, layout.trained())?;
            gradients.resize(layout.len(), 0.0);
            tools.clear_gradients(gpu);
            Ok((loss, gradients))
        })?;
        Ok((loss, self.as_adapter(&gradients)?))
    }

    /// The settings of the run, with what was left to the recipe decided.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// The engine that it trains on.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Where the run stands.
    pub fn cursor(&self) -> Cursor {
        self.loader.cursor()
    }

    /// Learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate_at(self.cursor().step)
    }

    /// That of the step after `step` others.
    pub(super) fn learning_rate_at(&self, step: u64) -> f64 {
        self.schedule.lr(step)
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.loader.total_steps()
    }

    /// Parameters that are trained.
    pub fn parameters(&self) -> usize {
        self.bench.layout.trained()
    }

    /// Bytes on the device, beside the base's.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Loss and norm of a step's gradient, which `update` records the use of unless the loss is no
/// number.
fn take(
    gpu: &Gpu,
    tools: &Tools,
    batches: &[MicroBatch],
    cancel: &CancelToken,
    update: impl Fn(&mut Commands<'_>, &Tools),
) -> Result<(f64, f64)> {
    let weight: f64 = batches.iter().map(MicroBatch::weight).sum();
    if weight <= 0.0 {
        // Nothing to learn from, and so nothing to forget by weight decay either.
        return Ok((0.0, 0.0));
    }
    let mut loss = 0.0_f64;
    for batch in batches {
        loss += tools.graph.backward(gpu, batch, weight, cancel)?;
        // What is asked for in between counts even where a pass is one submission.
        cancel.check()?;
    }
    if !loss.is_finite() {
        return Ok((loss, f64::NAN));
    }
    let mut commands = Commands::new(gpu)?;
    update(&mut commands, tools);
    commands.submit();
    let norm: Vec<f32> = gpu.read(&tools.graph.buffers.norm[1], 0, 1)?;
    gpu.check()?;
    Ok((loss, f64::from(norm[0])))
}
