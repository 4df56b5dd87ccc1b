//! What one sees of a run: a bar in a terminal, else a line now and then.

use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar};

use crate::output;
use epiphyte::train::data::DataReport;
use epiphyte::train::run::{TrainPhase, TrainProgress};

/// Lines of a run where stderr is no terminal, about.
const LINES: u64 = 20;
/// What goes on before there are steps to show.
const FIRST: &str = "first step: the device gets ready";
/// How often a bar shows that it lives, before there are steps.
const TICK: Duration = Duration::from_millis(200);
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of the little curve.
const COLUMNS: usize = 16;

pub(super) struct View {
    bar: ProgressBar,
    /// The run's first step is still to come.
    waits: bool,
}

impl View {
    /// Of a run whose kernels are being made.
    pub(super) fn prepare() -> Self {
        let bar = output::bar(0, "{spinner} {msg}  {elapsed}")
            .with_message("preparing: kernels are compiled");
        bar.enable_steady_tick(TICK);
        Self { bar, waits: false }
    }

    /// Shows where the run is.
    pub(super) fn update(&mut self, progress: &TrainProgress<'_>) {
        match progress.phase {
            TrainPhase::Training => self.begin(progress),
            TrainPhase::Step => self.step(progress),
            _ => {}
        }
        for warning in &progress.warnings {
            self.say(&format!("warning: {warning}"));
        }
    }

    /// The run has steps to take.
    fn begin(&mut self, progress: &TrainProgress<'_>) {
        let TrainProgress { step, steps, .. } = *progress;
        self.bar.set_length(steps);
        self.bar.set_position(step);
        if step == steps {
            return;
        }
        if self.bar.is_hidden() {
            self.say(&format!("step {step}/{steps}  {FIRST}"));
        }
        output::restyle(&self.bar, "{pos}/{len} {bar:20} {elapsed}  {wide_msg}");
        self.bar.set_message(FIRST);
        self.waits = true;
    }

    /// A step is done.
    fn step(&mut self, progress: &TrainProgress<'_>) {
        let TrainProgress { step, steps, history, .. } = *progress;
        let number = |what: &str, value: Option<f64>| {
            value.map_or(String::new(), |value| format!("{what}{value:.4}"))
        };
        let loss = number("loss ", progress.loss);
        let validation = number("  validation ", progress.validation_loss);
        let speed =
            progress.tokens_per_second.map_or(String::new(), |tps| format!("  {tps:.0} tokens/s"));
        let lr = progress.learning_rate;
        if !self.bar.is_hidden() {
            if std::mem::take(&mut self.waits) {
                output::restyle(&self.bar, "{pos}/{len} {bar:20} {wide_msg}");
                self.bar.disable_steady_tick();
            }
            let [curve, validated] =
                [&history.training, &history.validation].map(|losses| sparkline(losses));
            let left = progress.seconds_left.map_or(String::new(), |seconds| {
                format!("{:#} left  ", HumanDuration(Duration::from_secs_f64(seconds)))
            });
            self.bar.set_message(format!(
                "{left}{loss} {curve}{validation} {validated}  lr {lr:.2e}{speed}"
            ));
            self.bar.set_position(step);
        } else if step.is_multiple_of((steps / LINES).max(1)) || step == steps {
            output::note(&format!("step {step}/{steps}  {loss}{validation}  lr {lr:.2e}{speed}"));
        }
    }

    /// Says what became of the data.
    pub(super) fn say_data(&self, report: &DataReport) {
        let DataReport {
            records,
            examples,
            tokens,
            trained_tokens,
            cut,
            dropped,
            skipped,
            first_skipped,
            ..
        } = report;
        self.say(&format!(
            "{records} records, {examples} examples, {tokens} tokens, {trained_tokens} of them \
            with a loss"
        ));
        if cut + dropped + skipped > 0 {
            self.say(&format!(
                "{cut} examples cut, {dropped} left out since no answer was left, {skipped} lines \
                skipped"
            ));
        }
        if let Some(first) = first_skipped {
            self.say(&format!("the first line skipped: {first}"));
        }
    }

    /// Says a line beside the bar.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| output::note(line));
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.end();
    }
}

/// The losses as one line of bars, each the mean of its share of the steps.
fn sparkline(losses: &[(u64, f64)]) -> String {
    let columns = COLUMNS.min(losses.len());
    let mean = |i: usize| {
        let part = &losses[i * losses.len() / columns..(i + 1) * losses.len() / columns];
        part.iter().map(|(_, loss)| loss).sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..columns).map(mean).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |mean: &f64| {
        let part = if high > low { (mean - low) / (high - low) } else { 0.0 };
        LEVELS[((part * 8.0) as usize).min(7)]
    };
    means.iter().map(level).collect()
}
