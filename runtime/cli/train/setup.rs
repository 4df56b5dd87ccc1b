//! From arguments to a loaded model and settings that fit: the memory is added up and said before
//! any is taken.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::args::{DataArgs, TrainArgs, ValidationArg};
use crate::adapter::{AdaptedBase, Adapter, BaseWeights};
use crate::base::ModelConfig;
use crate::cli::output;
use crate::cli::plan::{ClassReport, classes, table};
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::gpu::{Gpu, GpuOptions, human_bytes};
use crate::selftest;
use crate::train::data::{DataReport, Dataset, Encoder, TrainLength, Validation};
use crate::train::plan::{Choice, TRAIN_CONTEXT, Wish, choose};
use crate::train::trainer::computes_wrong;
use crate::train::{TrainOptions, recipe};

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
    /// What the budget decided.
    decided: Vec<String>,
}

/// Opens device and model for a run that fits.
///
/// Errors: as [`Gguf::open`], [`Adapter::load`], [`TrainOptions::check`], [`Gpu::open`], [`fit`],
/// [`Engine::from_gguf`].
pub(super) fn prepare(args: &TrainArgs, gpu: GpuOptions) -> Result<(Setup, PlanReport)> {
    let gguf = Gguf::open(args.model.path()?)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let base = AdaptedBase { shape: config.base_shape(), weights: BaseWeights::Open(&gguf) };
    let load = |path: &std::path::PathBuf| Adapter::load(path, base);
    let init = args.lora.init.as_ref().map(load).transpose()?;
    let options = args.options(init.as_ref(), config.max_position_embeddings)?;
    // What is wrong whatever the device is refused before one is opened.
    options.shape()?.check(&config)?;
    args.data_options(&options).check(config.max_position_embeddings)?;
    // A pipe can be opened once.
    let piped =
        |path: &Path| path == Path::new("-") || path.metadata().is_ok_and(|of| !of.is_file());
    if !piped(&args.data.path) {
        File::open(&args.data.path).map_err(|e| Error::io(&args.data.path, e))?;
    }
    let chat_template = args.data.template.read()?;
    let mut gpu = Gpu::open(gpu)?;
    let mut bar = output::LoadingBar::default();
    let tested = selftest::run_reporting(&mut gpu, &mut |progress| bar.update(progress));
    drop(bar);
    if !tested?.trains {
        return Err(computes_wrong());
    }
    let (options, plan) = plan(args, &gguf, &config, &gpu, options)?;
    let engine_options =
        EngineOptions { context: Some(TRAIN_CONTEXT), chat_template, ..EngineOptions::default() };
    let mut bar = output::LoadingBar::default();
    let engine =
        Engine::from_gguf(gpu, &gguf, &engine_options, &mut |progress| bar.update(progress))?;
    if let Some(made_for) = init.as_ref().and_then(|init| init.base_fingerprint.clone()) {
        let got = engine.base().fingerprint.clone();
        if made_for != got && !args.lora.force {
            return Err(Error::BaseMismatch { expected: made_for, got });
        }
        if made_for != got {
            output::note(&format!(
                "warning: --init was made for base model {made_for}, but {got} is loaded"
            ));
        }
    }
    Ok((Setup { engine, options, init }, plan))
}

/// Adds the memory up, takes what fits the budget, and says so.
fn plan(
    args: &TrainArgs,
    gguf: &Gguf,
    config: &ModelConfig,
    gpu: &Gpu,
    options: TrainOptions,
) -> Result<(TrainOptions, PlanReport)> {
    let budget_bytes = args.run.memory_budget;
    let wish = Wish { options, free: args.shape.free(), budget_bytes, kv_tokens: 0, kv_f32: false };
    let Choice { options, plan, decided, .. } = choose(gguf, config, gpu.caps(), wish)?;
    let report = PlanReport {
        total_bytes: plan.total_bytes(),
        budget_bytes,
        classes: classes(&plan),
        decided,
    };
    table(&report.classes, budget_bytes).iter().for_each(|line| output::note(line));
    if let Some(budget) = budget_bytes {
        output::note(&format!("within {}: {}", human_bytes(budget), report.decided.join("; ")));
    }
    Ok((options, report))
}

/// What the run learns from.
pub(super) struct Data {
    pub(super) train: Dataset,
    pub(super) validation: Option<Dataset>,
    /// What of the file is for validation.
    pub(super) held_out: Option<Validation>,
    /// See [`super::args::RunArgs::patience`].
    pub(super) patience: Option<u32>,
    /// What became of the file.
    pub(super) report: DataReport,
}

/// Reads the data to train on, and that to validate on.
///
/// Errors: as [`Dataset::read_jsonl`], [`Dataset::read_text`] and [`Dataset::split`].
pub(super) fn data(args: &TrainArgs, setup: &Setup) -> Result<Data> {
    let (base, options) = (setup.engine.base(), &setup.options);
    let context = base.config.max_position_embeddings;
    let data_options = args.data_options(options);
    let encoder = Encoder::new(&base.tokenizer, &base.chat_template, context, data_options)?;
    let DataArgs { path, text, validation, .. } = &args.data;
    let read = |path| {
        if *text { Dataset::read_text(path, &encoder) } else { Dataset::read_jsonl(path, &encoder) }
    };
    let data = read(path)?;
    let report = data.report.clone();
    let held_out = match validation {
        None if options.duration == TrainLength::Auto => recipe::validation(report.records),
        None | Some(ValidationArg::None | ValidationArg::File(_)) => None,
        Some(ValidationArg::Part(part)) => Some(*part),
    };
    let (train, validation) = match (held_out, validation) {
        (Some(part), _) => {
            let (train, validation) = data.split(part, options.seed)?;
            (train, Some(validation))
        }
        (None, Some(ValidationArg::File(path))) => (data, Some(read(path)?)),
        (None, _) => (data, None),
    };
    let validation = match data_options.prompt_loss_weight {
        Some(1.0) => validation,
        _ => validation.map(Dataset::answers_only),
    };
    let by_recipe = args.data.validation.is_none() && validation.is_some();
    let patience = args.run.patience.or(by_recipe.then_some(recipe::PATIENCE));
    if validation.is_none() && (args.run.patience.is_some() || args.run.evaluate_every.is_some()) {
        let name = if args.run.patience.is_some() { "patience" } else { "evaluate-every" };
        let reason = "there is nothing to validate on; add `--validation 0.1`, or a file".into();
        return Err(Error::InvalidArgument { name, reason });
    }
    Ok(Data { train, validation, held_out, patience, report })
}
