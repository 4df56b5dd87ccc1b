//! A sequence of tokens over the base, with its keys and values.

use std::ops::Range;
use std::sync::Arc;

use crate::chat::{Message, Prompt};
use crate::error::{Error, Result};
use crate::model::pages::{Held, PAGE_LEN, first_page};
use crate::tokenizer::EncodeOptions;

use super::context::{ContextPolicy, Conversation};
use super::generation::Generation;
use super::options::GenerateOptions;
use super::pass::How;
use super::residents::SetId;
use super::seat::Seat;
use super::{Engine, snapshot};

/// A conversation or a document in progress. Cheap to make, to fork and to drop; many share one
/// [`Engine`].
pub struct Session {
    pub(super) engine: Arc<Engine>,
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in `pages`; the others are pending.
    pub(super) kv_len: usize,
    pub(super) pages: Held,
    /// How each position was computed: what is computed again is computed in the same way, and so
    /// to the same bits.
    pub(super) how: Vec<How>,
    /// All keys and values were computed here, so others may take them over; a file's may be
    /// anything.
    pub(super) own_work: bool,
    /// Its adapters.
    pub(super) set: SetId,
    /// Keys and values were made under more than one set: they are neither shared nor completed by
    /// others'.
    pub(super) mixed: bool,
    pub(super) context_policy: ContextPolicy,
    /// Where the policy may drop turns, what the tokens begin with.
    pub(super) conversation: Option<Conversation>,
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
        Self {
            engine,
            tokens: Vec::new(),
            kv_len: 0,
            pages: Held::default(),
            how: Vec::new(),
            own_work: true,
            set: SetId::default(),
            mixed: false,
            context_policy: ContextPolicy::default(),
            conversation: None,
            text: None,
        }
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
        let (needed, capacity) = (len + ids.len(), self.engine.context());
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
        self.how.truncate(len);
        self.text.take_if(|run| run.tokens.end > len);
        self.conversation.take_if(|conversation| conversation.tokens > len);
        self.release_kv(len);
    }

    /// Lets go of the keys and values from position `len` on.
    fn release_kv(&mut self, len: usize) {
        self.shorten(len);
        if self.kv_len == 0 && std::mem::take(&mut self.mixed) {
            self.how.clear();
        }
        let pages = self.pages.split_off(self.kv_len.div_ceil(PAGE_LEN));
        self.engine.give_back(Returned { pages, set: SetId::default() });
    }

    /// Makes at most the first `len` positions count. What the windows have left behind can only be
    /// computed from the beginning.
    pub(super) fn shorten(&mut self, len: usize) {
        self.kv_len = self.kv_len.min(len);
        let first = |window| first_page(self.kv_len, window);
        if self.window().is_some_and(|window| first(window) < self.pages.window_from) {
            self.kv_len = 0;
        }
    }

    /// Of the layers that have one.
    pub(super) fn window(&self) -> Option<usize> {
        self.engine.base.config.window()
    }

    /// Lets go of all keys and values; they are computed anew when needed.
    pub(super) fn forget_kv(&mut self) {
        self.how.clear();
        self.drop_kv();
    }

    /// Lets go of all keys and values; they are computed again, as they were, when needed.
    pub(super) fn drop_kv(&mut self) {
        self.release_kv(0);
        self.own_work = true;
    }

    /// A second session with the same tokens; the keys and values are shared until one of the two
    /// goes on.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut seat = self.engine.seat();
        if let Seat::Taken(executor) = &mut *seat {
            executor.retain(&self.pages);
        }
        let mut fork = Self::new(Arc::clone(&self.engine));
        fork.tokens.clone_from(&self.tokens);
        fork.text.clone_from(&self.text);
        fork.context_policy = self.context_policy;
        fork.conversation.clone_from(&self.conversation);
        fork.kv_len = self.kv_len;
        fork.how.clone_from(&self.how);
        fork.own_work = self.own_work;
        seat.registry_mut().retain(self.set);
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
