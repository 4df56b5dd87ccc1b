//! How to generate: choosing tokens, when to stop, and what is handed out.

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::grammar::ResponseFormat;
use crate::kernels::sample::Sampler;

/// How to choose the next token. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits before all else; 0 takes the best token.
    pub temperature: f32,
    /// Most tokens to choose from; 0 is all.
    pub top_k: u32,
    /// Choose from the smallest set of at least this probability, after `top_k`; 1 is all.
    pub top_p: f32,
    /// Leave out tokens less probable than this part of the best one; 0 is none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that are in the context; 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and settings give the same tokens on the same device.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// That each setting is in its range, for a vocabulary of `vocab` tokens.
    ///
    /// Errors: [`Error::InvalidArgument`] naming the setting.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let bad = |name: &'static str, allowed: &str| {
            Err(Error::InvalidArgument { name, reason: format!("out of range; {allowed}") })
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad("temperature", "0 is greedy, 1 leaves the probabilities as they are");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", "above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", "0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return bad("repetition_penalty", "above 0; 1 is off");
        }
        if self.logit_bias.iter().any(|&(token, bias)| token as usize >= vocab || !bias.is_finite())
        {
            return bad("logit_bias", "tokens of the vocabulary and finite biases");
        }
        Ok(())
    }

    pub(super) fn sampler(&self) -> Sampler {
        Sampler {
            temperature: self.temperature,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            top_k: self.top_k,
            seed_lo: self.seed as u32,
            seed_hi: (self.seed >> 32) as u32,
            bias_count: self.logit_bias.len() as u32,
            ..Sampler::default()
        }
    }
}

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens.
    pub max_tokens: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Go on after the model's end-of-generation tokens.
    pub ignore_eos: bool,
    /// What the answer must look like; it then ends where this does, whatever `ignore_eos` says, and
    /// in time: near the last token that may come, one that leads to no end in time gives way to
    /// one that does, where such a way is found. Each token waits for the one before to be read back,
    /// as do those of others in its batch.
    pub response_format: Option<ResponseFormat>,
    /// Most tokens to propose at a time from what followed the last ones earlier in the session, all
    /// of which the model then judges in one pass: at most 7, 0 for none. `None`: up to 7 on
    /// cooperative matrices, up to 3 elsewhere, as long as that is faster. Tokens are those that
    /// come without it, to the bit on the reference tier. Only a sequence that is alone in its batch
    /// is sped up.
    pub prompt_lookup_num_tokens: Option<usize>,
    /// Stops it from elsewhere.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            response_format: None,
            prompt_lookup_num_tokens: None,
            cancel: CancelToken::default(),
        }
    }
}

/// Why a generation ended.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or [`GenerateOptions::response_format`] has come to its end.
    EndOfGeneration,
    /// One of [`GenerateOptions::stop`] or [`GenerateOptions::stop_tokens`].
    Stop,
    /// [`GenerateOptions::max_tokens`].
    MaxTokens,
    /// The session's context has no room for another token.
    ContextFull,
    /// [`GenerateOptions::cancel`].
    Cancelled,
    /// Its [`GenerateOptions::response_format`] could not be followed on, or its conversation not be
    /// rendered without its oldest turns. The others of its batch go on; [`super::Batch::error`] says
    /// why.
    Failed,
}

/// What an answer took so far.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct AnswerStats {
    /// Tokens that the session held when the answer began.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were there already, of this session or of a prompt that
    /// began alike.
    pub cached_tokens: usize,
    /// Tokens handed out.
    pub generated_tokens: usize,
    /// Tokens that were looked up ([`GenerateOptions::prompt_lookup_num_tokens`]).
    pub drafted_tokens: usize,
    /// Those of them that the model would have said itself.
    pub accepted_tokens: usize,
    /// From the beginning to the first token, the prompt included; `None` before it.
    pub first_token_seconds: Option<f64>,
    /// From the first token to the last.
    pub decode_seconds: f64,
    /// Why it ended; `None` while it goes on.
    pub finish_reason: Option<FinishReason>,
}

impl AnswerStats {
    /// Tokens of the prompt a second, those not cached, up to the first token; `None` where there
    /// was one or none.
    pub fn prompt_tps(&self) -> Option<f64> {
        rate(
            self.prompt_tokens.saturating_sub(self.cached_tokens).saturating_sub(1),
            self.first_token_seconds?,
        )
    }

    /// Tokens a second after the first; `None` where there was none after it.
    pub fn decode_tps(&self) -> Option<f64> {
        rate(self.generated_tokens.saturating_sub(1), self.decode_seconds)
    }
}

/// `count` a second, if there was anything to count.
fn rate(count: usize, seconds: f64) -> Option<f64> {
    (count > 0 && seconds > 0.0).then(|| count as f64 / seconds)
}

/// One generated token.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that it completes: possibly none, when it ends inside a character or might begin a
    /// stop text.
    pub text: String,
}
