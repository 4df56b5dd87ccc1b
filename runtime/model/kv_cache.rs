//! Keys and values by layer and page, and who holds which page.
//!
//! A page holds the keys and values of [`PAGE_LEN`] positions of one sequence in every layer.
//! Sessions share pages by counting: a fork shares its parent's, a prompt that begins like an
//! earlier one takes its pages over.

use std::collections::{HashMap, VecDeque};

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

    /// Whether a page holds `key`.
    pub fn holds(&self, key: &PageKey) -> bool {
        self.index.contains_key(key)
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

/// Which positions a layer's pages are kept of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// Those in the window of the next one.
    Window,
}

/// The page of the first position that the token at `position` sees through a window.
pub(crate) fn first_page(position: usize, window: usize) -> usize {
    (position + 1).saturating_sub(window) / PAGE_LEN
}

/// The pages of a sequence: of every position, and, in layers with windows, of the last ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) all: Vec<u32>,
    pub(crate) window: Vec<u32>,
    /// The number of the first of them, among the sequence's.
    pub(crate) window_from: usize,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.window.is_empty()
    }

    /// The number of the page after the last one in windows.
    pub(crate) fn window_end(&self) -> usize {
        self.window_from + self.window.len()
    }

    /// Its pages of a reach.
    pub(crate) fn of(&self, reach: Reach) -> &[u32] {
        match reach {
            Reach::All => &self.all,
            Reach::Window => &self.window,
        }
    }

    /// Takes the pages from number `keep` on out.
    pub(crate) fn split_off(&mut self, keep: usize) -> Self {
        let all = self.all.split_off(keep.min(self.all.len()));
        let at = keep.saturating_sub(self.window_from).min(self.window.len());
        let split = Self { all, window: self.window.split_off(at), window_from: keep };
        if keep == 0 {
            self.window_from = 0;
        }
        split
    }

    /// Takes the pages of windows before number `first` out.
    pub(crate) fn slide(&mut self, first: usize) -> Vec<u32> {
        let gone = first.saturating_sub(self.window_from).min(self.window.len());
        self.window_from = self.window_from.max(first);
        self.window.drain(..gone).collect()
    }
}

/// The cache on the device: `[pages, kv_heads, PAGE_LEN, head_dim]` keys and values for each layer.
pub struct KvCache<T = Tensor> {
    /// Keys and values by layer.
    pub layers: Vec<(T, T)>,
    /// By layer.
    reach: Vec<Reach>,
    /// Bytes of a page in one of those buffers.
    pub page_bytes: u64,
    /// Most pages that fit one binding and the context asked for.
    pub max_pages: usize,
    /// A page in elements, and their bytes.
    page: PageShape,
    /// By [`Reach`].
    pages: [usize; 2],
}

/// A page of keys or of values.
#[derive(Clone, Copy, Debug)]
struct PageShape {
    kv_heads: usize,
    head_dim: usize,
    element_bytes: usize,
}

impl PageShape {
    /// Keys and values of `pages` pages for a layer.
    fn layer<T>(
        self,
        memory: &impl Memory<Tensor = T>,
        layer: usize,
        pages: usize,
    ) -> Result<(T, T)> {
        let shape = [pages, self.kv_heads, PAGE_LEN, self.head_dim];
        let buffer = |what: &str| {
            let name = format!("kv_cache.{layer}.{what}");
            memory.allocate(&Buffer::of(Class::KvCache, name, &shape, self.element_bytes))
        };
        Ok((buffer("keys")?, buffer("values")?))
    }
}

/// Buffers of a larger cache: of the layers of one reach, in order.
pub(crate) struct Larger<T = Tensor> {
    reach: Reach,
    pages: usize,
    layers: Vec<(T, T)>,
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
        let element_bytes = if limits.kv_f16 { 2 } else { 4 };
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        let page_bytes = (kv_heads * head_dim * element_bytes * PAGE_LEN) as u64;
        // Every page table may be full, and then some stay for prefixes.
        let most = limits.max_pages() * limits.tables;
        let max_pages = most.min((memory.caps().max_binding_bytes / page_bytes) as usize);
        let pages = FIRST_PAGES.min(limits.max_pages()).min(max_pages);
        let page = PageShape { kv_heads, head_dim, element_bytes };
        let reach = |layer| match config.attention(layer).window {
            Some(_) => Reach::Window,
            None => Reach::All,
        };
        let layers = 0..config.num_hidden_layers;
        Ok(Self {
            layers: layers
                .clone()
                .map(|layer| page.layer(memory, layer, pages))
                .collect::<Result<_>>()?,
            reach: layers.map(reach).collect(),
            page_bytes,
            max_pages,
            page,
            pages: [pages; 2],
        })
    }

    /// Pages there is memory for.
    pub fn pages(&self, reach: Reach) -> usize {
        self.pages[reach as usize]
    }

    /// What a layer's pages are kept of.
    pub(crate) fn reach(&self, layer: usize) -> Reach {
        self.reach[layer]
    }

    /// Buffers with room for at least `pages`, doubled.
    ///
    /// Errors: [`Error::ContextFull`] beyond `max_pages`; [`Error::OutOfMemory`].
    pub(crate) fn larger(
        &self,
        memory: &impl Memory<Tensor = T>,
        reach: Reach,
        pages: usize,
    ) -> Result<Larger<T>> {
        if pages > self.max_pages {
            return Err(Error::ContextFull {
                needed: pages * PAGE_LEN,
                capacity: self.max_pages * PAGE_LEN,
            });
        }
        let pages = pages.max(2 * self.pages(reach)).min(self.max_pages);
        let layers = (0..self.layers.len()).filter(|&layer| self.reach[layer] == reach);
        let layers = layers.map(|layer| self.page.layer(memory, layer, pages));
        Ok(Larger { reach, pages, layers: layers.collect::<Result<_>>()? })
    }

    /// Puts larger buffers in the place of the old ones.
    pub(crate) fn replace(&mut self, larger: Larger<T>) {
        let own = self.layers.iter_mut().zip(&self.reach).filter(|(_, of)| **of == larger.reach);
        own.zip(larger.layers).for_each(|((layer, _), new)| *layer = new);
        self.pages[larger.reach as usize] = larger.pages;
    }

    /// The layers of a reach.
    fn of(&self, reach: Reach) -> impl Iterator<Item = &(T, T)> {
        self.layers.iter().zip(&self.reach).filter(move |(_, of)| **of == reach).map(|(l, _)| l)
    }
}

impl KvCache {
    /// Makes room for at least `pages`, doubling, and copies what there is. Bind groups on the old
    /// buffers are stale.
    ///
    /// Errors: [`Error::ContextFull`] beyond `max_pages`; [`Error::OutOfMemory`]; the cache is then
    /// as it was.
    pub fn grow(&mut self, gpu: &Gpu, reach: Reach, pages: usize) -> Result<()> {
        let larger = self.larger(gpu, reach, pages)?;
        let mut commands = Commands::new(gpu)?;
        for ((keys, values), new) in self.of(reach).zip(&larger.layers) {
            commands.copy(keys, 0, &new.0, 0, keys.bytes());
            commands.copy(values, 0, &new.1, 0, values.bytes());
        }
        commands.submit();
        self.replace(larger);
        Ok(())
    }

    /// Records a copy of page `from` to page `to` in every layer of a reach.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub fn copy_page(
        &self,
        commands: &mut Commands<'_>,
        reach: Reach,
        from: u32,
        to: u32,
    ) -> Result<()> {
        let (from, to) = (u64::from(from) * self.page_bytes, u64::from(to) * self.page_bytes);
        for (keys, values) in self.of(reach) {
            commands.copy_within(keys, from, to, self.page_bytes)?;
            commands.copy_within(values, from, to, self.page_bytes)?;
        }
        Ok(())
    }
}
