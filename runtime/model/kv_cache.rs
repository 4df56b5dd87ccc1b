//! Keys and values by layer and page, and who holds which page.
//!
//! A page holds the keys and values of [`PAGE_LEN`] positions of one sequence in every layer.
//! Sessions share pages by counting: a fork shares its parent's, a prompt that begins like an
//! earlier one takes its pages over.

use std::collections::{HashMap, VecDeque};

use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu, Tensor};
use crate::identity::sha256;

/// Positions in a page.
pub const PAGE_LEN: usize = 32;

/// Names the tokens of a page and all before it: what makes two pages interchangeable.
pub type PageKey = [u8; 32];

/// Which pages are in use, by whom, and what the idle ones still hold. Knows no GPU.
#[derive(Debug, Default)]
pub struct PagePool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Unused pages that still hold a known prefix, longest unused first.
    idle: VecDeque<u32>,
    index: HashMap<PageKey, u32>,
}

#[derive(Debug, Default)]
struct Page {
    users: u32,
    key: Option<PageKey>,
}

impl PagePool {
    /// Pages there are.
    pub fn capacity(&self) -> usize {
        self.pages.len()
    }

    /// Pages that nobody uses.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Adds pages until there are `capacity`.
    pub fn grow(&mut self, capacity: usize) {
        let old = self.pages.len();
        self.pages.resize_with(capacity.max(old), Page::default);
        self.free.extend((old..self.pages.len()).rev().map(|page| page as u32));
    }

    /// A page for one user, or `None` when all are in use. An idle prefix is forgotten for it if
    /// need be.
    pub fn allocate(&mut self) -> Option<u32> {
        let page = self.free.pop().or_else(|| self.idle.pop_front())?;
        let entry = &mut self.pages[page as usize];
        entry.users = 1;
        if let Some(key) = entry.key.take() {
            self.index.remove(&key);
        }
        Some(page)
    }

    /// One more user of `page`.
    pub fn retain(&mut self, page: u32) {
        self.pages[page as usize].users += 1;
    }

    /// One user less; the last one's page becomes idle or free.
    pub fn release(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        entry.users -= 1;
        if entry.users == 0 {
            if entry.key.is_some() {
                self.idle.push_back(page);
            } else {
                self.free.push(page);
            }
        }
    }

    /// Others use `page`, or may find it by its key: its contents must stay.
    pub fn is_shared(&self, page: u32) -> bool {
        let page = &self.pages[page as usize];
        page.users > 1 || page.key.is_some()
    }

    /// The page that holds `key`, with one more user.
    pub fn find(&mut self, key: &PageKey) -> Option<u32> {
        let page = *self.index.get(key)?;
        if self.pages[page as usize].users == 0 {
            self.idle.retain(|&idle| idle != page);
        }
        self.retain(page);
        Some(page)
    }

    /// Tells that `page` now holds `key`, unless another page does.
    pub fn publish(&mut self, page: u32, key: PageKey) {
        if self.pages[page as usize].key.is_none() && !self.index.contains_key(&key) {
            self.pages[page as usize].key = Some(key);
            self.index.insert(key, page);
        }
    }
}

/// The key of a page that holds `tokens` after the pages that `before` names.
pub fn page_key(before: Option<&PageKey>, tokens: &[u32]) -> PageKey {
    let before = before.map_or(&[0; 32], |key| key);
    sha256([before.as_slice(), bytemuck::cast_slice(tokens)])
}

/// The cache on the device: `[pages, kv_heads, PAGE_LEN, head_dim]` keys and values for each layer.
pub struct KvCache {
    /// Keys and values by layer.
    pub layers: Vec<(Tensor, Tensor)>,
    /// Bytes of a page in one of those buffers.
    pub page_bytes: u64,
    /// Most pages that fit one binding and the context asked for.
    pub max_pages: usize,
}

impl KvCache {
    /// `pages` pages for `layers` layers; `width` is `kv_heads` × `head_dim`, `element_bytes` 2 for
    /// f16 or 4 for f32.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub fn new(
        gpu: &Gpu,
        layers: usize,
        width: usize,
        element_bytes: usize,
        pages: usize,
        most: usize,
    ) -> Result<Self> {
        let page_bytes = (width * element_bytes * PAGE_LEN) as u64;
        let max_pages = most.min((gpu.caps().max_binding_bytes / page_bytes) as usize);
        let mut cache = Self { layers: Vec::with_capacity(layers), page_bytes, max_pages };
        for _ in 0..layers {
            let bytes = pages.min(max_pages) as u64 * page_bytes;
            cache.layers.push((
                gpu.storage("kv_cache keys", bytes)?,
                gpu.storage("kv_cache values", bytes)?,
            ));
        }
        Ok(cache)
    }

    /// Pages there is memory for.
    pub fn pages(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| (keys.bytes() / self.page_bytes) as usize)
    }

    /// Makes room for at least `pages`, doubling, and copies what there is. Bind groups on the old
    /// buffers are stale.
    ///
    /// Errors: [`Error::ContextFull`] beyond `max_pages`; [`Error::OutOfMemory`]; the cache is then
    /// as it was.
    pub fn grow(&mut self, gpu: &Gpu, pages: usize) -> Result<()> {
        if pages > self.max_pages {
            return Err(Error::ContextFull {
                needed: pages * PAGE_LEN,
                capacity: self.max_pages * PAGE_LEN,
            });
        }
        let bytes = pages.max(2 * self.pages()).min(self.max_pages) as u64 * self.page_bytes;
        let mut grown = Vec::with_capacity(self.layers.len());
        let mut commands = Commands::new(gpu)?;
        for (keys, values) in &self.layers {
            let new =
                (gpu.storage("kv_cache keys", bytes)?, gpu.storage("kv_cache values", bytes)?);
            commands.copy(keys, 0, &new.0, 0, keys.bytes());
            commands.copy(values, 0, &new.1, 0, values.bytes());
            grown.push(new);
        }
        commands.submit();
        self.layers = grown;
        Ok(())
    }

    /// Records a copy of page `from` to page `to` in every layer.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub fn copy_page(&self, commands: &mut Commands<'_>, from: u32, to: u32) -> Result<()> {
        let (from, to) = (u64::from(from) * self.page_bytes, u64::from(to) * self.page_bytes);
        for (keys, values) in &self.layers {
            commands.copy_within(keys, from, to, self.page_bytes)?;
            commands.copy_within(values, from, to, self.page_bytes)?;
        }
        Ok(())
    }
}
