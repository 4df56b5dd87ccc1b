//! What became of a round.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::manifest::Losses;
use super::super::wire::Delta;
use super::Inputs;
use super::admit::Refusal;
use super::collect::Collected;

/// What became of a delta.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its file's name.
    pub file: String,
    /// Its own name, if it could be read.
    pub name: Option<String>,
    /// The key that signed it.
    pub key: Option<String>,
    /// L2 norm of its numbers, as sent.
    pub norm: Option<f64>,
    /// The norm it was shrunk to.
    pub shrunk_to: Option<f64>,
    /// Whether the device had clipped it.
    pub was_clipped: Option<bool>,
    /// What it counted; 0 when it was left out.
    pub weight: f64,
    /// Versions its parent was behind.
    pub staleness: u64,
    /// To the mean of all that were taken at first.
    pub cosine: Option<f64>,
    /// What training did to the loss on the device, by its own account.
    pub loss: Option<Losses>,
    /// Why it was left out, for people.
    pub reason: Option<String>,
    /// Why it was left out.
    #[serde(default)]
    pub refusal: Option<Refusal>,
}

impl Entry {
    pub(super) fn refused(file: String, refusal: Refusal) -> Self {
        Self {
            file,
            name: None,
            key: None,
            norm: None,
            shrunk_to: None,
            was_clipped: None,
            weight: 0.0,
            staleness: 0,
            cosine: None,
            loss: None,
            reason: None,
            refusal: Some(refusal),
        }
    }

    pub(super) fn new(file: String, delta: &Delta) -> Self {
        let manifest = &delta.manifest;
        Self {
            file,
            name: Some(delta.name().into()),
            key: Some(manifest.signer.to_string()),
            norm: Some(delta.norm()),
            shrunk_to: None,
            was_clipped: manifest.clip.map(|clip| clip.was_clipped),
            weight: 0.0,
            staleness: 0,
            cosine: None,
            loss: manifest.loss,
            reason: None,
            refusal: None,
        }
    }

    /// Whether it is in the result.
    pub fn is_taken(&self) -> bool {
        self.refusal.is_none() && self.reason.is_none()
    }
}

/// How far a version's change of `scaling B A` is from the exact mean of the deltas'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ModeError {
    /// Norm of the difference.
    pub norm: f64,
    /// Norm of the exact mean.
    pub exact_norm: f64,
    /// Whether both are estimates, by eight random vectors a module.
    pub is_estimate: bool,
}

impl ModeError {
    /// The difference as a part of the exact mean.
    pub fn relative(&self) -> f64 {
        if self.exact_norm > 0.0 { self.norm / self.exact_norm } else { 0.0 }
    }
}

/// What became of a round.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The adapter's id.
    pub adapter: String,
    /// The round.
    pub round: u64,
    /// The version that the deltas were made from.
    pub parent_version: u64,
    /// The version that was made; `None` when there was none.
    pub version: Option<u64>,
    /// Why there was none.
    pub not_published: Option<String>,
    /// How deltas became one.
    pub mode: &'static str,
    /// What that is exact about.
    pub exactness: &'static str,
    /// How far the result is from the exact mean, before the server's optimizer and noise.
    pub mode_error: Option<ModeError>,
    /// Deltas in the result.
    pub taken: usize,
    /// Those of them that were shrunk to the largest norm.
    pub shrunk: usize,
    /// Deltas left out.
    pub refused: usize,
    /// How many for which kind of reason.
    pub refusals: BTreeMap<&'static str, usize>,
    /// The sum of the weights.
    pub weight: f64,
    /// Norm of the mean of the deltas.
    pub mean_norm: Option<f64>,
    /// Bytes of the deltas read.
    pub n_bytes: u64,
    /// Each delta, by name of file.
    pub entries: Vec<Entry>,
    /// Deltas that [`Report::keep_worst`] took from the entries.
    pub entries_left_out: usize,
}

impl Report {
    /// Keeps `most` entries: those that were refused, then those farthest from the mean, then the
    /// largest. The counts stay those of all.
    pub fn keep_worst(&mut self, most: usize) {
        if self.entries.len() <= most {
            return;
        }
        let distance = |entry: &Entry| -entry.cosine.unwrap_or(1.0);
        let norm = |entry: &Entry| entry.norm.unwrap_or(0.0);
        self.entries.sort_by(|a, b| {
            (a.is_taken().cmp(&b.is_taken()))
                .then_with(|| distance(b).total_cmp(&distance(a)))
                .then_with(|| norm(b).total_cmp(&norm(a)))
                .then_with(|| a.file.cmp(&b.file))
        });
        self.entries_left_out += self.entries.len() - most;
        self.entries.truncate(most);
        self.entries.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        // A struct of texts and numbers has no way to fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// As a page on its own, with plots.
    pub fn to_html(&self) -> String {
        super::html::page(self)
    }
}

pub(super) fn report(inputs: &Inputs<'_>, collected: &Collected<'_>) -> Report {
    let (manifest, mode) = (&inputs.parent.manifest, inputs.options.mode);
    let mut entries = collected.entries.clone();
    for entry in &mut entries {
        entry.reason = entry.reason.take().or(entry.refusal.as_ref().map(ToString::to_string));
    }
    entries.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    let taken = entries.iter().filter(|entry| entry.is_taken()).count();
    let mut refusals = BTreeMap::new();
    for refusal in entries.iter().filter_map(|entry| entry.refusal.as_ref()) {
        *refusals.entry(refusal.why()).or_default() += 1;
    }
    Report {
        adapter: manifest.adapter.clone(),
        round: manifest.next.round,
        parent_version: manifest.version,
        version: None,
        not_published: None,
        mode: mode.name(),
        exactness: mode.exactness(),
        mode_error: None,
        taken,
        shrunk: entries.iter().filter(|e| e.is_taken() && e.shrunk_to.is_some()).count(),
        refused: entries.len() - taken,
        refusals,
        weight: entries.iter().map(|entry| entry.weight).sum(),
        mean_norm: None,
        n_bytes: collected.n_bytes,
        entries,
        entries_left_out: 0,
    }
}
