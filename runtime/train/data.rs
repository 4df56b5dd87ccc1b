//! Files of examples into token ids with a loss weight each; then into packed batches ([`batch`]).
//!
//! A JSONL file holds one record a line ([`Record`]), a text file is one document. Files are read
//! as a stream; only the ids stay in memory. The user's text is in no error and no log: lines are
//! named by number.

pub mod batch;
mod encode;
mod read;
mod record;
mod shapes;

pub use batch::{BatchOptions, Cursor, Loader, MicroBatch, Step, TrainLength};
pub use encode::Encoder;
pub(crate) use read::MEMORY;
pub use record::Record;

use crate::error::{Error, Result};
use crate::identity::{self, Identity};

use super::random::CounterRng;
use super::recipe;

/// A stream of the seed that no epoch uses.
const SPLIT_STREAM: u64 = u64::MAX;

/// Tokens to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Two tokens or more.
    pub ids: Vec<u32>,
    /// Weight in the loss of predicting each of `ids` from those before it; the first is 0, nothing
    /// precedes it.
    pub weights: Vec<f32>,
}

/// How examples are made of records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataOptions {
    /// Most tokens of an example; see
    /// [`crate::base::ModelConfig::max_position_embeddings`].
    pub seq_len: usize,
    /// Weight of the tokens of a prompt, 0 to 1, where those of its completion weigh 1; `None` for
    /// [`recipe::prompt_loss_weight`] by the number of records. Chats have loss on the assistant's
    /// turns only, whatever this is.
    pub prompt_loss_weight: Option<f32>,
    /// Recognise control tokens spelt in prompts, completions and texts: for records that hold a
    /// rendered template. Chats always do, as they do when a model is asked.
    pub parse_special: bool,
    /// Cut a longer example at its end, and drop it when no token of an answer is left; `false`
    /// refuses it.
    pub truncate: bool,
    /// Count lines that can't be used and go on; `false` refuses the file at the first.
    pub skip_bad: bool,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            seq_len: 512,
            prompt_loss_weight: None,
            parse_special: false,
            truncate: true,
            skip_bad: false,
        }
    }
}

impl DataOptions {
    /// Errors: [`Error::InvalidArgument`] for a weight outside 0 to 1, or a length under 2 or over
    /// `context`.
    pub fn check(&self, context: usize) -> Result<()> {
        if let Some(weight) = self.prompt_loss_weight.filter(|weight| !(0.0..=1.0).contains(weight))
        {
            let reason = format!("{weight} is not between 0 and 1");
            return Err(Error::InvalidArgument { name: "prompt_loss_weight", reason });
        }
        if !(2..=context).contains(&self.seq_len) {
            let reason = format!("{} tokens; this model allows 2 to {context}", self.seq_len);
            return Err(Error::InvalidArgument { name: "seq_len", reason });
        }
        Ok(())
    }
}

/// What became of a file.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DataReport {
    /// Records read, or windows of a text.
    pub records: usize,
    /// Examples made of them.
    pub examples: usize,
    /// Tokens of those.
    pub tokens: usize,
    /// Tokens with a weight above 0.
    pub trained_tokens: usize,
    /// Examples that were cut at their end to fit.
    pub cut: usize,
    /// Examples left out since no token of an answer was left (of these, some were cut).
    pub dropped: usize,
    /// Lines that could not be used.
    pub skipped: usize,
    /// The first of them, and why.
    pub first_skipped: Option<String>,
}

/// Part of the data that is kept for validation. Records count, so that the turns of a chat stay
/// together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Validation {
    /// 0 to 1, rounded to the nearest whole record.
    Fraction(f64),
    /// This many records.
    Count(usize),
}

/// Examples with where they came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// Of each example, by record.
    origins: Vec<Origin>,
    /// What became of the files.
    pub report: DataReport,
}

/// Where an example came from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Origin {
    /// Its record.
    record: usize,
    /// The first token of its answer; what is before is prompt.
    answer: usize,
}

impl Dataset {
    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Examples made elsewhere, each a record of its own and all of it an answer.
    pub fn of(examples: impl IntoIterator<Item = Example>) -> Self {
        let mut data = Self::default();
        for (record, example) in examples.into_iter().enumerate() {
            data.report.records += 1;
            data.add(example, Origin { record, answer: 0 });
        }
        data
    }

    /// Puts the examples of `other` after these.
    pub fn append(&mut self, other: Self) {
        let first = self.origins.last().map_or(0, |origin| origin.record + 1);
        let behind = |origin: Origin| Origin { record: first + origin.record, ..origin };
        self.origins.extend(other.origins.into_iter().map(behind));
        self.examples.extend(other.examples);
        let (a, b) = (&mut self.report, other.report);
        a.records += b.records;
        a.examples += b.examples;
        a.tokens += b.tokens;
        a.trained_tokens += b.trained_tokens;
        a.cut += b.cut;
        a.dropped += b.dropped;
        a.skipped += b.skipped;
        a.first_skipped = a.first_skipped.take().or(b.first_skipped);
    }

    /// Encodes one record and adds what it gives, as [`Dataset::push_weighted`] with a weight of 1.
    ///
    /// Errors: as [`Dataset::push_weighted`].
    pub fn push(&mut self, record: &Record, encoder: &Encoder<'_>) -> Result<()> {
        self.push_weighted(record, 1.0, encoder)
    }

    /// Encodes one record, whose loss counts `weight`, 0 or more, and adds what it gives: a chat is
    /// one example, unless its template renders a turn otherwise once another follows; then each
    /// turn of the assistant is one, as when the model was asked.
    ///
    /// Errors: [`Error::InvalidArgument`] for a chat without an assistant's turn or with keys that
    /// would change what is learnt and that its template does not use, and for an example that is
    /// too long, unless it may be cut; [`Error::ChatTemplate`] when the template rejects a chat or
    /// does not continue its own generation prompt; [`Error::Unsupported`] to fill in the middle
    /// with a vocabulary that has no tokens for it.
    pub fn push_weighted(
        &mut self,
        record: &Record,
        weight: f32,
        encoder: &Encoder<'_>,
    ) -> Result<()> {
        let mut drafts = encoder.encode(record)?;
        drafts.iter_mut().for_each(|draft| draft.scale(weight));
        let seq_len = encoder.options().seq_len;
        if !encoder.options().truncate
            && drafts.iter().any(|draft| draft.example.ids.len() > seq_len)
        {
            let reason = format!(
                "an example is longer than {seq_len} tokens; raise it, or let examples be cut"
            );
            return Err(Error::InvalidArgument { name: "seq_len", reason });
        }
        let record = self.report.records;
        self.report.records += 1;
        self.report.dropped += usize::from(drafts.is_empty());
        for mut draft in drafts {
            self.report.cut += usize::from(draft.example.ids.len() > seq_len);
            draft.example.ids.truncate(seq_len);
            draft.example.weights.truncate(seq_len);
            if draft.answer.max(1) < draft.example.ids.len() {
                self.add(draft.example, Origin { record, answer: draft.answer });
            } else {
                self.report.dropped += 1;
            }
        }
        Ok(())
    }

    fn add(&mut self, example: Example, origin: Origin) {
        self.report.examples += 1;
        self.report.tokens += example.ids.len();
        self.report.trained_tokens +=
            example.weights.iter().filter(|&&weight| weight > 0.0).count();
        self.examples.push(example);
        self.origins.push(origin);
    }

    /// Training and validation data, each in the order of the file; the same seed gives the same
    /// split.
    ///
    /// Errors: [`Error::InvalidArgument`] when either would be empty, or for a fraction outside 0
    /// to 1.
    pub fn split(self, validation: Validation, seed: u64) -> Result<(Self, Self)> {
        let mut kept = self.origins.iter().map(|origin| origin.record).collect::<Vec<_>>();
        kept.dedup();
        let count = match validation {
            Validation::Count(count) => count,
            Validation::Fraction(part) if (0.0..=1.0).contains(&part) => {
                (part * kept.len() as f64).round() as usize
            }
            Validation::Fraction(part) => {
                return Err(validation_error(format!("{part} is not between 0 and 1")));
            }
        };
        if count == 0 || count >= kept.len() {
            let reason = format!("{count} of {} records; both parts need one or more", kept.len());
            return Err(validation_error(reason));
        }
        let order = CounterRng::new(seed, SPLIT_STREAM).permutation(kept.len());
        let mut chosen = order[..count].iter().map(|&i| kept[i]).collect::<Vec<_>>();
        chosen.sort_unstable();
        let (mut train, mut held_out) = (Self::default(), Self::default());
        for (example, origin) in self.examples.into_iter().zip(self.origins) {
            let is_chosen = chosen.binary_search(&origin.record).is_ok();
            let part = if is_chosen { &mut held_out } else { &mut train };
            let last = part.origins.last().map(|last| last.record);
            part.report.records += usize::from(last != Some(origin.record));
            part.add(example, origin);
        }
        Ok((train, held_out))
    }

    /// The same without a loss on prompts: for few examples, and for validation, where a prompt
    /// that is learnt by heart makes those held out less likely, and would hide that the answers
    /// still get better.
    pub fn answers_only(self) -> Self {
        let report = DataReport { examples: 0, tokens: 0, trained_tokens: 0, ..self.report };
        let mut data = Self { report, ..Self::default() };
        for (mut example, origin) in self.examples.into_iter().zip(self.origins) {
            example.weights[..origin.answer].fill(0.0);
            data.add(example, origin);
        }
        data
    }

    /// With the weight of prompts that is best for so many records, where `options` leave it open.
    fn weighed(self, options: &DataOptions) -> Self {
        let by_size = recipe::prompt_loss_weight(self.report.records);
        let is_prompt_free = options.prompt_loss_weight.is_none() && by_size == 0.0;
        if is_prompt_free { self.answers_only() } else { self }
    }

    /// Names the examples: what a checkpoint compares before it goes on from a [`Cursor`].
    pub fn fingerprint(&self) -> String {
        let numbers = |Example { ids, weights }: &Example| -> Vec<u8> {
            let pair =
                |(id, weight): (&u32, &f32)| [id.to_le_bytes(), weight.to_le_bytes()].concat();
            ids.iter().zip(weights).flat_map(pair).collect()
        };
        let mut identity = Identity::new("epiphyte.data.1");
        identity.add("examples", identity::list(self.examples.iter().map(numbers)));
        identity.name()
    }
}

fn validation_error(reason: String) -> Error {
    Error::InvalidArgument { name: "validation", reason }
}
