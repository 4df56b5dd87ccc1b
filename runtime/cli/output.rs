//! The only file that prints. Whoever reads stderr may go away: that ends nothing.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub(super) use epiphyte::engine::plan::human_bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use epiphyte::error::{Error, Result};
use epiphyte::progress::{LoadPhase, LoadProgress};

/// Writes to stdout, at once.
pub(super) fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::io("standard output", e))
}

/// Writes a line to stdout.
pub(super) fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes `value` to stdout as one line of JSON; numbers that are not finite are null.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string(value).map_err(|e| Error::io("standard output", e.into()))?;
    line(&json)
}

/// Writes a line to stderr: `error: ` and `warning: ` in colours, where there are any, and what
/// follows the first `;` of an error (the remedy) dim.
pub(super) fn note(line: &str) {
    let (label, colour) = match line {
        _ if !has_colours() => ("", ""),
        _ if line.starts_with("error: ") => ("error: ", "\x1b[1;31m"),
        _ if line.starts_with("warning: ") => ("warning: ", "\x1b[1;33m"),
        _ => ("", ""),
    };
    let text = &line[label.len()..];
    let text = match text.split_once("; ") {
        Some((what, remedy)) if label == "error: " => format!("{what}; \x1b[2m{remedy}\x1b[0m"),
        _ => text.into(),
    };
    let end = if label.is_empty() { "" } else { "\x1b[0m" };
    to_stderr(&format!("{colour}{label}{end}{text}\n"));
}

fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    cfg!(unix) && !unwanted && !dumb && std::io::stderr().is_terminal()
}

fn to_stderr(text: &str) {
    // Where it can't be written there is no one left to tell.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// The most memory this process ever had in RAM, in bytes; `None` where the system does not say.
pub(super) fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Device and host memory on one line.
pub(super) fn memory(device_bytes: u64, host_bytes: Option<u64>) -> String {
    let host = host_bytes.map_or_else(|| "unknown".into(), human_bytes);
    format!("{} on the device, {host} on the host at most", human_bytes(device_bytes))
}

/// Gives a bar another look.
pub(super) fn restyle(bar: &ProgressBar, template: &str) {
    bar.set_style(style(template));
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A bar of `len` steps on stderr; not drawn where stderr is no terminal.
pub(super) fn bar(len: u64, template: &str) -> ProgressBar {
    ProgressBar::new(len).with_style(style(template))
}

/// What opening a model is busy with. Bytes and shaders show up only when they take long enough to
/// wonder.
#[derive(Default)]
pub(super) struct LoadingBar {
    start: Option<Instant>,
    bar: Option<(LoadPhase, ProgressBar)>,
}

impl LoadingBar {
    pub(super) fn update(&mut self, progress: LoadProgress) {
        let LoadProgress { phase, done, total, .. } = progress;
        let template = match phase {
            LoadPhase::SelfTest => {
                "checking this GPU's driver, once: {pos}/{len} kernels, {elapsed} {wide_bar}"
            }
            LoadPhase::Shaders => "compiling shaders {pos}/{len}, {elapsed} {wide_bar}",
            _ => "loading {bytes}/{total_bytes} {wide_bar}",
        };
        if self.bar.as_ref().is_some_and(|(shown, _)| *shown != phase) {
            self.clear();
        }
        let start = *self.start.get_or_insert_with(Instant::now);
        if phase == LoadPhase::SelfTest || start.elapsed() > Duration::from_millis(300) {
            let new = || {
                let bar = bar(total, template);
                bar.enable_steady_tick(Duration::from_millis(200));
                (phase, bar)
            };
            self.bar.get_or_insert_with(new).1.set_position(done);
        }
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for LoadingBar {
    fn drop(&mut self) {
        self.clear();
    }
}
