//! What a merged adapter says of itself: the recipe and the parents, as JSON in its metadata.

use serde::{Deserialize, Serialize};

use super::{Parent, Recipe};
use crate::error::{Error, Result};

/// The version of what is said.
const FORMAT: &str = "epiphyte.merge.1";
/// Bytes that are read.
const MAX_BYTES: usize = 1 << 20;

/// How an adapter was merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    /// The method, its options, the rank.
    pub recipe: Recipe,
    /// What went in, in order.
    pub parents: Vec<ManifestParent>,
}

/// A parent of a merged adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestParent {
    /// What it was called.
    pub id: String,
    /// Names its factors.
    pub digest: String,
    /// How much of it.
    pub weight: f64,
    /// Share of its elements, where it had one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
}

impl Manifest {
    pub(super) fn new(parents: &[Parent<'_>], recipe: &Recipe) -> Self {
        let parent = |parent: &Parent<'_>| ManifestParent {
            id: parent.id.into(),
            digest: parent.adapter.digest(),
            weight: parent.weight,
            density: parent.density,
        };
        let parents = parents.iter().map(parent).collect();
        Self { format: FORMAT.into(), recipe: *recipe, parents }
    }

    /// Reads what [`crate::adapter::Adapter::manifest`] holds.
    ///
    /// Errors: [`Error::InvalidAdapter`] for another version, or a text that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::InvalidAdapter {
            what: "epiphyte.merge".into(),
            reason: reason.into(),
        };
        if text.len() > MAX_BYTES {
            return Err(invalid("it is longer than any recipe"));
        }
        let read: Result<Self, _> = serde_json::from_str(text);
        match read {
            Ok(manifest) if manifest.format == FORMAT => Ok(manifest),
            _ => Err(invalid(
                "no recipe of format `epiphyte.merge.1`; the factors load all the same",
            )),
        }
    }

    /// As it is written.
    pub(super) fn to_json(&self) -> String {
        // Strings and finite numbers always can be.
        serde_json::to_string(self).unwrap_or_default()
    }
}
