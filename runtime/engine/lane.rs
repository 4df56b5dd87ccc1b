//! One sequence of a batch that is being generated: its session, its text so far, and when it ends.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::grammar::Grammar;
use crate::kernels::sample::Sampler;
use crate::tokenizer::{DecodeOptions, Detokenizer, Tokenizer};

use super::batch::Sequence;
use super::executor::Row;
use super::lookup::Lookup;
use super::options::{AnswerStats, FinishReason, GenerateOptions, Token};
use super::pass::How;
use super::{Engine, Session};

/// One sequence of the batch.
pub(super) struct Lane<'s> {
    pub(super) session: &'s mut Session,
    pub(super) options: GenerateOptions,
    pub(super) sampler: Sampler,
    /// What the answer must look like, as far as it has come.
    pub(super) grammar: Option<Grammar>,
    detokenizer: Detokenizer<Arc<Tokenizer>>,
    /// Text that might be the beginning of a stop text.
    held: String,
    /// A stop text has come: nothing after it counts.
    is_stopped: bool,
    pub(super) generated: usize,
    pub(super) finished: Option<FinishReason>,
    /// Why it is [`FinishReason::Failed`].
    pub(super) error: Option<Error>,
    pub(super) lookup: Lookup,
    clock: Clock,
}

/// When a sequence began, and what with; when its first and last token came.
#[derive(Clone, Copy, Default)]
struct Clock {
    began: Option<Instant>,
    prompt: usize,
    computed: usize,
    came: Option<(Instant, Instant)>,
}

impl<'s> Lane<'s> {
    pub(super) fn new(
        engine: &Arc<Engine>,
        Sequence { session, options }: Sequence<'s>,
    ) -> Result<Self> {
        if !Arc::ptr_eq(&session.engine, engine) {
            return Err(Error::InvalidArgument {
                name: "sequences",
                reason: "sessions of two engines".into(),
            });
        }
        if session.tokens.is_empty() {
            let reason = "the session is empty; push a prompt first".into();
            return Err(Error::InvalidArgument { name: "session", reason });
        }
        options.sampling.check(engine.base.config.vocab_size)?;
        let lookup = Lookup::new(options.prompt_lookup_num_tokens, engine.gpu().caps())?;
        let sampler = options.sampling.sampler();
        let format = options.response_format.as_ref();
        let grammar = format.map(|format| engine.base.grammar(format)).transpose()?;
        let finished = (options.max_tokens == 0).then_some(FinishReason::MaxTokens);
        let is_over = grammar.as_ref().is_some_and(Grammar::is_over);
        let finished = is_over.then_some(FinishReason::EndOfGeneration).or(finished);
        let continuation = DecodeOptions { continuation: true, ..DecodeOptions::default() };
        let detokenizer = Detokenizer::new(Arc::clone(&engine.base.tokenizer), continuation);
        Ok(Self {
            session,
            options,
            sampler,
            grammar,
            detokenizer,
            held: String::new(),
            is_stopped: false,
            generated: 0,
            finished,
            error: None,
            lookup,
            clock: Clock::default(),
        })
    }

    /// Computes the prompt and makes room for the next token.
    pub(super) fn prepare(&mut self) -> Result<()> {
        if self.generated == 0 {
            self.options.cancel.check()?;
        }
        let tokens = self.session.tokens.len();
        if self.clock.began.is_none() {
            self.clock =
                Clock { began: Some(Instant::now()), prompt: tokens, computed: tokens, came: None };
        }
        let computed = self.session.compute_pending(&self.options.cancel)?;
        if self.clock.came.is_none() {
            // The last one is computed by the first step.
            self.clock.computed = self.clock.computed.min(computed + 1);
        }
        self.session.reserve(self.session.kv_len + 1)
    }

    /// Ends it alone.
    pub(super) fn fail(&mut self, error: Error) {
        (self.finished, self.error) = (Some(FinishReason::Failed), Some(error));
    }

    pub(super) fn stats(&self) -> AnswerStats {
        let Clock { began, prompt, computed, came } = self.clock;
        AnswerStats {
            prompt_tokens: prompt,
            cached_tokens: prompt - computed,
            generated_tokens: self.generated,
            drafted_tokens: self.lookup.drafted,
            accepted_tokens: self.lookup.accepted,
            first_token_seconds: began
                .zip(came)
                .map(|(began, (first, _))| (first - began).as_secs_f64()),
            decode_seconds: came.map_or(0.0, |(first, last)| (last - first).as_secs_f64()),
            finish_reason: self.finished,
        }
    }

    pub(super) fn row(&self) -> Row<'_> {
        Row {
            token: self.session.tokens.last().copied().unwrap_or_default(),
            position: self.session.kv_len as u32,
            pages: &self.session.pages,
            sampler: self.sampler,
            biases: &self.options.sampling.logit_bias,
            context: &self.session.tokens,
            set: self.session.set,
            is_masked: self.grammar.is_some(),
        }
    }

    /// Adds the token that was drawn, or that leads to the end of what the grammar asks for, to the
    /// session, whose last one was computed like this. Its text is what is now certain.
    ///
    /// Errors: as [`Grammar::take`] and [`Session::set_prompt`]; the session is then as it was.
    pub(super) fn accept(&mut self, drawn: u32, how: How) -> Result<Token> {
        let left = self.left();
        let grammar = self.grammar.as_mut();
        let id = grammar.map_or(Ok(drawn), |grammar| grammar.take(drawn, left))?;
        self.session.tokens.push(id);
        self.session.computed(1, how);
        self.generated += 1;
        let now = Instant::now();
        self.clock.came = Some((self.clock.came.map_or(now, |(first, _)| first), now));
        self.hear(id);
        if let Err(error) = self.finish_in_time() {
            // It is not handed out.
            self.session.truncate(self.session.tokens.len() - 1);
            return Err(error);
        }
        Ok(Token { id, text: self.certain() })
    }

    /// Tokens that may come, one at least.
    fn left(&self) -> usize {
        let of_context = self.session.engine.context().saturating_sub(self.session.tokens.len());
        self.options.max_tokens.saturating_sub(self.generated).min(of_context).max(1)
    }

    /// What the device goes on with is what the session holds.
    pub(super) fn follows(&self, drawn: u32) -> bool {
        let Session { tokens, kv_len, .. } = &*self.session;
        tokens.last() == Some(&drawn) && kv_len + 1 == tokens.len()
    }

    /// Adds to the text, unless the token ends it, or a stop text does.
    fn hear(&mut self, id: u32) {
        let tokenizer = &self.session.engine.base.tokenizer;
        let ends = tokenizer.is_end_of_generation(id);
        if self.options.stop_tokens.contains(&id) {
            self.finished = Some(FinishReason::Stop);
        } else if ends && (!self.options.ignore_eos || self.grammar.is_some()) {
            self.finished = Some(FinishReason::EndOfGeneration);
        } else {
            self.held.push_str(&self.detokenizer.push(id));
        }
        let found = self.options.stop.iter().filter_map(|stop| find(&self.held, stop)).min();
        if let Some(at) = found {
            self.held.truncate(at);
            self.finished = Some(FinishReason::Stop);
            self.is_stopped = true;
        }
    }

    /// Ends it where nothing more may come.
    ///
    /// Errors: as [`Session::set_prompt`].
    fn finish_in_time(&mut self) -> Result<()> {
        if self.finished.is_some() {
            return Ok(());
        }
        let context = self.session.engine.context();
        self.finished = if self.grammar.as_ref().is_some_and(Grammar::is_over) {
            Some(FinishReason::EndOfGeneration)
        } else if self.generated >= self.options.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if self.options.cancel.is_cancelled() {
            Some(FinishReason::Cancelled)
        } else if self.session.tokens.len() >= context && !self.session.drop_oldest()? {
            Some(FinishReason::ContextFull)
        } else {
            None
        };
        Ok(())
    }

    /// Text that no stop text can take back any more.
    fn certain(&mut self) -> String {
        if self.is_stopped {
            return std::mem::take(&mut self.held);
        }
        if self.finished.is_some() {
            self.held.push_str(&self.detokenizer.finish());
            return std::mem::take(&mut self.held);
        }
        let stops = self.options.stop.iter();
        let keep = stops.map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Where `stop` begins in `text`; an empty one nowhere.
fn find(text: &str, stop: &str) -> Option<usize> {
    if stop.is_empty() { None } else { text.find(stop) }
}

/// Bytes at the end of `text` that may be the beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    (1..=most).rev().find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}
