//! How well a model, with adapters or without, does what examples ask for: loss and exact answers.
//!
//! In: a session with the adapters to measure, [`Examples`]. Out: an [`Evaluation`] with every
//! answer.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::adapter::Adapter;
use crate::chat::Prompt;
use crate::engine::{
    CancelToken, Change, Engine, GenerateOptions, Sequence, Session, generate_batch,
};
use crate::error::{Error, Result};
use crate::tokenizer::EncodeOptions;
use crate::train::data::{DataOptions, Dataset, Encoder, Example, Record};

/// Sequences that are answered at once.
const BATCH: usize = 8;
/// Tokens an answer may take more than the one that is wanted, since texts can be spelled in
/// several ways.
const SLACK: usize = 8;
/// Under which an adapter is loaded that is only tried.
const TRIAL: &str = "a version on trial";

/// What to measure on.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    /// Tokens with their weights in the loss; what became of the file.
    pub data: Dataset,
    /// What they were made of.
    pub records: Vec<NumberedRecord>,
}

/// A record and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberedRecord {
    /// Its line in the file, from 1; without a file its place.
    pub line: usize,
    /// What it says.
    pub record: Record,
}

impl Examples {
    /// Reads a JSONL file. Examples are measured whole: let the encoder's options not truncate.
    ///
    /// Errors: as [`Dataset::read_jsonl`].
    pub fn read_jsonl(path: impl AsRef<Path>, encoder: &Encoder<'_>) -> Result<Self> {
        let mut records = Vec::new();
        let each = |line, record| records.push(NumberedRecord { line, record });
        let data = Dataset::read_jsonl_with(path, encoder, each)?;
        Ok(Self { data, records })
    }

    /// Encodes records.
    ///
    /// Errors: as [`Dataset::push`].
    pub fn of(records: impl IntoIterator<Item = Record>, encoder: &Encoder<'_>) -> Result<Self> {
        let mut examples = Self::default();
        for (line, record) in (1..).zip(records) {
            examples.data.push(&record, encoder)?;
            examples.records.push(NumberedRecord { line, record });
        }
        Ok(examples)
    }
}

/// How to measure.
#[derive(Clone, Debug, Default)]
pub struct EvaluateOptions {
    /// Most tokens of an answer; `None`: those of the wanted one, and 8.
    pub max_tokens: Option<usize>,
    /// Stops it from elsewhere, with what was measured so far.
    pub cancel: CancelToken,
}

/// An answer beside the one that is wanted.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Where its record stands.
    pub line: usize,
    /// What the example says.
    pub wanted: String,
    /// What the model said.
    pub got: String,
    /// They are equal, but for space around them.
    pub exact: bool,
}

/// What was measured.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Greedy answers to pairs, and to chats that end with the assistant, in the order of the
    /// records.
    pub answers: Vec<Answer>,
    /// Mean by the tokens' weights, in nats a token; `None` when no token has a weight, or not all
    /// were measured.
    pub loss: Option<f64>,
    /// It was stopped before the end.
    pub cancelled: bool,
}

impl Evaluation {
    /// Answers that are exact.
    pub fn exact(&self) -> usize {
        self.answers.iter().filter(|answer| answer.exact).count()
    }

    /// Their part, 0 to 1; `None` without answers.
    pub fn exact_match(&self) -> Option<f64> {
        (!self.answers.is_empty()).then(|| self.exact() as f64 / self.answers.len() as f64)
    }

    /// The others.
    pub fn wrong(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| !answer.exact)
    }
}

/// How far an evaluation is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluateProgress {
    /// Answers and losses done.
    pub done: usize,
    /// In all.
    pub total: usize,
}

/// Answers what `examples` ask and measures their loss, in forks of `template`: an empty session
/// with the adapters to measure. `progress` hears how far it is, from nothing on.
///
/// Errors: [`Error::InvalidArgument`] when `template` holds something; as [`Session::set_prompt`],
/// [`generate_batch`] and [`Session::logits`].
pub fn evaluate(
    template: &Session,
    examples: &Examples,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(EvaluateProgress),
) -> Result<Evaluation> {
    if !template.tokens().is_empty() {
        let reason = "it holds tokens; give an empty session".to_string();
        return Err(Error::InvalidArgument { name: "template", reason });
    }
    let questions = examples.records.iter().filter_map(Question::of).collect::<Vec<_>>();
    let (mut done, total) = (0, questions.len() + examples.data.examples.len());
    let mut advance = |count: usize| {
        done += count;
        progress(EvaluateProgress { done, total });
    };
    advance(0);
    let mut evaluation = Evaluation::default();
    for batch in questions.chunks(BATCH) {
        let answers = answer(batch, template, options)?;
        if options.cancel.is_cancelled() {
            return Ok(Evaluation { cancelled: true, ..evaluation });
        }
        evaluation.answers.extend(answers);
        advance(batch.len());
    }
    let mut loss = Loss::default();
    for example in &examples.data.examples {
        if options.cancel.is_cancelled() {
            return Ok(Evaluation { cancelled: true, ..evaluation });
        }
        loss.add(example, template)?;
        advance(1);
    }
    evaluation.loss = (loss.weights > 0.0).then(|| loss.sum / loss.weights);
    Ok(evaluation)
}

/// What an adapter must reach on a few examples before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Canary {
    /// The largest loss, in nats a token; `None` asks only that it is a number.
    pub max_loss: Option<f64>,
    /// All answers are exact.
    pub exact: bool,
}

/// That an adapter is fit for use, by examples of the app's own: after
/// [`crate::federated::Published::accept`] and before a version takes the place of the one in use.
/// `template` is as for [`evaluate`]. Errors say how much is wrong, never what was asked or said.
///
/// Errors: [`Error::InvalidAdapter`] for logits that are no numbers, a larger loss, a wrong answer;
/// [`Error::InvalidArgument`] for examples that ask nothing; [`Error::Cancelled`]; as [`evaluate`].
pub fn check_canary(
    template: &Session,
    examples: &Examples,
    canary: &Canary,
    cancel: &CancelToken,
) -> Result<Evaluation> {
    let options = EvaluateOptions { cancel: cancel.clone(), ..EvaluateOptions::default() };
    let measured = evaluate(template, examples, &options, &mut |_| {})?;
    if measured.cancelled {
        return Err(Error::Cancelled);
    }
    let refuse = |reason: String| {
        let reason = format!("{reason}; keep the adapter that is in use");
        Err(Error::InvalidAdapter { what: "canary".into(), reason })
    };
    let (exact, answers) = (measured.exact(), measured.answers.len());
    match measured.loss {
        None => {
            let reason = "its examples have nothing to measure; give one with an answer".into();
            Err(Error::InvalidArgument { name: "canary", reason })
        }
        Some(loss) if !loss.is_finite() => refuse("its logits are no numbers".into()),
        Some(_) if canary.exact && answers == 0 => {
            let reason = "`exact` needs examples that ask something; give pairs or chats".into();
            Err(Error::InvalidArgument { name: "canary", reason })
        }
        Some(_) if canary.max_loss.is_some_and(f64::is_nan) => {
            let reason = "the largest loss is no number".into();
            Err(Error::InvalidArgument { name: "canary", reason })
        }
        Some(loss) if canary.max_loss.is_some_and(|most| loss > most) => {
            let most = canary.max_loss.unwrap_or_default();
            refuse(format!("a loss of {loss:.4}, and {most} is allowed"))
        }
        Some(_) if canary.exact && exact < answers => {
            refuse(format!("{} of {answers} answers are wrong", answers - exact))
        }
        Some(_) => Ok(measured),
    }
}

/// [`check_canary`] of an adapter that is not loaded yet: it is beside those that are, under an id
/// of its own, and gone afterwards. `examples` encodes what it is tried on, each example whole.
///
/// Errors: as [`Engine::add_adapter`] and [`check_canary`]; those of `examples`.
pub fn try_adapter(
    engine: &Arc<Engine>,
    adapter: &Adapter,
    examples: impl FnOnce(&Encoder<'_>) -> Result<Examples>,
    canary: &Canary,
    cancel: &CancelToken,
) -> Result<Evaluation> {
    let (base, seq_len) = (engine.base(), engine.context());
    let options = DataOptions { seq_len, truncate: false, ..DataOptions::default() };
    let encoder = Encoder::new(&base.tokenizer, &base.chat_template, seq_len, options)?;
    let examples = examples(&encoder)?;
    engine.add_adapter(TRIAL, adapter)?;
    let mut session = engine.session();
    let adapters = &[(TRIAL, 1.0)];
    let set = session.set_adapters(&Change { adapters, ..Change::default() });
    let tried = set.and_then(|()| check_canary(&session, &examples, canary, cancel));
    drop(session);
    engine.unload_adapter(TRIAL)?;
    tried
}

/// A prompt, and the answer that is wanted.
struct Question<'a> {
    line: usize,
    asked: Asked<'a>,
    wanted: String,
}

enum Asked<'a> {
    Text(&'a str),
    Chat(Prompt<'a>),
}

impl<'a> Question<'a> {
    /// `None` for records that ask nothing.
    fn of(NumberedRecord { line, record }: &'a NumberedRecord) -> Option<Self> {
        let question = |asked, wanted| Self { line: *line, asked, wanted };
        match record {
            Record::Pair { prompt, completion } => {
                Some(question(Asked::Text(prompt), completion.clone()))
            }
            Record::Chat { messages, context } => {
                let (last, messages) = messages.split_last()?;
                // A call of a tool is no text to compare, and what is not learnt is not wanted.
                let is_text = last.content.is_some()
                    && last
                        .extra
                        .get("tool_calls")
                        .and_then(|calls| calls.as_array())
                        .is_none_or(Vec::is_empty);
                let counts = last.loss_weight() != Ok(Some(0.0));
                let asked = last.role == "assistant" && !messages.is_empty() && is_text && counts;
                let prompt = Prompt { messages, context, add_generation_prompt: true };
                asked.then(|| question(Asked::Chat(prompt), last.text()))
            }
            Record::FillInTheMiddle { .. } | Record::Text { .. } => None,
        }
    }

    /// A session that holds the prompt, with the adapters of `template`.
    fn ask(&self, template: &Session) -> Result<Session> {
        let mut session = template.fork();
        match &self.asked {
            Asked::Text(text) => session.push_text(text)?,
            Asked::Chat(prompt) => session.set_prompt(prompt)?,
        }
        Ok(session)
    }

    fn max_tokens(&self, engine: &Engine) -> Result<usize> {
        let options = EncodeOptions { add_bos: Some(false), ..EncodeOptions::default() };
        Ok(engine.base().tokenizer.encode(&self.wanted, options)?.len() + SLACK)
    }
}

/// Greedy answers to a batch.
fn answer(
    batch: &[Question<'_>],
    template: &Session,
    options: &EvaluateOptions,
) -> Result<Vec<Answer>> {
    let mut sessions =
        batch.iter().map(|question| question.ask(template)).collect::<Result<Vec<_>>>()?;
    let mut sequences = Vec::with_capacity(batch.len());
    for (session, question) in sessions.iter_mut().zip(batch) {
        let max_tokens =
            options.max_tokens.map_or_else(|| question.max_tokens(template.engine()), Ok)?;
        let cancel = options.cancel.clone();
        let options = GenerateOptions { max_tokens, cancel, ..GenerateOptions::default() };
        sequences.push(Sequence { session, options });
    }
    let mut texts = vec![String::new(); batch.len()];
    generate_batch(sequences, |index, token| {
        texts[index].push_str(&token.text);
        ControlFlow::Continue(())
    })?;
    let answer = |(Question { line, wanted, .. }, got): (&Question<'_>, String)| {
        let exact = got.trim() == wanted.trim();
        Answer { line: *line, wanted: wanted.clone(), got, exact }
    };
    Ok(batch.iter().zip(texts).map(answer).collect())
}

/// A mean in the making.
#[derive(Default)]
struct Loss {
    sum: f64,
    weights: f64,
}

impl Loss {
    fn add(&mut self, Example { ids, weights }: &Example, template: &Session) -> Result<()> {
        let weight = |index: usize| f64::from(weights.get(index + 1).copied().unwrap_or(0.0));
        let first = (0..ids.len()).find(|&index| weight(index) > 0.0).unwrap_or(ids.len());
        let mut session = template.fork();
        // The last token is predicted, it predicts none.
        session.push_tokens(&ids[..ids.len() - 1])?;
        session.logits(first, |index, logits| {
            if weight(index) > 0.0 {
                self.sum -= weight(index) * log_softmax(logits, ids[index + 1]);
                self.weights += weight(index);
            }
        })
    }
}

/// The log-probability of `token`.
pub fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}
