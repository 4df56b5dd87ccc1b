//! Room for pages: the cache grows when sessions need it and shrinks when the phone does.

use std::ops::Range;

use super::super::pressure::MemoryLevel;
use super::super::residents::SetId;
use super::Executor;
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu};
use crate::model::pages::{Held, PAGE_LEN, PageKey, PagePool, PageRef, Reach, first_page};

impl Executor {
    /// The pages of a reach.
    pub(crate) fn pool(&mut self, reach: Reach) -> &mut PagePool {
        &mut self.pools[reach as usize]
    }

    /// One more user of pages.
    pub(crate) fn retain(&mut self, held: &Held) {
        for reach in Reach::EACH {
            held.of(reach).iter().for_each(|page| self.pool(reach).retain(page));
        }
    }

    /// Gives pages back.
    pub(crate) fn release(&mut self, held: &Held) {
        for reach in Reach::EACH {
            held.of(reach).iter().for_each(|page| self.pool(reach).release(page));
        }
    }

    /// Whether what a session has computed is still there, and its adapters are.
    pub(crate) fn holds(&self, held: &Held, set: SetId) -> bool {
        !held.is_gone() && self.registry.is_resident(set)
    }

    /// All keys and values are gone, whoever uses them.
    pub(crate) fn forget_all(&mut self) {
        self.pools.iter_mut().for_each(|pool| pool.clear(0));
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
                workspace.decoder.drop_adapters();
                (workspace.lora, workspace.moves) = (None, None);
            }
            self.directory_of = None;
        }
        if level >= MemoryLevel::Critical {
            self.forget_all();
        }
        for reach in Reach::EACH {
            self.shrink(gpu, reach, may_copy)?;
        }
        self.bind_adapters(gpu)
    }

    /// Makes the cache of a reach as small as the pages in use allow.
    fn shrink(&mut self, gpu: &Gpu, reach: Reach, may_copy: bool) -> Result<()> {
        self.pool(reach).forget_idle();
        let used = self.pool(reach).used();
        let pages = used.len().max(1);
        if pages < self.cache.pages(reach) && (may_copy || used.is_empty()) {
            self.cache.keep_only(gpu, reach, &used, pages)?;
            self.pool(reach).renumber(pages);
            self.rebind(gpu)?;
        }
        let pages = self.cache.pages(reach);
        self.pool(reach).grow(pages);
        Ok(())
    }

    /// Binds everything to the cache as it is now, but for adapters.
    fn rebind(&mut self, gpu: &Gpu) -> Result<()> {
        for workspace in [&mut self.steps, &mut self.prompts] {
            workspace.decoder.rebind(gpu, &self.weights, &self.cache)?;
        }
        Ok(())
    }

    /// A page for one user; the cache grows when all are taken.
    pub(crate) fn allocate_page(&mut self, gpu: &Gpu, reach: Reach) -> Result<PageRef> {
        if self.pool(reach).available() == 0 {
            let pages = self.pool(reach).capacity() + 1;
            self.cache.grow(gpu, reach, pages)?;
            self.rebind(gpu)?;
            let pages = self.cache.pages(reach);
            self.pool(reach).grow(pages);
            self.bind_adapters(gpu)?;
        }
        let capacity = self.pool(reach).capacity() * PAGE_LEN;
        let full = Error::ContextFull { needed: capacity + PAGE_LEN, capacity };
        self.pool(reach).allocate().ok_or(full)
    }

    /// Makes `page` its user's alone, copying it if others use it or may come to.
    pub(crate) fn own_page(&mut self, gpu: &Gpu, reach: Reach, page: &PageRef) -> Result<PageRef> {
        if !self.pool(reach).is_shared(page) {
            return Ok(page.clone());
        }
        let copy = self.allocate_page(gpu, reach)?;
        let mut commands = Commands::new(gpu)?;
        let copied = self.cache.copy_page(&mut commands, reach, page.number(), copy.number());
        commands.submit();
        self.pool(reach).release(if copied.is_ok() { page } else { &copy });
        copied.map(|()| copy)
    }

    /// Pages for positions below `len`, of which the first `kv_len` are there; the first one to be
    /// written is its user's alone. Those in windows come with [`Executor::slide`].
    pub(crate) fn reserve(
        &mut self,
        gpu: &Gpu,
        held: &mut Held,
        kv_len: usize,
        len: usize,
    ) -> Result<()> {
        if let Some(page) = held.all.get_mut(kv_len / PAGE_LEN) {
            *page = self.own_page(gpu, Reach::All, page)?;
        }
        while held.all.len() * PAGE_LEN < len {
            held.all.push(self.allocate_page(gpu, Reach::All)?);
        }
        Ok(())
    }

    /// Pages in windows for `positions`, the first of them its user's alone; what the windows have
    /// left behind is given back as [`Executor::leave`] has it.
    pub(crate) fn slide(
        &mut self,
        gpu: &Gpu,
        held: &mut Held,
        positions: Range<usize>,
        keys: &[Option<PageKey>],
    ) -> Result<()> {
        if self.window.is_none() {
            return Ok(());
        }
        self.leave(held, positions.start, keys);
        let written = (positions.start / PAGE_LEN).checked_sub(held.window_from);
        if let Some(page) = written.and_then(|i| held.window.get_mut(i)) {
            *page = self.own_page(gpu, Reach::Window, page)?;
        }
        while held.window_end() * PAGE_LEN < positions.end {
            held.window.push(self.allocate_page(gpu, Reach::Window)?);
        }
        Ok(())
    }

    /// Gives back what the window of `position` and of all after it has left behind, published
    /// under its key if there is one.
    pub(crate) fn leave(&mut self, held: &mut Held, position: usize, keys: &[Option<PageKey>]) {
        let Some(window) = self.window else { return };
        let first = held.window_from;
        let left = held.leave(first_page(position, window));
        for (number, page) in (first..).zip(left) {
            if let Some(Some(key)) = keys.get(number) {
                self.pool(Reach::Window).publish(&page, *key);
            }
            self.pool(Reach::Window).release(&page);
        }
    }
}
