//! Keys and values by layer and page, on the device.

use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Class, Commands, Gpu, Memory, Tensor};
use crate::model::activations::Limits;
use crate::model::pages::{PAGE_LEN, Reach};

/// Pages allocated at first; the cache doubles when they run out.
const FIRST_PAGES: usize = 32;

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

/// Other buffers for the layers of one reach, in order.
pub(crate) struct Resized<T = Tensor> {
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
        let page = PageShape::new(config, limits.kv_f16);
        let page_bytes = page.bytes();
        // Every page table may be full, and then some stay for prefixes.
        let most = limits.max_pages() * limits.tables;
        let max_pages = most.min((memory.caps().max_binding_bytes / page_bytes) as usize);
        let pages = FIRST_PAGES.min(limits.max_pages()).min(max_pages);
        let layers = 0..config.num_hidden_layers;
        Ok(Self {
            layers: layers
                .clone()
                .map(|layer| page.layer(memory, layer, pages))
                .collect::<Result<_>>()?,
            reach: layers.map(|layer| Reach::of(config, layer)).collect(),
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

    /// Empty buffers with room for at least `pages`, doubled.
    ///
    /// Errors: [`Error::ContextFull`] beyond `max_pages`; [`Error::OutOfMemory`].
    pub(crate) fn larger(
        &self,
        memory: &impl Memory<Tensor = T>,
        reach: Reach,
        pages: usize,
    ) -> Result<Resized<T>> {
        if pages > self.max_pages {
            return Err(Error::ContextFull {
                needed: pages * PAGE_LEN,
                capacity: self.max_pages * PAGE_LEN,
            });
        }
        let pages = pages.max(2 * self.pages(reach)).min(self.max_pages);
        self.of_size(memory, reach, pages)
    }

    /// Empty buffers of `pages`.
    ///
    /// Errors: [`Error::OutOfMemory`].
    fn of_size(
        &self,
        memory: &impl Memory<Tensor = T>,
        reach: Reach,
        pages: usize,
    ) -> Result<Resized<T>> {
        let layers = (0..self.layers.len()).filter(|&layer| self.reach[layer] == reach);
        let layers = layers.map(|layer| self.page.layer(memory, layer, pages));
        Ok(Resized { reach, pages, layers: layers.collect::<Result<_>>()? })
    }

    /// Puts other buffers in the place of the old ones. Bind groups on those are stale.
    pub(crate) fn replace(&mut self, resized: Resized<T>) {
        let own = self.layers.iter_mut().zip(&self.reach).filter(|(_, of)| **of == resized.reach);
        own.zip(resized.layers).for_each(|((layer, _), new)| *layer = new);
        self.pages[resized.reach as usize] = resized.pages;
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

    /// Keeps what `kept` hold, as the first of `pages`. Bind groups on the old buffers are stale.
    ///
    /// Errors: [`Error::OutOfMemory`]; the cache is then as it was.
    pub(crate) fn keep_only(
        &mut self,
        gpu: &Gpu,
        reach: Reach,
        kept: &[u32],
        pages: usize,
    ) -> Result<()> {
        let smaller = self.of_size(gpu, reach, pages)?;
        if !kept.is_empty() {
            let mut commands = Commands::new(gpu)?;
            for ((keys, values), new) in self.of(reach).zip(&smaller.layers) {
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
        }
        self.replace(smaller);
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
