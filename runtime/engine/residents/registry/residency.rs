//! Who is on the device: adapters are sent there, make room for others, and move when the buffers
//! grow.

use std::sync::Arc;

use super::super::arena::{Block, Room};
use super::super::entry::{EntryId, ReadAgain, Resident, Source};
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
            (Source::Path(_), None) => match self.absentee(number) {
                Some(absent) => absent.read(&self.shape)?,
                None => return Ok(()),
            },
        };
        self.send(gpu, number, &packed)
    }

    /// Sends factors to the device, making room if need be.
    pub(super) fn send(&mut self, gpu: &Gpu, number: EntryId, packed: &Packed) -> Result<()> {
        let [a, b] =
            [&packed.a, &packed.b].map(|factors| (factors.len() / Eight::default().len()) as u32);
        let room = Room { a, b };
        let (needed_bytes, budget_bytes) = (packed.bytes(), self.arena.budget());
        let id = self.entries.get(&number).map(|entry| entry.id.clone()).unwrap_or_default();
        let full = || Error::AdapterBudget { id: id.clone(), needed_bytes, budget_bytes };
        // Nobody makes room in vain.
        let staying =
            self.entries.values().filter(|entry| entry.pins > 0 && entry.resident.is_some());
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
        self.forget_sets(oldest);
        let resident = self.entries.get_mut(&oldest).and_then(|entry| entry.resident.take());
        if let Some(Resident { block, .. }) = resident {
            self.arena.free(block);
        }
        true
    }

    /// Forgets the unused sets that contain an adapter.
    pub(super) fn forget_sets(&mut self, number: EntryId) {
        for set in &mut self.sets {
            if set.as_ref().is_some_and(|set| {
                set.users == 0 && set.entries.iter().any(|(entry, _)| *entry == number)
            }) {
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
