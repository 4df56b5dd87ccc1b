//! Keys and values by layer and page, and who holds which page.
//!
//! A page holds the keys and values of [`PAGE_LEN`] positions of one sequence in every layer.
//! Sessions share pages by counting: a fork shares its parent's, a prompt that begins like an
//! earlier one takes its pages over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Class, Commands, Gpu, Memory, Tensor};
use crate::identity::sha256;
use crate::model::activations::Limits;

/// Positions in a page.
pub const PAGE_LEN: usize = 32;
/// Pages allocated at first; the cache doubles when they run out.
const FIRST_PAGES: usize = 32;

/// Names the tokens of a page and all before it: what makes two pages interchangeable.
pub type PageKey = [u8; 32];

/// A page, as those who hold it know it. Its number changes when the cache is made smaller, and it
/// is gone when what was in it had to make room; neither happens during a pass.
#[derive(Clone, Debug, Default)]
pub struct PageRef(Arc<AtomicU32>);

/// Number of a page that is gone.
const GONE: u32 = u32::MAX;

impl PageRef {
    fn new(number: usize) -> Self {
        Self(Arc::new(AtomicU32::new(number as u32)))
    }

    /// Where it is in the cache; that of a page that is gone is nowhere.
    pub fn number(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// What was in it is there no more.
    pub fn is_gone(&self) -> bool {
        self.number() == GONE
    }

    fn index(&self) -> Option<usize> {
        (!self.is_gone()).then(|| self.number() as usize)
    }
}

/// Which pages are in use, by whom, and what the idle ones still hold. Knows no GPU.
#[derive(Debug, Default)]
pub struct PagePool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Unused pages that still hold a known prefix, longest unused first.
    idle: VecDeque<u32>,
    index: HashMap<PageKey, u32>,
}

#[derive(Debug)]
struct Page {
    handle: PageRef,
    users: u32,
    key: Option<PageKey>,
}

impl Page {
    fn new(number: usize) -> Self {
        Self { handle: PageRef::new(number), users: 0, key: None }
    }
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
        self.pages.extend((old..capacity).map(Page::new));
        self.free.extend((old..self.pages.len()).rev().map(|page| page as u32));
    }

    /// A page for one user, or `None` when all are in use. An idle prefix is forgotten for it if
    /// need be.
    pub fn allocate(&mut self) -> Option<PageRef> {
        let page = self.free.pop().or_else(|| self.idle.pop_front())?;
        let entry = &mut self.pages[page as usize];
        entry.users = 1;
        if let Some(key) = entry.key.take() {
            self.index.remove(&key);
        }
        Some(entry.handle.clone())
    }

    /// One more user of `page`.
    pub fn retain(&mut self, page: &PageRef) {
        if let Some(index) = page.index() {
            self.pages[index].users += 1;
        }
    }

    /// One user less; the last one's page becomes idle or free.
    pub fn release(&mut self, page: &PageRef) {
        let Some(index) = page.index() else { return };
        let entry = &mut self.pages[index];
        entry.users -= 1;
        if entry.users == 0 {
            if entry.key.is_some() {
                self.idle.push_back(page.number());
            } else {
                self.free.push(page.number());
            }
        }
    }

    /// Others use `page`, or may find it by its key: its contents must stay.
    pub fn is_shared(&self, page: &PageRef) -> bool {
        let page = page.index().map(|index| &self.pages[index]);
        page.is_some_and(|page| page.users > 1 || page.key.is_some())
    }

    /// The page that holds `key`, with one more user.
    pub fn find(&mut self, key: &PageKey) -> Option<PageRef> {
        let page = *self.index.get(key)?;
        let entry = &mut self.pages[page as usize];
        if entry.users == 0 {
            self.idle.retain(|&idle| idle != page);
        }
        entry.users += 1;
        Some(entry.handle.clone())
    }

    /// Tells that `page` now holds `key`, unless another page does.
    pub fn publish(&mut self, page: &PageRef, key: PageKey) {
        let Some(index) = page.index() else { return };
        if self.pages[index].key.is_none() && !self.index.contains_key(&key) {
            self.pages[index].key = Some(key);
            self.index.insert(key, page.number());
        }
    }

    /// Forgets the prefixes that nobody uses.
    pub fn forget_idle(&mut self) {
        for page in self.idle.drain(..) {
            if let Some(key) = self.pages[page as usize].key.take() {
                self.index.remove(&key);
            }
            self.free.push(page);
        }
    }

    /// The pages in use, in order.
    pub fn used(&self) -> Vec<u32> {
        (0..)
            .zip(&self.pages)
            .filter(|(_, page)| page.users > 0)
            .map(|(number, _)| number)
            .collect()
    }

    /// Numbers the pages in use anew, from 0 and in their order, and adds free ones until there are
    /// `capacity`. Idle ones are forgotten.
    pub fn renumber(&mut self, capacity: usize) {
        let used = std::mem::take(&mut self.pages).into_iter().filter(|page| page.users > 0);
        *self = Self { pages: used.collect(), ..Self::default() };
        for (number, page) in (0..).zip(&self.pages) {
            page.handle.0.store(number, Ordering::Relaxed);
            self.index.extend(page.key.map(|key| (key, number)));
        }
        self.grow(capacity);
    }

    /// All pages are gone, whoever uses them; there are `capacity` free ones.
    pub fn clear(&mut self, capacity: usize) {
        self.pages.iter().for_each(|page| page.handle.0.store(GONE, Ordering::Relaxed));
        *self = Self::default();
        self.grow(capacity);
    }
}

/// The key of a page that holds `tokens` after the pages that `before` names.
pub fn page_key(before: Option<&PageKey>, tokens: &[u32]) -> PageKey {
    let before = before.map_or(&[0; 32], |key| key);
    sha256([before.as_slice(), bytemuck::cast_slice(tokens)])
}

/// The cache on the device: `[pages, kv_heads, PAGE_LEN, head_dim]` keys and values for each layer.
pub struct KvCache<T = Tensor> {
    /// Keys and values by layer.
    pub layers: Vec<(T, T)>,
    /// Bytes of a page in one of those buffers.
    pub page_bytes: u64,
    /// Most pages that fit one binding and the context asked for.
    pub max_pages: usize,
    /// A page in elements, and their bytes.
    page: PageShape,
    pages: usize,
}

/// A page of keys or of values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageShape {
    kv_heads: usize,
    head_dim: usize,
    element_bytes: usize,
}

impl PageShape {
    pub(crate) fn new(config: &ModelConfig, kv_f16: bool) -> Self {
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        Self { kv_heads, head_dim, element_bytes: if kv_f16 { 2 } else { 4 } }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.kv_heads * self.head_dim * self.element_bytes * PAGE_LEN) as u64
    }
}

impl<T> KvCache<T> {
    /// A few pages, for sessions within `limits`.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub fn new(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        limits: &Limits,
    ) -> Result<Self> {
        let page = PageShape::new(config, limits.kv_f16);
        let page_bytes = page.bytes();
        // Every page table may be full, and then some stay for prefixes.
        let most = limits.max_pages() * limits.tables;
        let max_pages = most.min((memory.caps().max_binding_bytes / page_bytes) as usize);
        let pages = FIRST_PAGES.min(limits.max_pages()).min(max_pages);
        let layers = layers(memory, config.num_hidden_layers, page, pages)?;
        Ok(Self { layers, page_bytes, max_pages, page, pages })
    }

    /// Pages there is memory for.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// An empty cache with room for at least `pages`, doubled.
    ///
    /// Errors: [`Error::ContextFull`] beyond `max_pages`; [`Error::OutOfMemory`].
    pub(crate) fn larger(&self, memory: &impl Memory<Tensor = T>, pages: usize) -> Result<Self> {
        if pages > self.max_pages {
            return Err(Error::ContextFull {
                needed: pages * PAGE_LEN,
                capacity: self.max_pages * PAGE_LEN,
            });
        }
        self.of_size(memory, pages.max(2 * self.pages).min(self.max_pages))
    }

    /// An empty cache of `pages`.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(crate) fn of_size(&self, memory: &impl Memory<Tensor = T>, pages: usize) -> Result<Self> {
        Ok(Self { layers: layers(memory, self.layers.len(), self.page, pages)?, pages, ..*self })
    }
}

/// Keys and values of `pages` pages for each of `layers` layers.
fn layers<T>(
    memory: &impl Memory<Tensor = T>,
    layers: usize,
    PageShape { kv_heads, head_dim, element_bytes }: PageShape,
    pages: usize,
) -> Result<Vec<(T, T)>> {
    let buffer = |name: String| {
        let shape = [pages, kv_heads, PAGE_LEN, head_dim];
        memory.allocate(&Buffer::of(Class::KvCache, name, &shape, element_bytes))
    };
    let layer =
        |i| Ok((buffer(format!("kv_cache.{i}.keys"))?, buffer(format!("kv_cache.{i}.values"))?));
    (0..layers).map(layer).collect()
}

impl KvCache {
    /// Makes room for at least `pages`, doubling, and copies what there is. Bind groups on the old
    /// buffers are stale.
    ///
    /// Errors: [`Error::ContextFull`] beyond `max_pages`; [`Error::OutOfMemory`]; the cache is then
    /// as it was.
    pub fn grow(&mut self, gpu: &Gpu, pages: usize) -> Result<()> {
        let grown = self.larger(gpu, pages)?;
        let mut commands = Commands::new(gpu)?;
        for ((keys, values), new) in self.layers.iter().zip(&grown.layers) {
            commands.copy(keys, 0, &new.0, 0, keys.bytes());
            commands.copy(values, 0, &new.1, 0, values.bytes());
        }
        commands.submit();
        *self = grown;
        Ok(())
    }

    /// A cache of `pages`, whose first ones hold what `kept` do in this one.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(crate) fn with_only(&self, gpu: &Gpu, kept: &[u32], pages: usize) -> Result<Self> {
        let smaller = self.of_size(gpu, pages)?;
        let mut commands = Commands::new(gpu)?;
        for ((keys, values), new) in self.layers.iter().zip(&smaller.layers) {
            let mut to = 0;
            for run in kept.chunk_by(|a, b| a + 1 == *b) {
                let from = u64::from(run[0]) * self.page_bytes;
                let bytes = run.len() as u64 * self.page_bytes;
                commands.copy(keys, from, &new.0, to, bytes);
                commands.copy(values, from, &new.1, to, bytes);
                to += bytes;
            }
        }
        commands.submit();
        Ok(smaller)
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
