//! What the registry keeps of an adapter and of a set.

use std::path::PathBuf;
use std::sync::Arc;

use super::arena::Block;
use super::packed::{Packed, PackedSite};
use crate::adapter::LoadReport;
use crate::model::site::LoraPass;

/// A set of adapters that rows may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SetId(pub(crate) u32);

/// Where an adapter comes from when it has to be loaded again.
pub(super) enum Source {
    Path(PathBuf),
    Memory(Arc<Packed>),
}

/// Tells the adapters apart that an id has had.
pub(super) type EntryId = u64;

/// An adapter that the registry knows.
pub(super) struct Entry {
    /// What the user calls it.
    pub(super) id: String,
    pub(super) source: Source,
    pub(super) digest: blake3::Hash,
    pub(super) resident: Option<Resident>,
    /// Sets in use that contain it.
    pub(super) pins: u32,
    pub(super) last_used: u64,
    pub(super) bytes: u64,
    pub(super) report: Arc<LoadReport>,
}

pub(super) struct Resident {
    pub(super) block: Block,
    pub(super) sites: Vec<PackedSite>,
}

/// How an adapter fares.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterState {
    /// Its id.
    pub id: String,
    /// Bytes on the device when it is there.
    pub n_bytes: u64,
    /// It is there.
    pub resident: bool,
    /// A session uses it, so it stays.
    pub pinned: bool,
    /// Another one has its id now; it stays as long as sessions use it.
    pub replaced: bool,
}

pub(super) struct Set {
    /// As the user calls them.
    pub(super) adapters: Vec<(String, f32)>,
    /// Which they are, in the same order.
    pub(super) entries: Vec<(EntryId, f32)>,
    pub(super) users: u32,
    pub(super) last_used: u64,
    pub(super) digest: [u8; 32],
    pub(super) pass: LoraPass,
}
