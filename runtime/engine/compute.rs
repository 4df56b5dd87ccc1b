//! A session's pending tokens go through the model.
//!
//! Prompts go through in wide passes, decoded tokens in narrow ones, whose kernels round in other
//! places. A session remembers which position was computed how, and repeats that when its keys and
//! values had to make room.

use std::sync::Arc;

use super::Session;
use super::executor::{Chunk, Executor};
use super::pass::{Computed, How, Prefilled};
use super::seat::Seat;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::model::activations::LOGIT_ROWS;
use crate::model::pages::{PAGE_LEN, PageKey, Reach, first_page, page_key};

impl Session {
    /// Computes all pending tokens but the last, which the first decode step takes.
    ///
    /// Errors: [`Error::Cancelled`], [`Error::Background`], [`Error::ContextFull`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`], [`Error::Gpu`]; [`Error::Io`] and
    /// [`Error::InvalidAdapter`] for an adapter that had to make room and can't be read again. What
    /// was computed stays.
    pub fn prefill(&mut self, cancel: &CancelToken) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        engine.surviving(|| self.compute_pending(cancel)).map(drop)
    }

    /// Gives the number of tokens that were computed. What has made room, also in the middle, is
    /// computed again.
    pub(super) fn compute_pending(&mut self, cancel: &CancelToken) -> Result<usize> {
        let engine = Arc::clone(&self.engine);
        let mut kept = None;
        loop {
            let (computed, prefilled) = self.compute(cancel)?;
            if prefilled == Prefilled::Whole {
                return Ok(computed);
            }
            // It is not taken a second time.
            kept.get_or_insert_with(|| engine.recoveries.enter_first());
        }
    }

    /// Gives the number of tokens that were computed, and whether they are all.
    fn compute(&mut self, cancel: &CancelToken) -> Result<(usize, Prefilled)> {
        let engine = Arc::clone(&self.engine);
        let end = self.tokens.len().saturating_sub(1);
        // The last token is fed by the step that follows it, even where its keys are there already.
        self.shorten(end);
        self.forget_gone();
        let mut executor = engine.executor_with(self.set)?;
        let keys = self.reuse_prefix(&mut executor, end);
        drop(executor);
        let start = self.kv_len;
        if start == end {
            return Ok((0, Prefilled::Whole));
        }
        self.reserve(end)?;
        let prefilled = self.run(end, &keys, cancel, |_, _| Ok(()));
        if matches!(prefilled, Ok(Prefilled::Whole) | Err(Error::Cancelled | Error::Background)) {
            self.publish(&keys, start);
            self.leave_behind(self.kv_len);
        }
        prefilled.map(|prefilled| (self.kv_len - start, prefilled))
    }

    /// Computes the tokens up to `end`, each as before if it was; `each` gets the passes with the
    /// position that they count from. What windows leave behind is published under `keys`.
    pub(super) fn run(
        &mut self,
        end: usize,
        keys: &[PageKey],
        cancel: &CancelToken,
        mut each: impl FnMut(usize, &Computed<'_>) -> Result<()>,
    ) -> Result<Prefilled> {
        let engine = Arc::clone(&self.engine);
        while self.kv_len < end {
            let start = self.kv_len;
            let (to, how) = self.alike(start, end);
            let keys = self.keys_of_wide(keys, to, how);
            let (tokens, position, set) = (&self.tokens[start..to], start, self.set);
            let chunk = Chunk { tokens, position, keys: &keys, set, how, inputs: None };
            let mut passes: Vec<(usize, How)> = Vec::new();
            let prefilled = engine.prefill(chunk, &mut self.pages, cancel, |computed| {
                passes.push((computed.count as usize, computed.how()));
                each(start, computed)
            });
            if matches!(prefilled, Ok(_) | Err(Error::Cancelled | Error::Background)) {
                passes.into_iter().for_each(|(count, how)| self.computed(count, how));
            } else {
                // The windows may have gone on.
                self.shorten(start);
            }
            if prefilled? == Prefilled::Gone {
                return Ok(Prefilled::Gone);
            }
        }
        Ok(Prefilled::Whole)
    }

    /// How far the tokens from `start` on are computed in one way, and in which; `None` for those
    /// that never were.
    fn alike(&self, start: usize, end: usize) -> (usize, Option<How>) {
        match self.how.get(start..self.how.len().min(end)) {
            Some(known @ [how, ..]) => {
                let len = known.iter().take_while(|of| *of == how).count();
                (start + len, Some(*how))
            }
            _ => (end, None),
        }
    }

    /// The next `count` positions are there.
    pub(super) fn computed(&mut self, count: usize, how: How) {
        let end = self.kv_len + count;
        self.how.resize(self.how.len().max(end), How::Wide);
        self.how[self.kv_len..end].fill(how);
        self.kv_len = end;
    }

    /// Lets others have the whole pages of a prompt that was computed from `start` on; what
    /// decoding writes is not published.
    fn publish(&self, keys: &[PageKey], start: usize) {
        if let Seat::Taken(executor) = &mut *self.engine.seat()
            && self.own_work
            && !self.mixed
        {
            let end = self.wide_pages().min(self.kv_len / PAGE_LEN);
            for (number, key) in keys.iter().enumerate().take(end).skip(start / PAGE_LEN) {
                for reach in Reach::EACH {
                    let page = self.pages.pages(reach, number..number + 1);
                    page.iter().for_each(|page| executor.pool(reach).publish(page, *key));
                }
            }
        }
    }

    /// Gives back the pages that the window of `position` has left behind.
    pub(super) fn leave_behind(&mut self, position: usize) {
        if self.window().is_some()
            && let Seat::Taken(executor) = &mut *self.engine.seat()
        {
            executor.leave(&mut self.pages, position, &[]);
        }
    }

    /// The keys under which pages may be published that windows leave behind on the way to position
    /// `to`, if what is not yet computed is computed like this.
    fn keys_of_wide(&self, keys: &[PageKey], to: usize, how: Option<How>) -> Vec<Option<PageKey>> {
        if self.window().is_none() || !self.own_work || self.mixed {
            return Vec::new();
        }
        // A pass that is not the last of several is wide.
        let end = if matches!(how, Some(How::Narrow { .. })) { self.kv_len } else { to };
        let end = self.wide_pages().min(end / PAGE_LEN);
        keys.iter().enumerate().map(|(number, key)| (number < end).then_some(*key)).collect()
    }

    /// Pages from the first on that are those of a prompt, as any session would compute them: what
    /// is not computed yet may become one.
    fn wide_pages(&self) -> usize {
        let other = self.how.iter().position(|how| *how != How::Wide);
        other.map_or(usize::MAX, |position| position / PAGE_LEN)
    }

    /// Keys and values that had to make room, or that windows have left behind, are pending.
    pub(super) fn forget_gone(&mut self) {
        if self.pages.is_gone() || self.kv_len == 0 {
            self.drop_kv();
        }
    }

    /// Takes over pages that hold this session's next tokens. Gives the keys of all its whole
    /// pages.
    fn reuse_prefix(&mut self, executor: &mut Executor, end: usize) -> Vec<PageKey> {
        let mut keys: Vec<PageKey> = Vec::with_capacity(end / PAGE_LEN);
        let adapters = executor.registry.digest(self.set);
        for tokens in self.tokens[..end].chunks_exact(PAGE_LEN) {
            keys.push(page_key(keys.last().or(Some(&adapters)), tokens));
        }
        let held = self.pages.all.len();
        if self.mixed || self.kv_len != held * PAGE_LEN {
            return keys;
        }
        let whole = self.known_pages(executor, &keys);
        if self.window().is_some() && whole > held {
            executor.leave(&mut self.pages, whole * PAGE_LEN, &[]);
            let from = self.pages.window_end();
            let seen = keys[from..whole].iter();
            let found = seen.filter_map(|key| executor.pool(Reach::Window).find(key));
            self.pages.window.extend(found);
        }
        let found = keys[held..whole].iter().filter_map(|key| executor.pool(Reach::All).find(key));
        self.pages.all.extend(found);
        self.computed((whole - held) * PAGE_LEN, How::Wide);
        keys
    }

    /// How many pages it would have with those that others have published.
    fn known_pages(&self, executor: &mut Executor, keys: &[PageKey]) -> usize {
        let held = self.pages.all.len();
        let is_known = |executor: &mut Executor, reach, number: usize| {
            executor.pool(reach).holds(&keys[number])
        };
        let (mut whole, end) = (held, self.wide_pages().min(keys.len()));
        while whole < end && is_known(executor, Reach::All, whole) {
            whole += 1;
        }
        let Some(window) = self.window() else { return whole };
        // Of the pages that the next token sees those that are not held have to be there, too.
        let first = |whole: usize| first_page(whole * PAGE_LEN, window).max(held);
        while whole > held && !(first(whole)..whole).all(|i| is_known(executor, Reach::Window, i)) {
            whole -= 1;
        }
        whole
    }

    /// Pages for positions below `len`, the first one to be written its own; in windows those of the
    /// next position, as those of a prompt come pass by pass.
    pub(super) fn reserve(&mut self, len: usize) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let mut executor = engine.executor()?;
        let (gpu, kv_len) = (engine.gpu(), self.kv_len);
        executor.reserve(gpu, &mut self.pages, kv_len, len)?;
        executor.slide(gpu, &mut self.pages, kv_len..len.min(kv_len + 1), &[])
    }

    /// Computes the pending tokens and hands out the logits after each from index `from` on, `[V]`,
    /// with its index; indices count all tokens of the session.
    ///
    /// Errors: as [`Session::prefill`].
    pub fn logits(&mut self, from: usize, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        // What is computed again is not handed out again.
        let (mut from, mut kept) = (from.max(self.kv_len), None);
        while engine.surviving(|| self.logits_from(&mut from, &mut each))? == Prefilled::Gone {
            kept.get_or_insert_with(|| engine.recoveries.enter_first());
        }
        Ok(())
    }

    /// Computes the pending tokens and hands out the logits after each from index `from` on, which
    /// goes on with them.
    fn logits_from(
        &mut self,
        from: &mut usize,
        each: &mut impl FnMut(usize, &[f32]),
    ) -> Result<Prefilled> {
        let engine = Arc::clone(&self.engine);
        self.forget_gone();
        drop(engine.executor_with(self.set)?);
        let (end, vocab) = (self.tokens.len(), engine.base.config.vocab_size);
        self.reserve(end)?;
        let readback = engine.gpu().readback("logits", (LOGIT_ROWS * vocab * 4) as u64)?;
        let prefilled = self.run(end, &[], &CancelToken::default(), |start, computed| {
            let (at, count) = (start + computed.first, computed.count);
            let skip = from.saturating_sub(at).min(count as usize) as u32;
            for row in (skip..count).step_by(LOGIT_ROWS) {
                let rows = (LOGIT_ROWS as u32).min(count - row);
                let logits = engine.read_logits(computed, row, rows, &readback)?;
                for (i, logits) in logits.chunks_exact(vocab).enumerate() {
                    each(at + row as usize + i, logits);
                }
                *from = at + (row + rows) as usize;
            }
            Ok(())
        });
        // The last token may be fed again.
        self.leave_behind(self.kv_len.saturating_sub(1));
        prefilled
    }
}
