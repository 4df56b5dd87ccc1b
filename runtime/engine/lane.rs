//! One sequence of a batch that is being generated: its session, its text so far, and when it ends.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::grammar::Grammar;
use crate::kernels::sample::Sampler;
use crate::tokenizer::{DecodeOptions, Detokenizer, Tokenizer};

use super::batch::Sequence;
use super::executor::Row;
use super::options::{AnswerStats, FinishReason, GenerateOptions};
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
    pub(super) generated: usize,
    pub(super) finished: Option<FinishReason>,
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
            generated: 0,
            finished,
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

    pub(super) fn stats(&self) -> AnswerStats {
        let Clock { began, prompt, computed, came } = self.clock;
        AnswerStats {
            prompt_tokens: prompt,
            cached_tokens: prompt - computed,
            generated_tokens: self.generated,
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

    /// Adds a token to the session, whose last one was computed like this, and gives the text that
    /// is now certain.
    ///
    /// Errors: as [`Grammar::accept`]; the session is then as it was.
    pub(super) fn accept(&mut self, id: u32, how: How) -> Result<String> {
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(id)?;
        }
        self.session.tokens.push(id);
        self.session.computed(1, how);
        self.generated += 1;
        let now = Instant::now();
        self.clock.came = Some((self.clock.came.map_or(now, |(first, _)| first), now));
        let engine = Arc::clone(&self.session.engine);
        let tokenizer = &engine.base.tokenizer;
        let options = &self.options;
        if options.stop_tokens.contains(&id) {
            self.finished = Some(FinishReason::Stop);
        } else if tokenizer.is_end_of_generation(id)
            && (!options.ignore_eos || self.grammar.is_some())
        {
            self.finished = Some(FinishReason::EndOfGeneration);
        } else {
            self.held.push_str(&self.detokenizer.push(id));
        }
        if let Some(at) = options.stop.iter().filter_map(|stop| find(&self.held, stop)).min() {
            self.held.truncate(at);
            self.finished = Some(FinishReason::Stop);
            return Ok(std::mem::take(&mut self.held));
        }
        if self.finished.is_none() && self.grammar.as_ref().is_some_and(Grammar::is_over) {
            self.finished = Some(FinishReason::EndOfGeneration);
        }
        if self.finished.is_none() && self.generated >= options.max_tokens {
            self.finished = Some(FinishReason::MaxTokens);
        }
        if self.finished.is_none() && options.cancel.is_cancelled() {
            self.finished = Some(FinishReason::Cancelled);
        }
        if self.finished.is_none() && self.session.tokens.len() >= engine.context() {
            self.finished = Some(FinishReason::ContextFull);
        }
        if self.finished.is_some() {
            self.held.push_str(&self.detokenizer.finish());
            return Ok(std::mem::take(&mut self.held));
        }
        let keep = options.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Ok(std::mem::replace(&mut self.held, rest))
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
