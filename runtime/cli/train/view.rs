//! What one sees of a run: a bar in a terminal, else a line now and then.

use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar};

use crate::output;
use epiphyte::train::signals::{History, StepRecord, Warning};

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
    total: u64,
    /// Steps that were shown, and what the first one took: it is not like the others.
    shown: u64,
    first_seconds: f64,
    tokens: usize,
    seconds: f64,
    warned: Vec<Warning>,
}

impl View {
    /// Of a run whose kernels are being made.
    pub(super) fn prepare() -> Self {
        let bar = output::bar(0, "{spinner} {msg}  {elapsed}")
            .with_message("preparing: kernels are compiled");
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            total: 0,
            shown: 0,
            first_seconds: 0.0,
            tokens: 0,
            seconds: 0.0,
            warned: Vec::new(),
        }
    }

    /// The run has `total` steps, and stands at `step`.
    pub(super) fn begin(&mut self, total: u64, step: u64) {
        self.total = total;
        self.bar.set_length(total);
        self.bar.set_position(step);
        if step == total {
            return;
        }
        if self.bar.is_hidden() {
            self.say(&format!("step {step}/{total}  {FIRST}"));
        }
        output::restyle(&self.bar, "{pos}/{len} {bar:20} {elapsed}  {wide_msg}");
        self.bar.set_message(FIRST);
    }

    /// Shows a step, the last of `history`.
    pub(super) fn update(&mut self, record: &StepRecord, history: &History) {
        self.tokens += record.tokens;
        self.seconds += record.seconds;
        self.shown += 1;
        if self.shown == 1 {
            self.first_seconds = record.seconds;
        }
        let validation = history
            .validation
            .last()
            .map_or(String::new(), |(_, loss)| format!("  validation {loss:.4}"));
        let speed =
            self.tokens_per_second().map_or(String::new(), |tps| format!("  {tps:.0} tokens/s"));
        let (loss, lr) = (record.loss, record.lr);
        if !self.bar.is_hidden() {
            if self.shown == 1 {
                output::restyle(&self.bar, "{pos}/{len} {bar:20} {wide_msg}");
                self.bar.disable_steady_tick();
            }
            let [curve, validated] =
                [&history.training, &history.validation].map(|losses| sparkline(losses));
            self.bar.set_message(format!(
                "{}loss {loss:.4} {curve}{validation} {validated}  lr {lr:.2e}{speed}",
                self.left(record.step)
            ));
            self.bar.set_position(record.step);
        } else if record.step.is_multiple_of((self.total / LINES).max(1))
            || record.step == self.total
        {
            output::note(&format!(
                "step {}/{}  loss {loss:.4}{validation}  lr {lr:.2e}{speed}",
                record.step, self.total
            ));
        }
    }

    /// The time that is left after `step`, by the steps after the first.
    fn left(&self, step: u64) -> String {
        let others = self.shown.saturating_sub(1);
        if others == 0 || step >= self.total {
            return String::new();
        }
        let seconds =
            (self.seconds - self.first_seconds) / others as f64 * (self.total - step) as f64;
        format!("{:#} left  ", HumanDuration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9))))
    }

    /// Says a line beside the bar.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| output::note(line));
    }

    /// Says each of `warnings` the first time it is seen.
    pub(super) fn warn(&mut self, warnings: Vec<Warning>) {
        for warning in warnings {
            if !self.warned.contains(&warning) {
                self.warned.push(warning);
                self.say(&format!("warning: {warning}"));
            }
        }
    }

    /// Tokens a second of the steps that were shown.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens as f64 / self.seconds)
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Every warning that was given.
    pub(super) fn warned(&self) -> &[Warning] {
        &self.warned
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
