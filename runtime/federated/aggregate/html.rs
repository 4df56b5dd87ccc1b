//! A report as a page: nothing but HTML and SVG, no script.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::report::{Entry, Report};

const STYLE: &str = "body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .6rem;\
border-bottom:1px solid #ddd}td.n{text-align:right;font-variant-numeric:tabular-nums}\
svg{width:100%;height:auto}.no{color:#a33}";
/// Rows of the table; the JSON has all.
const MAX_ROWS: usize = 500;

pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let Report { adapter, round, parent_version, mode, exactness, taken, refused, .. } = report;
    let title = format!("{}, round {round}", escaped(adapter));
    write!(out, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>")?;
    write!(out, "<style>{STYLE}</style><h1>{title}</h1>")?;
    match (report.version, &report.not_published) {
        (Some(version), _) => {
            write!(out, "<p>Version {parent_version} became version {version}: ")?;
        }
        (None, reason) => {
            let reason = reason.as_deref().unwrap_or("a part of a round");
            write!(out, "<p>No version was made ({}): ", escaped(reason))?;
        }
    }
    write!(out, "{taken} deltas taken, {refused} refused.</p>")?;
    write!(out, "<p>Mode <b>{mode}</b>: {exactness}.")?;
    if let Some(error) = &report.mode_error {
        let kind = if error.is_estimate { "estimated " } else { "" };
        let percent = 100.0 * error.relative();
        write!(out, " Distance to the exact mean, {kind}{percent:.3} % of it.")?;
    }
    write!(out, "</p>")?;
    let of = |number: fn(&Entry) -> Option<f64>| {
        report.entries.iter().filter(|e| e.is_taken()).filter_map(number).collect::<Vec<_>>()
    };
    histogram(out, "Norms of the deltas taken", &of(|entry| entry.norm))?;
    histogram(out, "Cosines to the mean", &of(|entry| entry.cosine))?;
    let change = |entry: &Entry| entry.loss.map(|loss| loss.after - loss.before);
    histogram(out, "Change of loss on the device, nats a token", &of(change))?;
    reasons(out, report)?;
    table(out, report)
}

/// Counts in twenty bins.
fn histogram(out: &mut String, title: &str, values: &[f64]) -> std::fmt::Result {
    const BINS: usize = 20;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() || !low.is_finite() || !high.is_finite() {
        return Ok(());
    }
    let mut counts = [0_usize; BINS];
    for value in values {
        let at = if high > low { (value - low) / (high - low) * BINS as f64 } else { 0.0 };
        counts[(at as usize).min(BINS - 1)] += 1;
    }
    let most = counts.iter().max().copied().unwrap_or(1).max(1);
    write!(out, "<h2>{title}</h2><svg viewBox=\"0 0 640 150\" role=\"img\">")?;
    for (i, count) in counts.iter().enumerate() {
        let height = 110.0 * *count as f64 / most as f64;
        let (x, y) = (20 + 30 * i, 120.0 - height);
        write!(out, "<rect x=\"{x}\" y=\"{y:.1}\" width=\"28\" height=\"{height:.1}\" ")?;
        write!(out, "fill=\"#4a7\"><title>{count}</title></rect>")?;
    }
    write!(out, "<text x=\"20\" y=\"140\" font-size=\"12\">{low:.4}</text>")?;
    write!(out, "<text x=\"620\" y=\"140\" font-size=\"12\" text-anchor=\"end\">{high:.4}</text>")?;
    write!(
        out,
        "<text x=\"320\" y=\"140\" font-size=\"12\" text-anchor=\"middle\">most in a bin: "
    )?;
    write!(out, "{most}</text></svg>")
}

fn reasons(out: &mut String, report: &Report) -> std::fmt::Result {
    let mut counts = BTreeMap::<&str, usize>::new();
    report.entries.iter().filter_map(|e| e.reason.as_deref()).for_each(|reason| {
        *counts.entry(reason).or_default() += 1;
    });
    if counts.is_empty() {
        return Ok(());
    }
    write!(out, "<h2>Refused</h2><table><tr><th>why<th>deltas")?;
    for (reason, count) in counts.into_iter().take(MAX_ROWS) {
        write!(out, "<tr><td>{}<td class=\"n\">{count}", escaped(reason))?;
    }
    write!(out, "</table>")
}

fn table(out: &mut String, report: &Report) -> std::fmt::Result {
    write!(out, "<h2>Deltas</h2><table><tr><th>file<th>norm<th>cosine<th>weight<th>result")?;
    for entry in report.entries.iter().take(MAX_ROWS) {
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.4}"));
        let (norm, cosine) = (number(entry.norm), number(entry.cosine));
        write!(out, "<tr><td>{}<td class=\"n\">{norm}<td class=\"n\">", escaped(&entry.file))?;
        write!(out, "{cosine}<td class=\"n\">{:.3}", entry.weight)?;
        match (&entry.reason, entry.shrunk_to) {
            (Some(reason), _) => write!(out, "<td class=\"no\">{}", escaped(reason))?,
            (None, Some(norm)) => write!(out, "<td>shrunk to norm {norm:.4}")?,
            (None, None) => write!(out, "<td>taken")?,
        }
    }
    let more = report.entries.len().saturating_sub(MAX_ROWS);
    match more {
        0 => write!(out, "</table></html>"),
        _ => write!(out, "</table><p>And {more} more, in the JSON report.</p></html>"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
