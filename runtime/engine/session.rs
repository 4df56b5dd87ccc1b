//! A sequence of tokens over the base, with its keys and values.

use std::ops::Range;
use std::sync::Arc;

use crate::cancel::CancelToken;
use crate::chat::{Message, Prompt};
use crate::error::{Error, Result};
use crate::model::activations::LOGIT_ROWS;
use crate::model::kv_cache::{Held, PAGE_LEN, PageKey, Reach, first_page, page_key};
use crate::tokenizer::EncodeOptions;

use super::executor::{Chunk, Executor};
use super::generation::Generation;
use super::options::GenerateOptions;
use super::residents::SetId;
use super::{Engine, snapshot};

/// A conversation or a document in progress. Cheap to make, to fork and to drop; many share one
/// [`Engine`].
pub struct Session {
    pub(super) engine: Arc<Engine>,
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in `pages`; the others are pending.
    pub(super) kv_len: usize,
    pub(super) pages: Held,
    /// All keys and values were computed here, so others may take them over; a file's may be
    /// anything.
    pub(super) own_work: bool,
    /// Its adapters.
    pub(super) set: SetId,
    /// Keys and values were made under more than one set: they are neither shared nor completed by
    /// others'.
    pub(super) mixed: bool,
    /// The text that [`Session::push_text`] pushed last, if its tokens are all there.
    text: Option<TextRun>,
}

/// A text that may go on: where it ends can change what its last tokens are.
#[derive(Clone)]
struct TextRun {
    /// Its tokens among the session's.
    tokens: Range<usize>,
    text: String,
    options: EncodeOptions,
}

impl Session {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        let (tokens, pages, set) = (Vec::new(), Held::default(), SetId::default());
        Self { engine, tokens, kv_len: 0, pages, own_work: true, set, mixed: false, text: None }
    }

    /// The engine it belongs to.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Everything said so far, as token ids.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Adds token ids; they are computed when needed.
    ///
    /// Errors: [`Error::ContextFull`] when they do not fit, [`Error::InvalidArgument`] for an id
    /// outside the vocabulary; the session is then as it was.
    pub fn push_tokens(&mut self, ids: &[u32]) -> Result<()> {
        self.check(self.tokens.len(), ids)?;
        self.tokens.extend_from_slice(ids);
        Ok(())
    }

    /// Whether `ids` may follow the first `len` tokens.
    fn check(&self, len: usize, ids: &[u32]) -> Result<()> {
        let vocab = self.engine.base.config.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            let reason = format!("token {id} is outside the vocabulary of {vocab}");
            return Err(Error::InvalidArgument { name: "ids", reason });
        }
        let (needed, capacity) = (len + ids.len(), self.engine.context);
        if needed > capacity { Err(Error::ContextFull { needed, capacity }) } else { Ok(()) }
    }

    /// Adds text: a prompt, with what the tokenizer puts first if the session is empty.
    ///
    /// Texts pushed one after the other become the tokens of the text that they spell together, so
    /// the last tokens may change when more comes. Tokens from elsewhere (generated, or by
    /// [`Session::push_tokens`]) stay as they are; the text after them continues what they say,
    /// unless the last is a control token.
    ///
    /// Errors: as [`Session::push_tokens`] and [`crate::tokenizer::Tokenizer::encode`].
    pub fn push_text(&mut self, text: &str) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let tokenizer = &engine.base.tokenizer;
        let end = self.tokens.len();
        let (start, mut whole, options) = match &self.text {
            Some(run) if run.tokens.end == end => (run.tokens.start, run.text.clone(), run.options),
            _ => {
                let add_bos = if end == 0 { None } else { Some(false) };
                let continuation = self.tokens.last().is_some_and(|&id| !tokenizer.is_special(id));
                (
                    end,
                    String::new(),
                    EncodeOptions { add_bos, continuation, ..EncodeOptions::default() },
                )
            }
        };
        whole.push_str(text);
        self.set_tail(start, &tokenizer.encode(&whole, options)?)?;
        self.text = Some(TextRun { tokens: start..self.tokens.len(), text: whole, options });
        Ok(())
    }

    /// Makes the session hold `messages`, rendered by the model's chat template and ready for an
    /// answer. What it already holds of them is kept. What messages say is text, even where it
    /// spells control tokens.
    ///
    /// Errors: as [`Session::push_tokens`] and [`crate::chat::ChatTemplate::render`].
    pub fn set_messages(&mut self, messages: &[Message]) -> Result<()> {
        self.set_prompt(&Prompt {
            messages,
            context: &serde_json::Map::new(),
            add_generation_prompt: true,
        })
    }

    /// As [`Session::set_messages`], with more for the template: tools, documents, settings.
    ///
    /// Errors: as [`Session::set_messages`].
    pub fn set_prompt(&mut self, prompt: &Prompt<'_>) -> Result<()> {
        let base = &self.engine.base;
        let ids = base.chat_template.tokenize(prompt, &base.tokenizer)?;
        self.set_tokens(&ids)
    }

    /// Makes the session hold `ids`; the common beginning is kept.
    ///
    /// Errors: as [`Session::push_tokens`].
    pub fn set_tokens(&mut self, ids: &[u32]) -> Result<()> {
        self.set_tail(0, ids)
    }

    /// Makes `ids` what follows the first `start` tokens; the common beginning is kept.
    fn set_tail(&mut self, start: usize, ids: &[u32]) -> Result<()> {
        self.check(start, ids)?;
        let same = self.tokens[start..].iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.truncate(start + same);
        self.tokens.extend_from_slice(&ids[same..]);
        Ok(())
    }

    /// Forgets everything after the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.text.take_if(|run| run.tokens.end > len);
        self.release_kv(len);
    }

    /// Forgets the keys and values from position `len` on.
    fn release_kv(&mut self, len: usize) {
        self.shorten(len);
        self.mixed &= self.kv_len > 0;
        let keep = self.kv_len.div_ceil(PAGE_LEN);
        if keep < self.pages.all.len() {
            let pages = self.pages.split_off(keep);
            self.engine.give_back(Returned { pages, set: SetId::default() });
        }
    }

    /// Makes at most the first `len` positions count. What the windows have left behind can only be
    /// computed from the beginning.
    fn shorten(&mut self, len: usize) {
        self.kv_len = self.kv_len.min(len);
        let first = |window| first_page(self.kv_len, window);
        if self.window().is_some_and(|window| first(window) < self.pages.window_from) {
            self.kv_len = 0;
        }
    }

    /// Of the layers that have one.
    fn window(&self) -> Option<usize> {
        self.engine.base.config.window()
    }

    /// Lets go of all keys and values; they are computed again when needed.
    pub(super) fn forget_kv(&mut self) {
        self.release_kv(0);
        self.own_work = true;
    }

    /// A second session with the same tokens; the keys and values are shared until one of the two
    /// goes on.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut executor = self.engine.executor();
        executor.retain(&self.pages);
        let mut fork = Self::new(Arc::clone(&self.engine));
        fork.tokens.clone_from(&self.tokens);
        fork.text.clone_from(&self.text);
        fork.kv_len = self.kv_len;
        fork.own_work = self.own_work;
        executor.registry.retain(self.set);
        (fork.set, fork.mixed) = (self.set, self.mixed);
        fork.pages.clone_from(&self.pages);
        fork
    }

    /// Writes tokens, keys and values, and the adapters' ids and weights to a file, which
    /// [`Engine::restore`] reads. Complete or not there at all.
    ///
    /// Errors: [`Error::Io`], [`Error::Gpu`].
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        snapshot::save(self, path.as_ref())
    }

    /// Computes all pending tokens but the last, which the first decode step takes.
    ///
    /// Errors: [`Error::Cancelled`], [`Error::ContextFull`], [`Error::OutOfMemory`],
    /// [`Error::Gpu`]. What was computed stays.
    pub fn prefill(&mut self, cancel: &CancelToken) -> Result<()> {
        self.compute_pending(cancel).map(drop)
    }

    /// Gives the number of tokens that were computed.
    pub(super) fn compute_pending(&mut self, cancel: &CancelToken) -> Result<usize> {
        let engine = Arc::clone(&self.engine);
        let end = self.tokens.len().saturating_sub(1);
        // The last token is fed by the step that follows it, even where its keys are there already.
        self.shorten(end);
        if self.kv_len == 0 {
            self.release_kv(0);
        }
        let keys = self.reuse_prefix(&mut engine.executor(), end);
        let start = self.kv_len;
        if start == end {
            return Ok(0);
        }
        self.reserve(end)?;
        let shared = self.own_work && !self.mixed;
        let mut done = start;
        let (tokens, set) = (&self.tokens[start..end], self.set);
        let pending =
            Chunk { tokens, position: start, keys: if shared { &keys } else { &[] }, set };
        let computed = engine.prefill(pending, &mut self.pages, cancel, |computed| {
            done = start + computed.first + computed.count as usize;
            Ok(())
        });
        if matches!(computed, Ok(()) | Err(Error::Cancelled)) {
            // Whole pages of a prompt may serve others; what decoding writes is not published.
            let mut executor = engine.executor();
            if shared {
                let (whole, from) = (start / PAGE_LEN..done / PAGE_LEN, self.pages.window_from);
                for (i, key) in whole.clone().zip(&keys[whole]) {
                    executor.pool(Reach::All).publish(self.pages.all[i], *key);
                    if let Some(page) = i.checked_sub(from).and_then(|i| self.pages.window.get(i)) {
                        executor.pool(Reach::Window).publish(*page, *key);
                    }
                }
            }
            self.kv_len = done;
            executor.slide(&engine.gpu, &mut self.pages, (done, done), &[])?;
        } else {
            // The windows may have gone on.
            self.release_kv(start);
        }
        computed.map(|()| done - start)
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
        let known = |executor: &mut Executor, reach, i: usize| executor.pool(reach).holds(&keys[i]);
        let mut whole = held;
        while whole < keys.len() && known(executor, Reach::All, whole) {
            whole += 1;
        }
        if let Some(window) = self.window() {
            // Of the pages that the next token sees those that are not held have to be there, too.
            let first = |whole: usize| first_page(whole * PAGE_LEN, window).max(held);
            while whole > held && !(first(whole)..whole).all(|i| known(executor, Reach::Window, i))
            {
                whole -= 1;
            }
            if whole > held {
                let first = first_page(whole * PAGE_LEN, window);
                let gone = self.pages.slide(first);
                gone.iter().for_each(|&page| executor.pool(Reach::Window).release(page));
                let from = self.pages.window_end();
                self.pages.window.extend(
                    keys[from..whole].iter().filter_map(|k| executor.pool(Reach::Window).find(k)),
                );
            }
        }
        let found = keys[held..whole].iter().filter_map(|key| executor.pool(Reach::All).find(key));
        self.pages.all.extend(found);
        self.kv_len = whole * PAGE_LEN;
        keys
    }

    /// Pages for positions below `len`, the first one to be written its own.
    pub(super) fn reserve(&mut self, len: usize) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let mut executor = engine.executor();
        let first = self.kv_len / PAGE_LEN;
        if let Some(page) = self.pages.all.get_mut(first) {
            *page = executor.own_page(&engine.gpu, Reach::All, *page)?;
        }
        while self.pages.all.len() * PAGE_LEN < len {
            self.pages.all.push(executor.allocate_page(&engine.gpu, Reach::All)?);
        }
        // Of a prompt they come pass by pass.
        if len <= self.kv_len + 1 {
            executor.slide(&engine.gpu, &mut self.pages, (self.kv_len, len), &[])?;
        }
        Ok(())
    }

    /// Computes the pending tokens and hands out the logits after each from index `from` on, `[V]`,
    /// with its index; indices count all tokens of the session.
    ///
    /// Errors: as [`Session::prefill`].
    pub fn logits(&mut self, from: usize, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let (start, end, vocab) = (self.kv_len, self.tokens.len(), engine.base.config.vocab_size);
        self.reserve(end)?;
        let readback = engine.gpu.readback("logits", (LOGIT_ROWS * vocab * 4) as u64)?;
        let (tokens, position, set) = (&self.tokens[start..end], start, self.set);
        let pending = Chunk { tokens, position, keys: &[], set };
        let never = CancelToken::default();
        let computed = engine.prefill(pending, &mut self.pages, &never, |computed| {
            let (at, count) = (start + computed.first, computed.count);
            let skip = from.saturating_sub(at).min(count as usize) as u32;
            for row in (skip..count).step_by(LOGIT_ROWS) {
                let rows = (LOGIT_ROWS as u32).min(count - row);
                let logits = engine.read_logits(computed, row, rows, &readback)?;
                for (i, logits) in logits.chunks_exact(vocab).enumerate() {
                    each(at + row as usize + i, logits);
                }
            }
            Ok(())
        });
        if computed.is_err() {
            self.release_kv(start);
            return computed;
        }
        self.kv_len = end;
        engine.executor().slide(&engine.gpu, &mut self.pages, (end, end), &[])
    }

    internal! {
        /// Positions of which it holds keys and values: in most layers, and in those with windows.
        pub fn held_positions(&self) -> [usize; 2] {
            let Held { all, window, .. } = &self.pages;
            [all.len() * PAGE_LEN, window.len() * PAGE_LEN]
        }
    }

    /// Starts generating after the tokens so far: an iterator over tokens.
    ///
    /// Errors: [`Error::InvalidArgument`] for an empty session or settings out of range; as
    /// [`Session::prefill`].
    pub fn generate(&mut self, options: GenerateOptions) -> Result<Generation<'_>> {
        Generation::new(self, options)
    }
}

/// What a session no longer needs.
pub(super) struct Returned {
    pub(super) pages: Held,
    pub(super) set: SetId,
}

impl Drop for Session {
    /// Waits for nobody: the next turn begins with what was given back.
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        self.engine.give_back(Returned { pages, set: self.set });
    }
}
