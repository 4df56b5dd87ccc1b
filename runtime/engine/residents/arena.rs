//! Two growing buffers, one for the A and one for the B factors, each after room for the directory.

use crate::error::{Error, Result};
use crate::gpu::{Caps, Class, Memory, Tensor};

use super::packed::Eight;

/// Bytes of an [`Eight`].
pub(crate) const EIGHT: u64 = size_of::<Eight>() as u64;

/// An adapter's places, in [`Eight`]s after the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) a: u32,
    pub(crate) b: u32,
    a_len: u32,
    b_len: u32,
}

/// One of the two buffers: who has which range. First fit.
#[derive(Debug)]
struct Side<T> {
    tensor: Option<T>,
    capacity: u32,
    /// Taken ranges, sorted.
    taken: Vec<(u32, u32)>,
}

impl<T> Default for Side<T> {
    fn default() -> Self {
        Self { tensor: None, capacity: 0, taken: Vec::new() }
    }
}

impl<T> Side<T> {
    fn used(&self) -> u32 {
        self.taken.iter().map(|(_, len)| len).sum()
    }

    /// A free range of `len`.
    fn find(&self, len: u32) -> Option<u32> {
        let mut at = 0;
        for &(start, taken) in &self.taken {
            if start - at >= len {
                return Some(at);
            }
            at = start + taken;
        }
        (self.tensor.is_some() && self.capacity - at >= len).then_some(at)
    }

    fn take(&mut self, at: u32, len: u32) {
        let i = self.taken.partition_point(|&(start, _)| start < at);
        self.taken.insert(i, (at, len));
    }

    fn give_back(&mut self, at: u32, len: u32) {
        self.taken.retain(|&range| range != (at, len));
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Arena<T = Tensor> {
    directory_bytes: u64,
    budget: u64,
    most: u32,
    a: Side<T>,
    b: Side<T>,
    moves: u64,
}

/// Room that an adapter needs, in [`Eight`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    pub(crate) a: u32,
    pub(crate) b: u32,
}

/// Bytes to copy from a place of one buffer to one of another.
pub(crate) struct Copying<'a, T> {
    pub(crate) from: &'a T,
    pub(crate) from_offset: u64,
    pub(crate) to: &'a T,
    pub(crate) to_offset: u64,
    pub(crate) bytes: u64,
}

impl<T> Arena<T> {
    /// Nothing is allocated yet. `budget` is for the factors, without the directory; it is lowered
    /// to what the device can bind.
    pub(crate) fn new(caps: &Caps, directory_bytes: u64, budget: u64) -> Self {
        let directory_bytes = directory_bytes.next_multiple_of(EIGHT);
        let most = (caps.max_binding_bytes.saturating_sub(directory_bytes) / EIGHT)
            .min(u64::from(u32::MAX));
        let budget = budget.min(2 * EIGHT * most);
        Self {
            directory_bytes,
            budget,
            most: most as u32,
            a: Side::default(),
            b: Side::default(),
            moves: 0,
        }
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// The two buffers and how often they have moved; `None` before the first adapter.
    pub(crate) fn tensors(&self) -> Option<(&T, &T, u64)> {
        Some((self.a.tensor.as_ref()?, self.b.tensor.as_ref()?, self.moves))
    }

    /// Where the factors begin, in [`Eight`]s.
    pub(crate) fn first(&self) -> (u32, u32) {
        let first = (self.directory_bytes / EIGHT) as u32;
        (first, first)
    }

    /// Room for an adapter, if there is any as things lie.
    pub(crate) fn allocate(&mut self, Room { a, b }: Room) -> Option<Block> {
        let block = Block { a: self.a.find(a)?, b: self.b.find(b)?, a_len: a, b_len: b };
        self.a.take(block.a, a);
        self.b.take(block.b, b);
        Some(block)
    }

    pub(crate) fn free(&mut self, block: Block) {
        self.a.give_back(block.a, block.a_len);
        self.b.give_back(block.b, block.b_len);
    }

    /// Gives the buffers back; nothing is in them that is still wanted.
    pub(crate) fn clear(&mut self) {
        if self.a.tensor.is_some() {
            (self.a, self.b) = (Side::default(), Side::default());
            self.moves += 1;
        }
    }

    /// Nobody has room in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.a.taken.is_empty() && self.b.taken.is_empty()
    }

    /// Whether growing or tidying would make room without taking any adapter off.
    pub(crate) fn can_make_room(&self, Room { a, b }: Room) -> bool {
        let (a, b) =
            (u64::from(self.a.used()) + u64::from(a), u64::from(self.b.used()) + u64::from(b));
        a <= u64::from(self.most) && b <= u64::from(self.most) && (a + b) * EIGHT <= self.budget
    }

    /// New buffers with room for one more; `blocks` are all there are, and are moved
    /// together by `copy`.
    ///
    /// Errors: [`crate::Error::OutOfMemory`]; everything is then where it was.
    pub(crate) fn rebuild(
        &mut self,
        memory: &impl Memory<Tensor = T>,
        Room { a, b }: Room,
        blocks: &mut [&mut Block],
        copy: &mut dyn FnMut(Copying<'_, T>),
    ) -> Result<()> {
        let (a_needed, b_needed) = (self.a.used() + a, self.b.used() + b);
        let all = u64::from(a_needed) + u64::from(b_needed);
        // Twice what is needed saves moving again, as far as both sides together keep to the
        // budget.
        let spare = (self.budget / EIGHT).saturating_sub(all).min(all);
        let capacity = |needed: u32, spare: u64| {
            let more = u128::from(spare) * u128::from(needed) / u128::from(all.max(1));
            needed.saturating_add(more as u32).min(self.most).max(needed)
        };
        let side = |label: &str, capacity: u32| -> Result<Side<T>> {
            let words = self.directory_bytes / 4 + u64::from(capacity) * (EIGHT / 4);
            let tensor = memory.words(Class::Adapter, label, &[words as usize])?;
            Ok(Side { tensor: Some(tensor), capacity, taken: Vec::new() })
        };
        let sides = |spare: u64| -> Result<[Side<T>; 2]> {
            Ok([
                side("adapters A", capacity(a_needed, spare))?,
                side("adapters B", capacity(b_needed, spare))?,
            ])
        };
        let [mut a, mut b] = sides(spare).or_else(|error| match error {
            Error::OutOfMemory { .. } if spare > 0 => sides(0),
            error => Err(error),
        })?;
        for block in blocks.iter_mut() {
            let moved = Block { a: a.used(), b: b.used(), ..**block };
            let offset = |at: u32| self.directory_bytes + u64::from(at) * EIGHT;
            let ends = [
                (&self.a, block.a, &a, moved.a, block.a_len),
                (&self.b, block.b, &b, moved.b, block.b_len),
            ];
            for (old, from, new, to, len) in ends {
                if let (Some(old), Some(new)) = (&old.tensor, &new.tensor) {
                    copy(Copying {
                        from: old,
                        from_offset: offset(from),
                        to: new,
                        to_offset: offset(to),
                        bytes: u64::from(len) * EIGHT,
                    });
                }
            }
            a.take(moved.a, moved.a_len);
            b.take(moved.b, moved.b_len);
            **block = moved;
        }
        (self.a, self.b) = (a, b);
        self.moves += 1;
        Ok(())
    }
}
