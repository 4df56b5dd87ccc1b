//! Adapters on the device, by id: within a budget of bytes, the least recently used making room for
//! others.
//!
//! A session uses a set of adapters; a set is a number that each row of a pass names, and an entry
//! in the directory in front of the factors (see [`Directory`]). Changing a row's set writes that
//! number and nothing else.

mod residency;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::arena::{Arena, Block};
use super::entry::{
    Absent, AdapterState, Entry, EntryId, Incoming, ReadAgain, Resident, Set, SetId, Source,
};
use super::packed::PackedSite;
use crate::adapter::{LoadReport, MAX_RANK};
use crate::base::BaseShape;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::identity::{Hash, sha256};
use crate::kernels::lora::{self, Directory, ENTRIES, MORE};
use crate::model::site::{Factors, LoraPass, site_count, sites};

/// Sets that may be known at once; the first is that without adapters.
pub(crate) const MAX_SETS: usize = 64;

/// See the module's documentation.
pub(crate) struct Registry {
    directory: Directory,
    shape: BaseShape,
    arena: Arena,
    /// By id, those that a session gets when it asks for them.
    ids: BTreeMap<String, EntryId>,
    /// Those, and the replaced ones that sessions still use.
    entries: BTreeMap<EntryId, Entry>,
    sets: Vec<Option<Set>>,
    next: EntryId,
    clock: u64,
}

impl Registry {
    /// For passes of up to `rows` rows over a base of `shape`; `budget` in bytes.
    pub(crate) fn new(gpu: &Gpu, shape: BaseShape, rows: usize, budget: u64) -> Self {
        let directory = directory(&shape, rows);
        let arena = Arena::new(gpu.caps(), u64::from(directory.words()) * 4, budget);
        let sets = (0..MAX_SETS).map(|_| None).collect();
        Self {
            directory,
            shape,
            arena,
            ids: BTreeMap::new(),
            entries: BTreeMap::new(),
            sets,
            next: 0,
            clock: 0,
        }
    }

    /// Puts an empty one in its place.
    pub(crate) fn take_all(&mut self, gpu: &Gpu) -> Self {
        let Self { directory, shape, ref arena, .. } = *self;
        let empty = Self::new(gpu, shape, directory.rows as usize, arena.budget());
        std::mem::replace(self, empty)
    }

    /// Adapters that are on the device.
    pub(crate) fn residents(&self) -> usize {
        self.entries.values().filter(|entry| entry.resident.is_some()).count()
    }

    /// The buffers, once there has been an adapter.
    pub(crate) fn factors(&self) -> Option<Factors<'_>> {
        let (a, b, moves) = self.arena.tensors()?;
        Some(Factors { directory: self.directory, a, b, moves })
    }

    /// The shape of the directory.
    pub(crate) fn directory(&self) -> Directory {
        self.directory
    }

    /// Adds an adapter that fits the base, or puts it in the place of one of the same id. Sets in
    /// use keep that one; it goes with the last of them.
    ///
    /// Errors: [`Error::AdapterBudget`], also when there is no room beside one in use;
    /// [`Error::OutOfMemory`]. All stays as it was.
    pub(crate) fn insert(
        &mut self,
        gpu: &Gpu,
        id: &str,
        Incoming { packed, digest, source, report }: Incoming,
    ) -> Result<()> {
        let before = self.ids.get(id).copied();
        // Its room is there for the new one.
        let unused =
            before.filter(|before| !self.is_pinned(*before)).and_then(|before| self.take(before));
        let entry = Entry {
            id: id.to_string(),
            digest,
            bytes: packed.bytes(),
            source,
            resident: None,
            pins: 0,
            last_used: 0,
            report,
        };
        let new = self.next;
        self.next += 1;
        self.entries.insert(new, entry);
        match self.send(gpu, new, &packed) {
            Ok(()) => {
                self.ids.insert(id.to_string(), new);
            }
            Err(error) => {
                self.entries.remove(&new);
                // It comes back to the device when it is next used.
                self.entries.extend(before.zip(unused));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether it could be on the device by itself.
    pub(crate) fn fits(&self, adapter: &Incoming) -> bool {
        adapter.packed.bytes() <= self.arena.budget()
    }

    fn is_pinned(&self, entry: EntryId) -> bool {
        self.entries.get(&entry).is_some_and(|entry| entry.pins > 0)
    }

    /// Whether it is what its id names now.
    fn is_current(&self, entry: EntryId) -> bool {
        self.entries.get(&entry).is_some_and(|known| self.ids.get(&known.id) == Some(&entry))
    }

    /// Forgets an adapter.
    ///
    /// Errors: [`Error::AdapterInUse`].
    pub(crate) fn remove(&mut self, id: &str) -> Result<()> {
        let Some(&entry) = self.ids.get(id) else { return Ok(()) };
        if self.is_pinned(entry) {
            return Err(Error::AdapterInUse { id: id.into() });
        }
        self.take(entry);
        self.ids.remove(id);
        Ok(())
    }

    /// Takes out an unused adapter, off the device.
    fn take(&mut self, entry: EntryId) -> Option<Entry> {
        self.forget_sets(entry);
        let mut entry = self.entries.remove(&entry)?;
        if let Some(Resident { block, .. }) = entry.resident.take() {
            self.arena.free(block);
        }
        Some(entry)
    }

    /// The adapters, by id; of one id that which it names now is the last.
    pub(crate) fn states(&self) -> Vec<AdapterState> {
        let state = |(&number, entry): (&EntryId, &Entry)| AdapterState {
            id: entry.id.clone(),
            n_bytes: entry.bytes,
            resident: entry.resident.is_some(),
            pinned: entry.pins > 0,
            replaced: !self.is_current(number),
        };
        let mut states: Vec<AdapterState> = self.entries.iter().map(state).collect();
        states.sort_by(|a, b| a.id.cmp(&b.id));
        states
    }

    fn current(&self, id: &str) -> Option<&Entry> {
        self.entries.get(self.ids.get(id)?)
    }

    /// What was found in an adapter's file.
    pub(crate) fn report(&self, id: &str) -> Option<Arc<LoadReport>> {
        self.current(id).map(|entry| Arc::clone(&entry.report))
    }

    /// Those of `adapters` that have to be read again before [`Registry::acquire`], and are not in
    /// `read`.
    ///
    /// Errors: as [`Registry::acquire`], for ids and weights.
    pub(crate) fn absent(
        &self,
        adapters: &[(String, f32)],
        read: &ReadAgain,
    ) -> Result<Vec<Absent>> {
        let wanted = self.find(adapters)?.into_iter();
        let absent = wanted.filter(|(number, _)| !read.contains_key(number));
        Ok(absent.filter_map(|(number, _)| self.absentee(number)).collect())
    }

    /// An adapter, if it is off the device and in a file.
    fn absentee(&self, number: EntryId) -> Option<Absent> {
        let entry = self.entries.get(&number).filter(|entry| entry.resident.is_none())?;
        let Source::Path { path, .. } = &entry.source else { return None };
        let (id, path, digest) = (entry.id.clone(), path.clone(), entry.digest.clone());
        Some(Absent { number, id, path, digest })
    }

    /// A set of `adapters` with weights, held until [`Registry::release`]: a known one where there
    /// is one, else one made now, with adapters loaded again that had to make room.
    ///
    /// Errors: [`Error::AdapterNotLoaded`]; [`Error::InvalidArgument`] for one given twice, a weight
    /// that is not finite, or more than run together; [`Error::AdapterSets`];
    /// [`Error::AdapterBudget`]; those of loading again. Nothing has changed then.
    pub(crate) fn acquire(
        &mut self,
        gpu: &Gpu,
        adapters: &[(String, f32)],
        read: &ReadAgain,
    ) -> Result<SetId> {
        if adapters.is_empty() {
            return Ok(SetId(0));
        }
        let entries = self.find(adapters)?;
        self.clock += 1;
        let known =
            self.sets.iter().position(|set| set.as_ref().is_some_and(|set| set.entries == entries));
        let index = match known {
            Some(index) => {
                self.restore(gpu, SetId(index as u32), read)?;
                index
            }
            None => self.make_set(gpu, adapters, &entries, read)?,
        };
        if let Some(set) = &mut self.sets[index] {
            set.users += 1;
            set.last_used = self.clock;
        }
        self.pin(&entries, 1);
        Ok(SetId(index as u32))
    }

    /// Whether `id` is the set of `adapters`, as their ids are now.
    pub(crate) fn is(&self, id: SetId, adapters: &[(String, f32)]) -> bool {
        self.adapters(id) == adapters
            && self.sets[id.0 as usize]
                .iter()
                .flat_map(|set| &set.entries)
                .all(|(entry, _)| self.is_current(*entry))
    }

    /// One more user of a set.
    pub(crate) fn retain(&mut self, id: SetId) {
        let Some(set) = &mut self.sets[id.0 as usize] else { return };
        set.users += 1;
        let entries = set.entries.clone();
        self.pin(&entries, 1);
    }

    /// One user less. What was replaced and has no other goes.
    pub(crate) fn release(&mut self, id: SetId) {
        let Some(set) = &mut self.sets[id.0 as usize] else { return };
        set.users -= 1;
        let entries = set.entries.clone();
        self.pin(&entries, -1);
        for (entry, _) in entries {
            if !self.is_current(entry) && !self.is_pinned(entry) {
                self.take(entry);
            }
        }
    }

    /// The adapters of a set.
    pub(crate) fn adapters(&self, id: SetId) -> &[(String, f32)] {
        self.sets[id.0 as usize].as_ref().map_or(&[], |set| &set.adapters)
    }

    /// Names what a set computes: zeros for that without adapters, and otherwise the factors' and
    /// weights' hash.
    pub(crate) fn digest(&self, id: SetId) -> Hash {
        self.sets[id.0 as usize].as_ref().map_or([0; 32], |set| set.digest)
    }

    /// What an adapter's factors hash to.
    pub(crate) fn adapter_digest(&self, id: &str) -> Option<String> {
        self.current(id).map(|entry| entry.digest.clone())
    }

    /// What the factors of a set's adapters hash to, in their order.
    pub(crate) fn adapter_digests(&self, id: SetId) -> Vec<String> {
        let entries = self.sets[id.0 as usize].iter().flat_map(|set| &set.entries);
        entries.map(|(entry, _)| self.entries[entry].digest.clone()).collect()
    }

    /// What a pass over rows of these sets needs; `None` when none has adapters.
    pub(crate) fn pass(&self, mut sets: impl Iterator<Item = SetId>) -> Option<LoraPass> {
        let first = sets.next()?;
        let pass = |id: SetId| {
            self.sets[id.0 as usize].as_ref().map(|set| set.pass.clone()).unwrap_or_default()
        };
        let joined = sets.filter(|id| *id != first).fold(pass(first), |a, b| LoraPass {
            u_width: std::array::from_fn(|kind| a.u_width[kind].max(pass(b).u_width[kind])),
            alone: None,
        });
        (joined.u_width != [0; 6]).then_some(joined)
    }

    /// Tells the device which sets the rows of the next pass use.
    pub(crate) fn write_rows(&self, gpu: &Gpu, first: u32, sets: &[SetId]) {
        if let Some((a, b, _)) = self.arena.tensors() {
            let words: Vec<u32> = sets.iter().map(|set| set.0).collect();
            gpu.write(a, u64::from(first) * 4, &words);
            gpu.write(b, u64::from(first) * 4, &words);
        }
    }

    /// What the ids name now.
    fn find(&self, adapters: &[(String, f32)]) -> Result<Vec<(EntryId, f32)>> {
        let bad = |reason: String| Err(Error::InvalidArgument { name: "adapters", reason });
        if adapters.len() > ENTRIES as usize {
            return bad(format!("{} at once; at most {ENTRIES}, merge some", adapters.len()));
        }
        let mut found = Vec::with_capacity(adapters.len());
        for (i, (id, weight)) in adapters.iter().enumerate() {
            let Some(&entry) = self.ids.get(id) else {
                return Err(Error::AdapterNotLoaded { id: id.clone() });
            };
            if !weight.is_finite() {
                return bad(format!("the weight of `{id}` is not a finite number"));
            }
            if adapters[..i].iter().any(|(other, _)| other == id) {
                return bad(format!("`{id}` is given twice; add its weights"));
            }
            found.push((entry, *weight));
        }
        Ok(found)
    }

    fn pin(&mut self, entries: &[(EntryId, f32)], by: i32) {
        for (entry, _) in entries {
            if let Some(entry) = self.entries.get_mut(entry) {
                entry.pins = entry.pins.saturating_add_signed(by);
                entry.last_used = self.clock;
            }
        }
    }

    /// Makes all of `entries`, called `adapters`, resident and writes their entry in the directory.
    fn make_set(
        &mut self,
        gpu: &Gpu,
        adapters: &[(String, f32)],
        entries: &[(EntryId, f32)],
        read: &ReadAgain,
    ) -> Result<usize> {
        let free =
            (1..MAX_SETS).filter(|&i| self.sets[i].as_ref().is_none_or(|set| set.users == 0));
        let Some(index) =
            free.min_by_key(|&i| self.sets[i].as_ref().map_or(0, |set| set.last_used))
        else {
            return Err(Error::AdapterSets { most: MAX_SETS - 1 });
        };
        // Pinned, so that one does not make room for the next.
        self.pin(entries, 1);
        let resident =
            entries.iter().try_for_each(|(entry, _)| self.make_resident(gpu, *entry, read));
        self.pin(entries, -1);
        resident?;
        let pass = self.checked_pass(entries)?;
        let named = |(entry, weight): &(EntryId, f32)| {
            [self.entries[entry].digest.as_bytes(), &weight.to_le_bytes()].concat()
        };
        let digest = sha256(entries.iter().map(named));
        let (adapters, entries) = (adapters.to_vec(), entries.to_vec());
        self.sets[index] =
            Some(Set { adapters, entries, users: 0, last_used: self.clock, digest, pass });
        self.write_set(gpu, index);
        Ok(index)
    }

    /// Errors: [`Error::InvalidArgument`] when the ranks add up to too much.
    fn checked_pass(&self, entries: &[(EntryId, f32)]) -> Result<LoraPass> {
        let mut pass = LoraPass::default();
        for (number, (kind, _)) in sites(self.shape.num_hidden_layers).enumerate() {
            let rank: u32 = self.placed(entries, number).map(|(site, ..)| site.rank).sum();
            if rank > MAX_RANK {
                let reason = format!("ranks of {rank} together; at most {MAX_RANK}, merge some");
                return Err(Error::InvalidArgument { name: "adapters", reason });
            }
            let u_width = &mut pass.u_width[kind as usize];
            *u_width = (*u_width).max(rank * kind.targets().len() as u32);
        }
        Ok(pass)
    }

    /// The adapters that have something at a site: their place, their block, their weight.
    fn placed(
        &self,
        entries: &[(EntryId, f32)],
        site: usize,
    ) -> impl Iterator<Item = (PackedSite, Block, f32)> {
        let placed = move |(entry, weight): &(EntryId, f32)| {
            let resident = self.entries.get(entry)?.resident.as_ref()?;
            let site = resident.sites.get(site).filter(|site| site.rank > 0)?;
            Some((*site, resident.block, *weight))
        };
        entries.iter().filter_map(placed)
    }

    fn write_set(&mut self, gpu: &Gpu, index: usize) {
        let (Some(set), Some((a, b, _))) = (&self.sets[index], self.arena.tensors()) else {
            return;
        };
        let entries = ENTRIES as usize;
        let (mut for_a, mut for_b) = (Vec::new(), Vec::new());
        let (a_first, b_first) = self.arena.first();
        for site in 0..self.directory.sites as usize {
            let start = for_a.len();
            let mut before = 0;
            for (place, block, weight) in self.placed(&set.entries, site) {
                let rows = place.rank * place.modules;
                let weight = (weight * place.weight).to_bits();
                for_a.push([a_first + block.a + place.a, rows, weight, before]);
                for_b.push([b_first + block.b + place.b, place.rank, weight, before]);
                before += rows;
            }
            for list in [&mut for_a, &mut for_b] {
                let end = list.len();
                list[start..end]
                    .iter_mut()
                    .rev()
                    .skip(1)
                    .for_each(|entry: &mut lora::Entry| entry[1] |= MORE);
                list.resize(start + entries, lora::Entry::default());
            }
        }
        let offset = (u64::from(self.directory.rows)
            + index as u64 * u64::from(self.directory.set_words()))
            * 4;
        gpu.write(a, offset, &for_a);
        gpu.write(b, offset, &for_b);
        let firsts = for_a.into_iter().zip(for_b).step_by(entries).map(|(a, b)| [a, b]);
        let alone = (set.adapters.len() == 1).then(|| firsts.collect());
        if let Some(set) = &mut self.sets[index] {
            set.pass.alone = alone;
        }
    }
}

/// That of passes of up to `rows` rows over a base of `shape`.
pub(crate) fn directory(shape: &BaseShape, rows: usize) -> Directory {
    Directory {
        rows: rows.next_multiple_of(4) as u32,
        sets: MAX_SETS as u32,
        sites: site_count(shape.num_hidden_layers) as u32,
    }
}
