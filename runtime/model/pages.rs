//! Pages of keys and values: who holds which, and what of them layers with windows keep.
//!
//! A page holds the keys and values of [`PAGE_LEN`] positions of one sequence in every layer of a
//! [`Reach`]. Sessions share pages by counting: a fork shares its parent's, a prompt that begins
//! like an earlier one takes its pages over.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::base::ModelConfig;
use crate::identity::sha256;

/// Positions in a page.
pub const PAGE_LEN: usize = 32;

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
    /// One of `capacity` free pages.
    pub fn of(capacity: usize) -> Self {
        let mut pool = Self::default();
        pool.grow(capacity);
        pool
    }

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

    /// Whether a page holds `key`.
    pub fn holds(&self, key: &PageKey) -> bool {
        self.index.contains_key(key)
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

/// Which positions a layer's pages are kept of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// Those in the window of the next one.
    Window,
}

impl Reach {
    /// Both.
    pub const EACH: [Self; 2] = [Self::All, Self::Window];

    /// That of a layer.
    pub(crate) fn of(config: &ModelConfig, layer: usize) -> Self {
        match config.attention(layer).window {
            Some(_) => Self::Window,
            None => Self::All,
        }
    }
}

/// The page of the first position that the token at `position` sees through a window.
pub(crate) fn first_page(position: usize, window: usize) -> usize {
    (position + 1).saturating_sub(window) / PAGE_LEN
}

/// The pages of a sequence: of every position, and, in layers with windows, of the last ones. Those
/// of both reaches make room together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) all: Vec<PageRef>,
    pub(crate) window: Vec<PageRef>,
    /// The number of the first of them, among the sequence's.
    pub(crate) window_from: usize,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.window.is_empty()
    }

    /// What was in one of them is there no more.
    pub(crate) fn is_gone(&self) -> bool {
        self.all.iter().chain(&self.window).any(PageRef::is_gone)
    }

    /// The number of the page after the last one in windows.
    pub(crate) fn window_end(&self) -> usize {
        self.window_from + self.window.len()
    }

    /// Its pages of a reach.
    pub(crate) fn of(&self, reach: Reach) -> &[PageRef] {
        match reach {
            Reach::All => &self.all,
            Reach::Window => &self.window,
        }
    }

    /// Its pages of a reach with these numbers, as far as it has them.
    pub(crate) fn pages(&self, reach: Reach, numbers: Range<usize>) -> &[PageRef] {
        let (pages, from) = match reach {
            Reach::All => (&self.all, 0),
            Reach::Window => (&self.window, self.window_from),
        };
        let at = |number: usize| number.saturating_sub(from).min(pages.len());
        &pages[at(numbers.start)..at(numbers.end).max(at(numbers.start))]
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
    pub(crate) fn leave(&mut self, first: usize) -> Vec<PageRef> {
        let gone = first.saturating_sub(self.window_from).min(self.window.len());
        self.window_from = self.window_from.max(first);
        self.window.drain(..gone).collect()
    }
}
