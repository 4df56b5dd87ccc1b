//! From arguments to a loaded model and settings that fit: the memory is added up and said before any is taken.

use std::fs::File;
use std::sync::Arc;

use serde::Serialize;

use super::args::{DataArgs, TrainArgs, ValidationArg};
use crate::adapter::{AdaptedBase, Adapter, BaseWeights};
use crate::cli::output;
use crate::cli::plan::{ClassReport, TRAIN_CONTEXT, classes, table};
use crate::engine::{Engine, EngineOptions, pass_rows};
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::gpu::{Gpu, GpuOptions};
use crate::model::config::ModelConfig;
use crate::selftest;
use crate::train::TrainOptions;
use crate::train::buffers::TrainShape;
use crate::train::data::{DataReport, Dataset, Encoder};
use crate::train::plan::{Free, MemoryPlan, Model, engine_bytes, fit, human_bytes, weight_bytes};
use crate::train::trainer::computes_wrong;

/// What a run starts with.
pub(super) struct Setup {
    pub(super) engine: Arc<Engine>,
    pub(super) options: TrainOptions,
    pub(super) init: Option<Adapter>,
}

/// The memory of a run.
#[derive(Serialize)]
pub(super) struct PlanReport {
    pub(super) total_bytes: u64,
    budget_bytes: Option<u64>,
    classes: Vec<ClassReport>,
    /// What the budget changed.
    lowered: Vec<String>,
}

/// Opens device and model for a run that fits.
///
/// Errors: as [`Gguf::open`], [`Adapter::load`], [`TrainOptions::check`], [`Gpu::open`], [`fit`], [`Engine::from_gguf`].
pub(super) fn prepare(args: &TrainArgs, gpu: GpuOptions) -> Result<(Setup, PlanReport)> {
    let gguf = Gguf::open(args.model.path()?)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let base = AdaptedBase { shape: config.base_shape(), weights: BaseWeights::Open(&gguf) };
    let load = |path: &std::path::PathBuf| Adapter::load(path, base);
    let init = args.lora.init.as_ref().map(load).transpose()?;
    let mut options = args.options(init.as_ref())?;
    if args.data.seq_len.is_none() {
        options.seq_len = options.seq_len.min(config.max_position_embeddings);
    }
    // What is wrong whatever the device is refused before one is opened.
    options.shape(&config, false)?.check(&config)?;
    args.data_options(options.seq_len).check(config.max_position_embeddings)?;
    File::open(&args.data.path).map_err(|e| Error::io(&args.data.path, e))?;
    let mut gpu = Gpu::open(gpu)?;
    if !selftest::run(&mut gpu)?.trains {
        return Err(computes_wrong());
    }
    let plan = plan(args, &gguf, &config, &gpu, &mut options)?;
    let engine_options = EngineOptions { context: Some(TRAIN_CONTEXT), ..EngineOptions::default() };
    let mut bar = output::LoadingBar::default();
    let engine = Engine::from_gguf(gpu, &gguf, &engine_options, &mut |done, all| bar.update(done, all))?;
    if let Some(made_for) = init.as_ref().and_then(|init| init.base_fingerprint.clone()) {
        let got = engine.base().fingerprint.clone();
        if made_for != got {
            return Err(Error::BaseMismatch { expected: made_for, got });
        }
    }
    Ok((Setup { engine, options, init }, plan))
}

/// Adds the memory up, lowers `options` to the budget, and says so.
fn plan(
    args: &TrainArgs,
    gguf: &Gguf,
    config: &ModelConfig,
    gpu: &Gpu,
    options: &mut TrainOptions,
) -> Result<PlanReport> {
    let kv_element_bytes = if gpu.caps().f16 { 2 } else { 4 };
    let mut model = Model { config, weight_bytes: weight_bytes(gguf, config)?, kv_element_bytes, engine_bytes: 0 };
    model.engine_bytes = engine_bytes(&model, pass_rows(gpu.caps()), TRAIN_CONTEXT);
    let mut shape = options.shape(config, gpu.caps().cooperative_matrix.is_some())?;
    let mut lowered = Vec::new();
    if let Some(budget) = args.run.memory_budget {
        let wanted = match args.steps.recompute {
            Some(_) => shape.clone(),
            None => TrainShape { checkpoint_every: None, ..shape.clone() },
        };
        let (checkpoint, seq_len) = (args.steps.recompute.is_none(), args.data.seq_len.is_none());
        shape = fit(&model, &wanted, Free { micro_batch: true, checkpoint, seq_len }, 0, budget)?.0;
        lowered = lower(options, &mut shape);
    }
    let plan = MemoryPlan::training(&model, &shape, 0)?;
    let (total_bytes, budget_bytes) = (plan.total_bytes(), args.run.memory_budget);
    let report = PlanReport { total_bytes, budget_bytes, classes: classes(&plan), lowered };
    table(&report.classes, budget_bytes).iter().for_each(|line| output::note(line));
    if let Some(budget) = budget_bytes.filter(|_| !report.lowered.is_empty()) {
        output::note(&format!("to fit {}: {}", human_bytes(budget), report.lowered.join("; ")));
    }
    Ok(report)
}

/// Takes over what fits; a step keeps its rows, in more batches.
fn lower(options: &mut TrainOptions, shape: &mut TrainShape) -> Vec<String> {
    let mut said = Vec::new();
    let rows = options.micro_batch.saturating_mul(options.accumulation);
    if shape.micro_batch < options.micro_batch {
        let divides = |batch: &usize| rows.is_multiple_of(*batch);
        shape.micro_batch = (1..=shape.micro_batch).rev().find(divides).unwrap_or(1);
        let accumulation = rows / shape.micro_batch;
        said.push(format!(
            "batches of {} instead of {}, {accumulation} a step",
            shape.micro_batch, options.micro_batch
        ));
        (options.micro_batch, options.accumulation) = (shape.micro_batch, accumulation);
    }
    if shape.seq_len < options.seq_len {
        said.push(format!("rows of {} tokens instead of {}: longer examples are cut", shape.seq_len, options.seq_len));
        options.seq_len = shape.seq_len;
    }
    if let Some(k) = shape.checkpoint_every {
        said.push(format!("activations computed again in runs of {k} layers"));
    }
    options.checkpoint_every = shape.checkpoint_every;
    said
}

/// What the run learns from.
pub(super) struct Data {
    pub(super) train: Dataset,
    pub(super) validation: Option<Dataset>,
    /// What became of the file.
    pub(super) report: DataReport,
}

/// Reads the data to train on, and that to validate on.
///
/// Errors: as [`Dataset::read_jsonl`], [`Dataset::read_text`] and [`Dataset::split`].
pub(super) fn data(args: &TrainArgs, setup: &Setup) -> Result<Data> {
    let (base, options) = (setup.engine.base(), &setup.options);
    let context = base.config.max_position_embeddings;
    let data_options = args.data_options(options.seq_len);
    let encoder = Encoder::new(&base.tokenizer, &base.chat_template, context, data_options)?;
    let DataArgs { path, text, validation, .. } = &args.data;
    let read = |path| if *text { Dataset::read_text(path, &encoder) } else { Dataset::read_jsonl(path, &encoder) };
    let data = read(path)?;
    let report = data.report.clone();
    let (train, validation) = match validation {
        None => (data, None),
        Some(ValidationArg::File(path)) => (data, Some(read(path)?)),
        Some(ValidationArg::Part(part)) => {
            let (train, validation) = data.split(*part, options.seed)?;
            (train, Some(validation))
        }
    };
    Ok(Data { train, validation, report })
}
