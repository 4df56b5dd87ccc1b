//! The only file that prints.
#![expect(clippy::print_stderr, reason = "the command line talks to people on stderr")]

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::{Error, Result};

/// Writes to stdout, at once.
pub(super) fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io("standard output", e))
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

/// Writes a line to stderr. It may be closed; there is no one left to tell.
pub(super) fn note(line: &str) {
    eprintln!("{line}");
}

/// Writes to stderr without a line's end.
pub(super) fn prompt(text: &str) {
    eprint!("{text}");
}

/// Bytes for people.
pub(super) fn human_bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
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

/// A progress bar that shows up only when loading takes long enough to wonder.
#[derive(Default)]
pub(super) struct LoadingBar {
    start: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl LoadingBar {
    /// Bytes loaded and in all.
    pub(super) fn update(&mut self, done: u64, all: u64) {
        let start = *self.start.get_or_insert_with(Instant::now);
        if start.elapsed() > Duration::from_millis(300) {
            let new = || bar(all, "loading {bar:30} {bytes}/{total_bytes}");
            self.bar.get_or_insert_with(new).set_position(done);
        }
    }
}

impl Drop for LoadingBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
