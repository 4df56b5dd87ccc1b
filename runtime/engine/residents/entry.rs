//! What the registry keeps of an adapter and of a set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

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
#[derive(Clone)]
pub(crate) struct Incoming {
    pub(super) packed: Arc<Packed>,
    pub(super) digest: String,
    pub(super) source: Source,
    pub(super) report: Arc<LoadReport>,
}

impl Incoming {
    /// Packs `adapter`, which fits `shape` and is called `id`; `path` is where it can be read
    /// again.
    ///
    /// Errors: [`Error::InvalidAdapter`] for one that can't run.
    pub(crate) fn new(
        id: &str,
        adapter: &Adapter,
        shape: &BaseShape,
        path: Option<&Path>,
    ) -> Result<Self> {
        check_ranks(id, adapter)?;
        let packed = Arc::new(Packed::new(adapter, shape));
        let source = match path {
            Some(path) => Source::Path { path: path.to_path_buf(), written: written(path) },
            None => Source::Memory(Arc::clone(&packed)),
        };
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
#[derive(Clone)]
pub(super) enum Source {
    Path {
        /// A file, or a folder.
        path: PathBuf,
        /// When it was last written to, as it was loaded.
        written: Option<SystemTime>,
    },
    Memory(Arc<Packed>),
}

impl Source {
    /// Whether it is there as it was: a file that is gone or was written to is not.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Path { path, written: then } => then.is_some() && written(path) == *then,
            Self::Memory(_) => true,
        }
    }
}

/// When a file or a name in a folder was last written to.
fn written(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
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

impl Set {
    pub(super) fn has(&self, entry: EntryId) -> bool {
        self.entries.iter().any(|(of, _)| *of == entry)
    }

    /// A session uses it, and this entry with it.
    pub(super) fn is_using(&self, entry: EntryId) -> bool {
        self.users > 0 && self.has(entry)
    }
}
