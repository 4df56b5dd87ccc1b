//! `epiphyte train`: examples in, an adapter out. Ctrl-C ends a run so that it can go on later.

mod args;
mod folder;
mod given;
mod lock;
mod run;
mod setup;
mod view;

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::{interrupt, output};
use crate::error::{Error, Result};
use crate::gpu::GpuOptions;
use crate::gpu::human_bytes;
use crate::train::TrainOptions;
use crate::train::data::{DataReport, TrainLength};
use crate::train::signals::{Warning, loss_curves};

pub(super) use args::TrainArgs;
use folder::Folder;
use run::{End, Run};
use setup::PlanReport;

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    end: End,
    /// Done so far, in this run and those it goes on from.
    steps: u64,
    total_steps: u64,
    resumed_from: Option<u64>,
    trainable_parameters: usize,
    /// Nats a token.
    loss: Losses,
    /// The same of the data kept for it; null where it was never measured.
    validation_loss: Losses,
    /// The adapter in the folder is that of the best validation.
    best_is_kept: bool,
    /// Of this run.
    tokens: usize,
    tokens_per_second: Option<f64>,
    seconds: f64,
    peak_device_bytes: u64,
    device: String,
    options: TrainOptions,
    data: DataReport,
    validation_data: Option<DataReport>,
    plan: PlanReport,
    warnings: Vec<Warning>,
}

#[derive(Serialize)]
struct Losses {
    first: Option<f64>,
    last: Option<f64>,
    best: Option<f64>,
    best_step: Option<u64>,
}

impl Losses {
    fn of(losses: &[(u64, f64)]) -> Self {
        let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        Self {
            first: losses.first().map(|(_, loss)| *loss),
            last: losses.last().map(|(_, loss)| *loss),
            best: best.map(|(_, loss)| *loss),
            best_step: best.map(|(step, _)| *step),
        }
    }
}

pub(super) fn run(mut args: TrainArgs, gpu: GpuOptions) -> Result<()> {
    let folder = Folder::check(&args.run.out, args.run.resume)?;
    if let Some(given) = folder.resumed() {
        given.fill(&mut args)?;
    }
    args.check_files()?;
    let (setup, plan) = setup::prepare(&args, gpu)?;
    let data = setup::data(&args, &setup)?;
    let (data_report, validation_data) =
        (data.report.clone(), data.validation.as_ref().map(|data| data.report.clone()));
    note_data(&data_report);
    let start = Instant::now();
    let stop = interrupt::listen("stopping: a checkpoint is saved (Ctrl-C again leaves without)");
    let mut run = Run::start(&args, folder, setup, data)?;
    run.view.say(&recipe(run.trainer.options(), run.trainer.total_steps()));
    let end = run.train(&stop.token)?;
    let report = Report {
        out: args.run.out.clone(),
        end,
        steps: run.trainer.cursor().step,
        total_steps: run.trainer.total_steps(),
        resumed_from: run.resumed_from,
        trainable_parameters: run.trainer.parameters(),
        loss: Losses::of(&run.history.training),
        validation_loss: Losses::of(&run.history.validation),
        best_is_kept: run.keeps_best(),
        tokens: run.view.tokens(),
        tokens_per_second: run.view.tokens_per_second(),
        seconds: start.elapsed().as_secs_f64(),
        peak_device_bytes: run.peak_bytes,
        device: run.trainer.engine().gpu().description(),
        options: run.trainer.options().clone(),
        data: data_report,
        validation_data,
        plan,
        warnings: run.view.warned().to_vec(),
    };
    if let Some(path) = args.run.plot.as_ref().filter(|_| !run.history.training.is_empty()) {
        std::fs::write(path, loss_curves(&run.history)?).map_err(|e| Error::io(path, e))?;
    }
    if args.json { output::json(&report) } else { print(&report) }?;
    // It did not do all it was asked to.
    if end == End::Interrupted { Err(Error::Cancelled) } else { Ok(()) }
}

fn note_data(report: &DataReport) {
    let DataReport {
        records,
        examples,
        tokens,
        trained_tokens,
        cut,
        dropped,
        skipped,
        first_skipped,
    } = report;
    output::note(&format!(
        "{records} records, {examples} examples, {tokens} tokens, {trained_tokens} of them with a \
        loss"
    ));
    if cut + dropped + skipped > 0 {
        output::note(&format!(
            "{cut} examples cut, {dropped} left out since no answer was left, {skipped} lines \
            skipped"
        ));
    }
    if let Some(first) = first_skipped {
        output::note(&format!("the first line skipped: {first}"));
    }
}

/// What the steps are, in a line.
fn recipe(options: &TrainOptions, steps: u64) -> String {
    let examples = options.step_examples();
    let rate = options.learning_rate.unwrap_or_default();
    let passes = match options.duration {
        TrainLength::Epochs(epochs) => format!("{epochs} passes over the data, "),
        _ => String::new(),
    };
    format!("{passes}{steps} steps of {examples} examples, rate {rate:.2e}, rank {}", options.rank)
}

fn print(report: &Report) -> Result<()> {
    let Report { steps, total_steps, seconds, .. } = report;
    let out = report.out.display();
    let losses = |name: &str, Losses { first, last, best, .. }: &Losses| match (first, last, best) {
        (Some(first), Some(last), Some(best)) => {
            format!(", {name} {first:.4} to {last:.4} (best {best:.4})")
        }
        _ => String::new(),
    };
    let losses = losses("loss", &report.loss) + &losses("validation", &report.validation_loss);
    let speed =
        report.tokens_per_second.map_or(String::new(), |tps| format!(", {tps:.0} tokens/s"));
    let memory = human_bytes(report.peak_device_bytes);
    output::line(&format!(
        "{steps} of {total_steps} steps in {seconds:.1} s{losses}{speed}, {memory} on the device"
    ))?;
    let which =
        if report.best_is_kept { "the adapter of the best validation" } else { "the adapter" };
    output::line(&match report.end {
        End::Finished => format!("{which} is in {out}"),
        End::EarlyStop => format!(
            "stopped since the validation loss improves no more; {which} is \
            in {out}"
        ),
        End::Interrupted if *steps == 0 => {
            "interrupted before the first step: there is no adapter yet, and the same command \
            with `--resume` goes on"
                .into()
        }
        End::Interrupted => {
            format!(
                "interrupted; {which} so far is in {out}, and the same command with \
                `--resume` goes on"
            )
        }
    })
}
