//! `epiphyte train`: examples in, an adapter out. Ctrl-C ends a run so that it can go on later.

mod args;
mod setup;
pub(crate) mod svg;
mod view;

use std::time::Instant;

use serde::Serialize;

use super::{interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::error::{Error, Result};
use epiphyte::train::data::{DataReport, TrainLength};
use epiphyte::train::run::{End, Losses, Outcome};
use epiphyte::train::{RunFolder, TrainControl, TrainOptions, TrainRun};

pub(super) use args::{StepArgs, TrainArgs};
use setup::PlanReport;
use svg::loss_curves;
use view::View;

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    outcome: Outcome,
    seconds: f64,
    device: String,
    options: TrainOptions,
    data: DataReport,
    validation_data: Option<DataReport>,
    plan: PlanReport,
}

pub(super) fn run(args: &TrainArgs, gpu: GpuOptions) -> Result<()> {
    let out = &args.run.out;
    let folder = if args.run.resume { RunFolder::resume(out) } else { RunFolder::create(out) }?;
    let mut options = args.run_options();
    folder.fill(&mut options)?;
    args.check_files(options.validation.as_ref())?;
    let (engine, plan) = setup::prepare(args, &mut options, gpu)?;
    let start = Instant::now();
    let stop = interrupt::listen("stopping: a checkpoint is saved (Ctrl-C again leaves without)");
    let mut view = View::prepare();
    let mut run = TrainRun::open(&engine, folder, options)?;
    view.say_data(run.data());
    for note in run.notes() {
        let label = if note.is_warning() { "warning: " } else { "" };
        view.say(&format!("{label}{note}"));
    }
    view.say(&recipe(run.trainer().options(), run.trainer().total_steps()));
    let control = TrainControl::with_cancel(stop.token.clone());
    let outcome = run.run(&control, &mut |progress| view.update(progress));
    view.end();
    let outcome = outcome?;
    let report = Report {
        outcome,
        seconds: start.elapsed().as_secs_f64(),
        device: engine.device(),
        options: run.trainer().options().clone(),
        data: run.data().clone(),
        validation_data: run.validation_data().cloned(),
        plan,
    };
    let history = run.history();
    if let Some(path) = args.run.plot.as_ref().filter(|_| !history.training.is_empty()) {
        std::fs::write(path, loss_curves(history)?).map_err(|e| Error::io(path, e))?;
    }
    if args.json { output::json(&report) } else { print(&report) }?;
    // It did not do all it was asked to.
    if report.outcome.end == End::Interrupted { Err(Error::Cancelled) } else { Ok(()) }
}

/// What the steps are, in a line: also what nobody asked for.
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
    let (Report { outcome, seconds, .. }, Outcome { steps, total_steps, .. }) =
        (report, &report.outcome);
    let out = outcome.out.display();
    let losses = |name: &str, losses: &Losses| match (losses.first, losses.last, losses.best) {
        (Some(first), Some(last), Some(best)) => {
            format!(", {name} {first:.4} to {last:.4} (best {best:.4})")
        }
        _ => String::new(),
    };
    let losses = losses("loss", &outcome.loss) + &losses("validation", &outcome.validation_loss);
    let speed =
        outcome.tokens_per_second.map_or(String::new(), |tps| format!(", {tps:.0} tokens/s"));
    let memory = output::human_bytes(outcome.peak_device_bytes);
    output::line(&format!(
        "{steps} of {total_steps} steps in {seconds:.1} s{losses}{speed}, {memory} on the device"
    ))?;
    let which =
        if outcome.best_is_kept { "the adapter of the best validation" } else { "the adapter" };
    output::line(&match outcome.end {
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
        _ => {
            format!(
                "interrupted; {which} so far is in {out}, and the same command with \
                `--resume` goes on"
            )
        }
    })
}
