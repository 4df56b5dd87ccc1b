//! Who is on the device: adapters are sent there, make room for others, and move when the buffers
//! grow.

use std::sync::Arc;

use super::super::arena::{Block, Room};
use super::super::entry::{Absent, EntryId, ReadAgain, Resident, Set, SetId, Source};
use super::super::packed::{Eight, Packed};
use super::{MAX_SETS, Registry};
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu};
use crate::parallel;

/// f16 that are copied to the device's memory at a time; a multiple of an [`Eight`].
const PIECE: usize = 1 << 20;

impl Registry {
    /// Sends an adapter to the device, unless it is there.
    ///
    /// Errors: as [`Registry::send`]; as [`super::super::entry::Absent::read`] for one that is
    /// neither in memory nor in `read`.
    pub(super) fn make_resident(
        &mut self,
        gpu: &Gpu,
        number: EntryId,
        read: &ReadAgain,
    ) -> Result<()> {
        let Some(entry) = self.entries.get(&number).filter(|entry| entry.resident.is_none()) else {
            return Ok(());
        };
        let packed = match (&entry.source, read.get(&number)) {
            (Source::Memory(packed), _) | (_, Some(packed)) => Arc::clone(packed),
            (Source::Path { .. }, None) => match self.absentee(number) {
                Some(absent) => absent.read(&self.shape)?,
                None => return Ok(()),
            },
        };
        self.send(gpu, number, &packed)?;
        // Sets that are in use have waited for it.
        let has_it = |set: &Option<Set>| set.as_ref().is_some_and(|set| set.has(number));
        let sets: Vec<usize> = (1..MAX_SETS).filter(|&index| has_it(&self.sets[index])).collect();
        sets.into_iter().for_each(|index| self.write_set(gpu, index));
        Ok(())
    }

    /// Sends factors to the device, making room if need be.
    pub(super) fn send(&mut self, gpu: &Gpu, number: EntryId, packed: &Packed) -> Result<()> {
        let [a, b] =
            [&packed.a, &packed.b].map(|factors| (factors.len() / Eight::default().len()) as u32);
        let room = Room { a, b };
        let (needed_bytes, budget_bytes) = (packed.bytes(), self.arena.budget());
        let id = self.entries.get(&number).map(|entry| entry.id.clone()).unwrap_or_default();
        let full = || Error::AdapterBudget { id: id.clone(), needed_bytes, budget_bytes };
        // Nobody makes room in vain. One in use that is off the device comes back.
        let staying = self.entries.iter().filter(|(other, entry)| {
            let comes_back = || self.sets.iter().flatten().any(|set| set.is_using(**other));
            **other != number && entry.pins > 0 && (entry.resident.is_some() || comes_back())
        });
        let staying = staying.map(|(_, entry)| entry);
        if staying.map(|entry| entry.bytes).sum::<u64>() + needed_bytes > budget_bytes {
            return Err(full());
        }
        let block = loop {
            if let Some(block) = self.arena.allocate(room) {
                break block;
            }
            if self.arena.can_make_room(room) {
                self.move_arena(gpu, room)?;
            } else if !self.evict(number) {
                return Err(full());
            }
        };
        if let Some((a, b, _)) = self.arena.tensors() {
            let (a_first, b_first) = self.arena.first();
            let (a_at, b_at) =
                (u64::from(a_first + block.a) * 16, u64::from(b_first + block.b) * 16);
            let pieces = |at: u64| (at..).step_by(2 * PIECE);
            let a = pieces(a_at).zip(packed.a.chunks(PIECE)).map(|(at, piece)| (a, at, piece));
            let b = pieces(b_at).zip(packed.b.chunks(PIECE)).map(|(at, piece)| (b, at, piece));
            parallel::map(a.chain(b).collect(), |(tensor, at, piece)| gpu.write(tensor, at, piece));
        }
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.resident = Some(Resident { block, sites: packed.sites.clone() });
            entry.last_used = self.clock;
        }
        Ok(())
    }

    /// Whether all of a set's adapters are on the device.
    pub(crate) fn is_resident(&self, set: SetId) -> bool {
        let entries = self.sets[set.0 as usize].iter().flat_map(|set| &set.entries);
        entries.filter_map(|(entry, _)| self.entries.get(entry)).all(|e| e.resident.is_some())
    }

    /// Those of a set that have to be read again before [`Registry::restore`].
    pub(crate) fn absent_of(&self, set: SetId, read: &ReadAgain) -> Vec<Absent> {
        let entries = self.sets[set.0 as usize].iter().flat_map(|set| &set.entries);
        let absent = entries.filter(|(entry, _)| !read.contains_key(entry));
        absent.filter_map(|(entry, _)| self.absentee(*entry)).collect()
    }

    /// Brings the adapters of a set back to the device, those in files by way of `read`.
    ///
    /// Errors: as [`Registry::send`] and [`super::super::entry::Absent::read`].
    pub(crate) fn restore(&mut self, gpu: &Gpu, set: SetId, read: &ReadAgain) -> Result<()> {
        if self.is_resident(set) {
            return Ok(());
        }
        let entries = self.sets[set.0 as usize].as_ref().map(|set| set.entries.clone());
        let entries = entries.unwrap_or_default();
        // Pinned, so that one does not make room for the next.
        self.pin(&entries, 1);
        let resident =
            entries.iter().try_for_each(|(entry, _)| self.make_resident(gpu, *entry, read));
        self.pin(&entries, -1);
        resident
    }

    /// Takes all adapters off the device that can be had again, those in use too. The others keep
    /// their places; the buffers go with the last.
    pub(crate) fn evict_all(&mut self) {
        let there: Vec<EntryId> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.resident.is_some() && entry.source.is_there())
            .map(|(number, _)| *number)
            .collect();
        there.into_iter().for_each(|number| self.take_off(number));
        if self.arena.is_empty() {
            self.arena.clear();
        }
    }

    /// The device is gone, and all that was on it.
    pub(crate) fn forget_device(&mut self) {
        let all: Vec<EntryId> = self.entries.keys().copied().collect();
        all.into_iter().for_each(|number| self.take_off(number));
        self.arena.clear();
    }

    fn take_off(&mut self, number: EntryId) {
        self.forget_sets(number);
        let resident = self.entries.get_mut(&number).and_then(|entry| entry.resident.take());
        if let Some(Resident { block, .. }) = resident {
            self.arena.free(block);
        }
    }

    /// Takes the least recently used adapter off the device, but not this one; false when all are
    /// in use.
    fn evict(&mut self, number: EntryId) -> bool {
        let idle = self
            .entries
            .iter()
            .filter(|(other, e)| **other != number && e.pins == 0 && e.resident.is_some());
        let Some(oldest) = idle.min_by_key(|(_, entry)| entry.last_used).map(|(other, _)| *other)
        else {
            return false;
        };
        self.take_off(oldest);
        true
    }

    /// Forgets the unused sets that contain an adapter.
    pub(super) fn forget_sets(&mut self, number: EntryId) {
        for set in &mut self.sets {
            if set.as_ref().is_some_and(|set| set.users == 0 && set.has(number)) {
                *set = None;
            }
        }
    }

    /// Larger or tidier buffers: every adapter and the directory move.
    fn move_arena(&mut self, gpu: &Gpu, room: Room) -> Result<()> {
        let mut residents: Vec<_> =
            self.entries.values_mut().filter_map(|entry| entry.resident.as_mut()).collect();
        let mut blocks: Vec<&mut Block> =
            residents.iter_mut().map(|resident| &mut resident.block).collect();
        let mut commands = Commands::new(gpu)?;
        self.arena.rebuild(gpu, room, &mut blocks, &mut |copy| {
            commands.copy(copy.from, copy.from_offset, copy.to, copy.to_offset, copy.bytes);
        })?;
        commands.submit();
        (1..MAX_SETS).for_each(|index| self.write_set(gpu, index));
        Ok(())
    }
}
