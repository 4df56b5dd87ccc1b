//! Room for pages: the cache grows when sessions need it and shrinks when the phone does.

use super::super::pressure::MemoryLevel;
use super::super::residents::SetId;
use super::Executor;
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu};
use crate::model::kv_cache::{PAGE_LEN, PageRef};

impl Executor {
    /// Whether what a session has computed is still there, and its adapters are.
    pub(crate) fn holds(&self, pages: &[PageRef], set: SetId) -> bool {
        !pages.iter().any(PageRef::is_gone) && self.registry.is_resident(set)
    }

    /// Gives back what `level` allows, less the weights. No pass is under way. Without `may_copy`
    /// pages in use stay where they are.
    ///
    /// Errors: [`Error::OutOfMemory`] for the smaller cache; as [`Gpu::kernel`]. It may then be
    /// bound to what is no longer there.
    pub(crate) fn relieve(&mut self, gpu: &Gpu, level: MemoryLevel, may_copy: bool) -> Result<()> {
        // Whoever decodes loads its rows anew.
        self.owner = 0;
        if level >= MemoryLevel::Low {
            for workspace in [&mut self.steps, &mut self.prompts] {
                workspace.llama.drop_adapters();
                (workspace.lora, workspace.moves) = (None, None);
            }
            self.directory_of = None;
        }
        if level >= MemoryLevel::Critical {
            self.pool.clear(0);
        }
        self.pool.forget_idle();
        let used = self.pool.used();
        let pages = used.len().max(1);
        if pages < self.cache.pages() && (may_copy || used.is_empty()) {
            self.cache = match used.as_slice() {
                [] => self.cache.of_size(gpu, pages)?,
                used => self.cache.with_only(gpu, used, pages)?,
            };
            self.pool.renumber(pages);
            for workspace in [&mut self.steps, &mut self.prompts] {
                workspace.llama.rebind(gpu, &self.cache)?;
            }
        }
        self.pool.grow(self.cache.pages());
        self.bind_adapters(gpu)
    }

    /// A page for one user; the cache grows when all are taken.
    pub(crate) fn allocate_page(&mut self, gpu: &Gpu) -> Result<PageRef> {
        if self.pool.available() == 0 {
            self.cache.grow(gpu, self.pool.capacity() + 1)?;
            for workspace in [&mut self.steps, &mut self.prompts] {
                workspace.llama.rebind(gpu, &self.cache)?;
            }
            self.pool.grow(self.cache.pages());
            self.bind_adapters(gpu)?;
        }
        let capacity = self.pool.capacity() * PAGE_LEN;
        self.pool.allocate().ok_or(Error::ContextFull { needed: capacity + PAGE_LEN, capacity })
    }

    /// Makes `page` its user's alone, copying it if others use it or may come to.
    pub(crate) fn own_page(&mut self, gpu: &Gpu, page: &PageRef) -> Result<PageRef> {
        if !self.pool.is_shared(page) {
            return Ok(page.clone());
        }
        let copy = self.allocate_page(gpu)?;
        let mut commands = Commands::new(gpu)?;
        let copied = self.cache.copy_page(&mut commands, page.number(), copy.number());
        commands.submit();
        self.pool.release(if copied.is_ok() { page } else { &copy });
        copied.map(|()| copy)
    }
}
