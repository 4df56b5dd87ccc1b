//! A conversation or a document in progress.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::EpiphyteError;

/// How to choose the next token. The defaults are greedy.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Sampling {
    /// 0 takes the best token; 1 leaves the probabilities as they are.
    #[uniffi(default = 0.0)]
    pub temperature: f32,
    /// Most tokens to choose from; 0 is all.
    #[uniffi(default = 0)]
    pub top_k: u32,
    /// Choose from the smallest set of at least this probability; 1 is all.
    #[uniffi(default = 1.0)]
    pub top_p: f32,
    /// Leave out tokens less probable than this part of the best one; 0 is none.
    #[uniffi(default = 0.0)]
    pub min_p: f32,
    /// The same seed, prompt and settings give the same answer on the same device.
    #[uniffi(default = 0)]
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// What to generate and when to stop.
#[derive(Clone, Debug, uniffi::Record)]
pub struct GenerateOptions {
    /// Most tokens.
    #[uniffi(default = 256)]
    pub max_tokens: u32,
    /// How to choose them.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    #[uniffi(default = [])]
    pub stop: Vec<String>,
}

impl From<GenerateOptions> for epiphyte::engine::GenerateOptions {
    fn from(options: GenerateOptions) -> Self {
        let Sampling { temperature, top_k, top_p, min_p, seed } = options.sampling;
        let sampling = epiphyte::engine::Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..Default::default()
        };
        Self {
            max_tokens: options.max_tokens as usize,
            sampling,
            stop: options.stop,
            ..Default::default()
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FinishReason {
    /// The model ended it.
    EndOfGeneration,
    /// One of the stop texts.
    Stop,
    /// It reached `max_tokens`.
    MaxTokens,
    /// The session's context has no room for another token.
    ContextFull,
    /// [`Session::cancel`], or the sink wanted no more.
    Cancelled,
}

impl From<epiphyte::engine::FinishReason> for FinishReason {
    fn from(reason: epiphyte::engine::FinishReason) -> Self {
        use epiphyte::engine::FinishReason as R;
        match reason {
            R::EndOfGeneration => Self::EndOfGeneration,
            R::Stop => Self::Stop,
            R::MaxTokens => Self::MaxTokens,
            R::ContextFull => Self::ContextFull,
            _ => Self::Cancelled,
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that it completes: possibly none, never half a character.
    pub text: String,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct AnswerStats {
    /// Tokens that the session held when the answer began.
    pub prompt_tokens: u32,
    /// Those of them that did not have to be computed again.
    pub cached_tokens: u32,
    /// Tokens handed out.
    pub generated_tokens: u32,
    /// From the beginning to the first token, the prompt included; none before it.
    pub first_token_seconds: Option<f64>,
    /// Tokens a second after the first; none where there was none after it.
    pub decode_tps: Option<f64>,
    /// Why it ended; none where the sink wanted no more.
    pub finish_reason: Option<FinishReason>,
}

impl From<epiphyte::AnswerStats> for AnswerStats {
    fn from(stats: epiphyte::AnswerStats) -> Self {
        Self {
            prompt_tokens: stats.prompt_tokens as u32,
            cached_tokens: stats.cached_tokens as u32,
            generated_tokens: stats.generated_tokens as u32,
            first_token_seconds: stats.first_token_seconds,
            decode_tps: stats.decode_tps(),
            finish_reason: stats.finish_reason.map(FinishReason::from),
        }
    }
}

/// Receives tokens as they come, on the thread that called [`Session::generate`].
#[uniffi::export(with_foreign)]
pub trait TokenSink: Send + Sync {
    /// Takes a token; `false` ends the answer after it. It must not call the session that is
    /// generating.
    fn on_token(&self, token: Token) -> bool;
}

/// A sequence of tokens over the engine's base. One call at a time; [`Session::cancel`] may come
/// from any thread.
#[derive(uniffi::Object)]
pub struct Session {
    inner: Mutex<epiphyte::engine::Session>,
    cancel: Mutex<epiphyte::engine::CancelToken>,
    stats: Mutex<Option<epiphyte::AnswerStats>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    pub(crate) fn new(session: epiphyte::engine::Session) -> Self {
        Self { inner: Mutex::new(session), cancel: Mutex::default(), stats: Mutex::default() }
    }
}

#[uniffi::export]
impl Session {
    /// Adds text as it stands, without a chat template.
    pub fn push_text(&self, text: String) -> Result<(), EpiphyteError> {
        Ok(lock(&self.inner).push_text(&text)?)
    }

    /// Makes the session hold this conversation in the model's own template, ready for an answer.
    pub fn set_messages(&self, messages: Vec<Message>) -> Result<(), EpiphyteError> {
        let messages: Vec<_> =
            messages.into_iter().map(|m| epiphyte::chat::Message::new(m.role, m.content)).collect();
        Ok(lock(&self.inner).set_messages(&messages)?)
    }

    /// Goes on from what the session holds and hands each token to `sink`.
    pub fn generate(
        &self,
        options: GenerateOptions,
        sink: Arc<dyn TokenSink>,
    ) -> Result<FinishReason, EpiphyteError> {
        let mut session = lock(&self.inner);
        let cancel = epiphyte::engine::CancelToken::default();
        *lock(&self.cancel) = cancel.clone();
        let options = epiphyte::engine::GenerateOptions { cancel, ..options.into() };
        let mut generation = session.generate(options)?;
        while let Some(token) = generation.next() {
            let epiphyte::engine::Token { id, text, .. } = token?;
            let more = sink.on_token(Token { id, text });
            *lock(&self.stats) = Some(generation.stats());
            if !more {
                return Ok(FinishReason::Cancelled);
            }
        }
        Ok(generation.finish_reason().map_or(FinishReason::Cancelled, FinishReason::from))
    }

    /// What the latest answer took so far; none before the first token of the first.
    pub fn stats(&self) -> Option<AnswerStats> {
        lock(&self.stats).map(AnswerStats::from)
    }

    /// Ends the running generation soon; without one it does nothing.
    pub fn cancel(&self) {
        lock(&self.cancel).cancel();
    }

    /// How many tokens the session holds.
    pub fn len(&self) -> u32 {
        lock(&self.inner).tokens().len() as u32
    }

    /// It holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A second session that goes on from the same point.
    pub fn fork(&self) -> Arc<Self> {
        Arc::new(Self::new(lock(&self.inner).fork()))
    }
}
