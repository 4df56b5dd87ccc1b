//! What the registry keeps of an adapter and of a set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::arena::Block;
use super::packed::{Packed, PackedSite};
use crate::adapter::{AdaptedBase, Adapter, BaseWeights, LoadReport, MAX_RANK};
use crate::base::BaseShape;
use crate::error::{Error, Result};
use crate::identity::Hash;
use crate::model::site::LoraPass;

/// A set of adapters that rows may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SetId(pub(crate) u32);

/// An adapter that was read and packed, on its way to the device.
pub(crate) struct Incoming {
    pub(super) packed: Arc<Packed>,
    pub(super) digest: String,
    pub(super) source: Option<PathBuf>,
    pub(super) report: Arc<LoadReport>,
}

impl Incoming {
    /// Packs `adapter`, which fits `shape` and is called `id`; `source` is where it can be read
    /// again.
    ///
    /// Errors: [`Error::InvalidAdapter`] for one that can't run.
    pub(crate) fn new(
        id: &str,
        adapter: &Adapter,
        shape: &BaseShape,
        source: Option<PathBuf>,
    ) -> Result<Self> {
        check_ranks(id, adapter)?;
        let packed = Arc::new(Packed::new(adapter, shape));
        Ok(Self {
            packed,
            digest: adapter.digest(),
            source,
            report: Arc::new(adapter.report.clone()),
        })
    }
}

/// An adapter that is off the device and has to be read again.
pub(crate) struct Absent {
    pub(super) number: EntryId,
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) digest: String,
}

/// Adapters that were read again, on their way to the device.
pub(crate) type ReadAgain = BTreeMap<EntryId, Arc<Packed>>;

impl Absent {
    /// Reads and packs it.
    ///
    /// Errors: as [`Adapter::load`]; [`Error::InvalidAdapter`] when the file has changed.
    pub(crate) fn read(&self, shape: &BaseShape) -> Result<Arc<Packed>> {
        let compared = AdaptedBase { shape: *shape, weights: BaseWeights::Compared };
        let adapter = Adapter::load(&self.path, compared)?;
        if adapter.digest() != self.digest {
            let reason = "the file has changed since it was loaded; load it again".to_string();
            return Err(Error::InvalidAdapter { what: self.id.clone(), reason });
        }
        Ok(Arc::new(Packed::new(&adapter, shape)))
    }

    /// Reads it for [`super::Registry::acquire`].
    ///
    /// Errors: as [`Absent::read`].
    pub(crate) fn read_into(&self, read: &mut ReadAgain, shape: &BaseShape) -> Result<()> {
        read.insert(self.number, self.read(shape)?);
        Ok(())
    }
}

fn check_ranks(id: &str, adapter: &Adapter) -> Result<()> {
    let invalid = |reason: String| Err(Error::InvalidAdapter { what: id.into(), reason });
    match adapter.modules.iter().map(|module| module.rank).max() {
        None => invalid("it changes no module".into()),
        Some(rank) if rank > MAX_RANK as usize => invalid(format!(
            "rank {rank}; at most {MAX_RANK} can run, merge it into the base instead"
        )),
        Some(_) => Ok(()),
    }
}

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
    /// [`crate::adapter::Adapter::digest`].
    pub(super) digest: String,
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
#[non_exhaustive]
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
    pub(super) digest: Hash,
    pub(super) pass: LoraPass,
}
