//! How well a model, with adapters or without, does what examples ask for: loss and exact answers.
//!
//! In: a session with the adapters to measure, [`Examples`]. Out: an [`Evaluation`] with every
//! answer.

mod ensemble;
mod question;
mod tune;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::adapter::Adapter;
use crate::engine::{CancelToken, Change, Engine, Session};
use crate::error::{Error, Result};
use crate::train::data::{DataOptions, Dataset, Encoder, Example, Record};

pub use ensemble::{Combine, evaluate_ensemble};
use question::{Question, answers};
pub use tune::{Search, Trial, TuneProgress, Tuned, tune};

/// Sequences that are answered at once.
const BATCH: usize = 8;
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
/// [`crate::engine::generate_batch`] and [`Session::logits`].
pub fn evaluate(
    template: &Session,
    examples: &Examples,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(EvaluateProgress),
) -> Result<Evaluation> {
    check_empty(template)?;
    measure(template, examples, options, progress)
}

/// Who answers, and what a loss is to it.
trait Subject {
    /// Questions that it answers at once.
    fn at_once(&self) -> usize;
    fn answer(&self, batch: &[Question<'_>], options: &EvaluateOptions) -> Result<Vec<String>>;
    /// Adds an example's loss, if it has one.
    fn add_loss(&self, loss: &mut Loss, example: &Example) -> Result<()>;
}

impl Subject for Session {
    fn at_once(&self) -> usize {
        BATCH
    }

    fn answer(&self, batch: &[Question<'_>], options: &EvaluateOptions) -> Result<Vec<String>> {
        Ok(answers(batch, &[self], options)?.concat())
    }

    fn add_loss(&self, loss: &mut Loss, example: &Example) -> Result<()> {
        loss.add(example, self)
    }
}

/// That a session is one to fork.
fn check_empty(template: &Session) -> Result<()> {
    if template.tokens().is_empty() {
        return Ok(());
    }
    let reason = "it holds tokens; give an empty session".to_string();
    Err(Error::InvalidArgument { name: "template", reason })
}

fn measure(
    subject: &impl Subject,
    examples: &Examples,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(EvaluateProgress),
) -> Result<Evaluation> {
    let questions = examples.records.iter().filter_map(Question::of).collect::<Vec<_>>();
    let (mut done, total) = (0, questions.len() + examples.data.examples.len());
    let mut advance = |count: usize| {
        done += count;
        progress(EvaluateProgress { done, total });
    };
    advance(0);
    let mut evaluation = Evaluation::default();
    for batch in questions.chunks(subject.at_once()) {
        let got = subject.answer(batch, options)?;
        if options.cancel.is_cancelled() {
            return Ok(Evaluation { cancelled: true, ..evaluation });
        }
        evaluation.answers.extend(batch.iter().zip(got).map(|(question, got)| question.judge(got)));
        advance(batch.len());
    }
    let mut loss = Loss::default();
    for example in &examples.data.examples {
        if options.cancel.is_cancelled() {
            return Ok(Evaluation { cancelled: true, ..evaluation });
        }
        subject.add_loss(&mut loss, example)?;
        advance(1);
    }
    evaluation.loss = loss.mean();
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

/// A mean in the making.
#[derive(Default)]
struct Loss {
    sum: f64,
    weights: f64,
}

impl Loss {
    fn add(&mut self, example: &Example, template: &Session) -> Result<()> {
        let ids = &example.ids;
        let first = (0..ids.len()).find(|&index| Self::weight(example, index) > 0.0);
        let mut session = template.fork();
        // The last token is predicted, it predicts none.
        session.push_tokens(&ids[..ids.len() - 1])?;
        session.logits(first.unwrap_or(ids.len()), |index, logits| {
            self.add_token(example, index, logits);
        })
    }

    /// What token `index` of an example predicts counts so much.
    fn weight(example: &Example, index: usize) -> f64 {
        f64::from(example.weights.get(index + 1).copied().unwrap_or(0.0))
    }

    /// Adds the loss of what `logits` after token `index` say of the next.
    fn add_token(&mut self, example: &Example, index: usize, logits: &[f32]) {
        let weight = Self::weight(example, index);
        if weight > 0.0 {
            self.sum -= weight * log_softmax(logits, example.ids[index + 1]);
            self.weights += weight;
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.weights > 0.0).then(|| self.sum / self.weights)
    }
}

/// The log-probability of `token`.
pub fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}
