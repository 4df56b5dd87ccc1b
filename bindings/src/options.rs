//! What goes in and out of a session: messages, settings, tokens. Names and defaults are the
//! runtime's.

use serde_json::{Map, Value};

use crate::EpiphyteError;
use crate::error::{count, number};

/// How to choose the next token. The defaults are greedy.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Sampling {
    /// 0 takes the best token; 1 leaves the probabilities as they are.
    #[uniffi(default = 0.0)]
    pub temperature: f32,
    /// Most tokens to choose from; 0 is all.
    #[uniffi(default = 0)]
    pub top_k: i32,
    /// Choose from the smallest set of at least this probability; 1 is all.
    #[uniffi(default = 1.0)]
    pub top_p: f32,
    /// Leave out tokens less probable than this part of the best one; 0 is none.
    #[uniffi(default = 0.0)]
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that are in the context; 1 is off.
    #[uniffi(default = 1.0)]
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    #[uniffi(default = [])]
    pub logit_bias: Vec<LogitBias>,
    /// The same seed, prompt and settings give the same answer on the same device.
    #[uniffi(default = 0)]
    pub seed: i64,
}

/// What is added to the logit of a token.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct LogitBias {
    /// Its id.
    pub token: i32,
    /// The number.
    pub bias: f32,
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

impl TryFrom<Sampling> for epiphyte::Sampling {
    type Error = EpiphyteError;

    fn try_from(sampling: Sampling) -> Result<Self, EpiphyteError> {
        let bias = |LogitBias { token, bias }: LogitBias| Ok((count("logit_bias", token)?, bias));
        Ok(Self {
            temperature: sampling.temperature,
            top_k: count("top_k", sampling.top_k)?,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling
                .logit_bias
                .into_iter()
                .map(bias)
                .collect::<Result<_, EpiphyteError>>()?,
            seed: sampling.seed.cast_unsigned(),
        })
    }
}

/// What to generate and when to stop.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct GenerateOptions {
    /// Most tokens.
    #[uniffi(default = 256)]
    pub max_tokens: i32,
    /// How to choose them.
    #[uniffi(default)]
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    #[uniffi(default = [])]
    pub stop: Vec<String>,
    /// Tokens that end the answer, besides the model's own.
    #[uniffi(default = [])]
    pub stop_tokens: Vec<i32>,
    /// Go on after the model's end-of-generation tokens.
    #[uniffi(default = false)]
    pub ignore_eos: bool,
    /// What the answer must look like; it then ends where this does.
    #[uniffi(default = None)]
    pub response_format: Option<ResponseFormat>,
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
        }
    }
}

impl TryFrom<GenerateOptions> for epiphyte::GenerateOptions {
    type Error = EpiphyteError;

    fn try_from(options: GenerateOptions) -> Result<Self, EpiphyteError> {
        let stop_tokens = options.stop_tokens.into_iter().map(|id| count("stop_tokens", id));
        Ok(Self {
            max_tokens: count("max_tokens", options.max_tokens)?,
            sampling: options.sampling.try_into()?,
            stop: options.stop,
            stop_tokens: stop_tokens.collect::<Result<_, _>>()?,
            ignore_eos: options.ignore_eos,
            response_format: options.response_format.map(TryInto::try_into).transpose()?,
            ..Self::default()
        })
    }
}

/// What an answer must look like. What came whole is always valid; an answer that ended for another
/// reason than `EndOfGeneration` may be cut.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ResponseFormat {
    /// JSON.
    JsonSchema {
        /// Its schema, itself JSON.
        schema: String,
    },
    /// A text that a regular expression matches whole.
    Regex {
        /// The expression, without look-around.
        pattern: String,
    },
    /// A text of a Lark grammar.
    Lark {
        /// The grammar, which begins at `start`.
        grammar: String,
    },
}

impl TryFrom<ResponseFormat> for epiphyte::ResponseFormat {
    type Error = EpiphyteError;

    fn try_from(format: ResponseFormat) -> Result<Self, EpiphyteError> {
        Ok(match format {
            ResponseFormat::JsonSchema { schema } => Self::json_schema(&schema)?,
            ResponseFormat::Regex { pattern } => Self::Regex(pattern),
            ResponseFormat::Lark { grammar } => Self::Lark(grammar),
        })
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FinishReason {
    /// The model ended it, or `response_format` has come to its end.
    EndOfGeneration,
    /// One of the stop texts or tokens.
    Stop,
    /// It reached `max_tokens`.
    MaxTokens,
    /// The session's context has no room for another token.
    ContextFull,
    /// It was cancelled.
    Cancelled,
    /// Its `response_format` could not be followed on; the others of its batch go on.
    Failed,
}

impl From<epiphyte::FinishReason> for FinishReason {
    fn from(reason: epiphyte::FinishReason) -> Self {
        use epiphyte::FinishReason as R;
        match reason {
            R::EndOfGeneration => Self::EndOfGeneration,
            R::Stop => Self::Stop,
            R::MaxTokens => Self::MaxTokens,
            R::ContextFull => Self::ContextFull,
            R::Failed => Self::Failed,
            _ => Self::Cancelled,
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Message {
    /// `system`, `user` or `assistant`; the template decides what else it takes.
    pub role: String,
    /// What was said.
    pub content: String,
    /// What else a template may use, as a JSON object: `tool_calls`, `tool_call_id`, `name`,
    /// `reasoning_content`.
    #[uniffi(default = None)]
    pub extra_json: Option<String>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra_json: None }
    }
}

impl TryFrom<Message> for epiphyte::Message {
    type Error = EpiphyteError;

    fn try_from(message: Message) -> Result<Self, EpiphyteError> {
        let extra = json_object("extra_json", message.extra_json.as_deref())?;
        Ok(Self { extra, ..Self::new(message.role, message.content) })
    }
}

/// A conversation of the runtime's.
///
/// Errors: [`EpiphyteError::InvalidArgument`] for what is no JSON object.
pub(crate) fn messages(messages: Vec<Message>) -> Result<Vec<epiphyte::Message>, EpiphyteError> {
    messages.into_iter().map(epiphyte::Message::try_from).collect()
}

/// Errors: [`EpiphyteError::InvalidArgument`], which does not quote it.
pub(crate) fn json_object(
    name: &'static str,
    text: Option<&str>,
) -> Result<Map<String, Value>, EpiphyteError> {
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text).map_err(|e| {
        EpiphyteError::invalid(name, format!("no JSON object from column {} on", e.column()))
    })
}

/// What a chat template gets beside the messages.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct PromptOptions {
    /// Other variables, as a JSON object: `tools`, `documents`, `enable_thinking`.
    #[uniffi(default = None)]
    pub context_json: Option<String>,
    /// End where the assistant's answer begins.
    #[uniffi(default = true)]
    pub add_generation_prompt: bool,
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self { context_json: None, add_generation_prompt: true }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Token {
    /// Its id.
    pub id: i32,
    /// The text that it completes: possibly none, never half a character.
    pub text: String,
}

impl From<epiphyte::Token> for Token {
    fn from(token: epiphyte::Token) -> Self {
        Self { id: token.id.cast_signed(), text: token.text }
    }
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, uniffi::Record)]
pub struct AnswerStats {
    /// Tokens that the session held when the answer began.
    pub prompt_tokens: i32,
    /// Those of them that did not have to be computed again.
    pub cached_tokens: i32,
    /// Tokens handed out.
    pub generated_tokens: i32,
    /// From the beginning to the first token, the prompt included; none before it.
    pub first_token_seconds: Option<f64>,
    /// Tokens of the prompt a second, those not cached; none where there was one or none.
    pub prompt_tokens_per_second: Option<f64>,
    /// Tokens a second after the first; none where there was none after it.
    pub decode_tokens_per_second: Option<f64>,
    /// Why it ended; none while it goes on.
    pub finish_reason: Option<FinishReason>,
}

impl From<epiphyte::AnswerStats> for AnswerStats {
    fn from(stats: epiphyte::AnswerStats) -> Self {
        Self {
            prompt_tokens: number(stats.prompt_tokens),
            cached_tokens: number(stats.cached_tokens),
            generated_tokens: number(stats.generated_tokens),
            first_token_seconds: stats.first_token_seconds,
            prompt_tokens_per_second: stats.prompt_tps(),
            decode_tokens_per_second: stats.decode_tps(),
            finish_reason: stats.finish_reason.map(FinishReason::from),
        }
    }
}
