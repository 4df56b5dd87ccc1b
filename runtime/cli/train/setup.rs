//! From arguments to a loaded model and settings that fit: the memory is said before any is taken.

use std::sync::Arc;

use serde::Serialize;

use super::args::TrainArgs;
use crate::output;
use crate::plan::{ClassReport, classes, table};
use epiphyte::GpuOptions;
use epiphyte::adapter::{AdaptedBase, Adapter, BaseWeights};
use epiphyte::base::ModelConfig;
use epiphyte::engine::Engine;
use epiphyte::error::Result;
use epiphyte::format::gguf::Gguf;
use epiphyte::train::RunOptions;
use epiphyte::train::plan::{Choice, Wish};
use epiphyte::train::setup::TrainSetup;

/// The memory of a run.
#[derive(Serialize)]
pub(super) struct PlanReport {
    pub(super) total_bytes: u64,
    budget_bytes: Option<u64>,
    classes: Vec<ClassReport>,
    /// What the budget decided.
    decided: Vec<String>,
}

/// Opens device and model for a run that fits; `options` get the settings and what `--init` names.
///
/// Errors: as [`Gguf::open`], [`Adapter::load`], [`RunOptions::check`], [`TrainSetup::open`] and
/// [`TrainSetup::load`].
pub(super) fn prepare(
    args: &TrainArgs,
    options: &mut RunOptions,
    gpu: GpuOptions,
) -> Result<(Arc<Engine>, PlanReport)> {
    let gguf = Gguf::open(args.model.path()?)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    config.check_tensors(&gguf)?;
    let base = AdaptedBase { shape: config.base_shape(), weights: BaseWeights::Open(&gguf) };
    let load = |path: &std::path::PathBuf| Adapter::load(path, base);
    options.init = args.lora.init.as_ref().map(load).transpose()?;
    let context = config.max_position_embeddings;
    options.train = args.options(options.init.as_ref(), options.train.duration, context);
    options.check(context)?;
    let chat_template = args.data.template.read()?;
    let budget_bytes = args.run.memory_budget;
    let wish = Wish {
        options: options.train.clone(),
        free: args.shape.free(),
        budget_bytes,
        kv_tokens: 0,
        kv_f32: false,
    };
    let mut bar = output::LoadingBar::default();
    let setup = TrainSetup::open(&gguf, gpu, wish, &mut |progress| bar.update(progress));
    drop(bar);
    let setup = setup?;
    let plan = report(&setup.choice, budget_bytes);
    options.train = setup.choice.options.clone();
    let mut bar = output::LoadingBar::default();
    let engine = setup.load(chat_template, &mut |progress| bar.update(progress))?;
    drop(bar);
    if let Some(init) = options.init.as_mut().filter(|_| args.lora.force) {
        start_from_any_base(init, &engine);
    }
    Ok((engine, plan))
}

/// Says what fits, and returns it.
fn report(choice: &Choice, budget_bytes: Option<u64>) -> PlanReport {
    let Choice { plan, decided, .. } = choice;
    let report = PlanReport {
        total_bytes: plan.total_bytes(),
        budget_bytes,
        classes: classes(plan),
        decided: decided.clone(),
    };
    table(&report.classes, budget_bytes).iter().for_each(|line| output::note(line));
    if let Some(budget) = budget_bytes {
        output::note(&format!("within {}: {}", output::human_bytes(budget), decided.join("; ")));
    }
    report
}

/// What `--force` does.
fn start_from_any_base(init: &mut Adapter, engine: &Engine) {
    let got = &engine.base().fingerprint;
    if let Some(made_for) = init.base_fingerprint.take().filter(|made_for| made_for != got) {
        output::note(&format!(
            "warning: --init was made for base model {made_for}, but {got} is loaded"
        ));
    }
}
