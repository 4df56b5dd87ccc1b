//! Where buffers come to lie: small ones share blocks, as wgpu's allocator has it for Vulkan.
//!
//! A block is only given back when nothing is left in it, so what the driver is asked for depends on
//! sizes, order and what was dropped in between.

/// A buffer's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    block: usize,
    start: u64,
    len: u64,
}

#[derive(Clone, Debug)]
struct Block {
    bytes: u64,
    /// Taken ranges, start and end, sorted.
    taken: Vec<(u64, u64)>,
}

impl Block {
    /// The smallest gap that `len` fits: its start.
    fn gap(&self, len: u64) -> Option<u64> {
        let starts = std::iter::once(0).chain(self.taken.iter().map(|(_, end)| *end));
        let ends = self.taken.iter().map(|(start, _)| *start).chain([self.bytes]);
        let gaps = starts.zip(ends).filter(|(start, end)| end - start >= len);
        gaps.min_by_key(|(start, end)| end - start).map(|(start, _)| start)
    }
}

/// The blocks of a device.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    /// Of a shared block; 0 where there are none.
    block_bytes: u64,
    /// `None` where one was given back.
    blocks: Vec<Option<Block>>,
}

impl Blocks {
    /// Those of a new device.
    pub(super) fn new(block_bytes: u64) -> Self {
        let mut new = Self { block_bytes, blocks: Vec::new() };
        if block_bytes > 0 {
            new.take(WGPU_ZEROS);
        }
        new
    }

    /// Bytes of all blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.blocks.iter().flatten().fold(0, |sum, block| sum.saturating_add(block.bytes))
    }

    /// Makes room for a buffer: a block of its own if it is larger than a shared one, else in the
    /// newest that it fits.
    pub(super) fn take(&mut self, bytes: u64) -> Place {
        let len = bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(bytes);
        let index = self.shared(len).unwrap_or_else(|| self.add(len.max(self.block_bytes)));
        let mut place = Place { block: index, start: 0, len };
        if let Some(block) = &mut self.blocks[index] {
            place.start = block.gap(len).unwrap_or_default();
            let at = block.taken.partition_point(|(other, _)| *other < place.start);
            block.taken.insert(at, (place.start, place.start + len));
        }
        place
    }

    /// The newest shared block that has a gap of `len`.
    fn shared(&self, len: u64) -> Option<usize> {
        let fits = |block: &Block| block.bytes == self.block_bytes && block.gap(len).is_some();
        self.blocks.iter().rposition(|block| block.as_ref().is_some_and(fits))
    }

    /// A new block.
    fn add(&mut self, bytes: u64) -> usize {
        let index = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        if index == self.blocks.len() {
            self.blocks.push(None);
        }
        self.blocks[index] = Some(Block { bytes, taken: Vec::new() });
        index
    }

    /// Gives a buffer's place back, and the block if it was the last one there.
    pub(super) fn give_back(&mut self, place: Place) {
        let slot = &mut self.blocks[place.block];
        if let Some(block) = slot {
            block.taken.retain(|range| *range != (place.start, place.start + place.len));
            if block.taken.is_empty() {
                *slot = None;
            }
        }
    }
}

/// Zeros that wgpu copies from.
const WGPU_ZEROS: u64 = 512 << 10;
/// Of a buffer's size, as drivers have it.
const ALIGNMENT: u64 = 64;
