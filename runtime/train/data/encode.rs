//! One record into examples.
//!
//! Text that follows other text is encoded together with it when that leaves the ids of the first as they were, and
//! apart otherwise: what a model is asked and what it answers never share a token, as when it generates.

use super::{DataOptions, Example, Record};
use crate::chat::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::tokenizer::{EncodeOptions, Tokenizer};

// StarCoder; Qwen and CodeGemma; DeepSeek; CodeLlama.
/// Names of the tokens before prefix, suffix and middle, by family.
const FIM_TOKENS: [[&str; 3]; 4] = [
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// An example before it is cut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Draft {
    pub(super) example: Example,
    /// The first token of an answer.
    pub(super) answer: usize,
}

impl Draft {
    fn new() -> Self {
        Self { example: Example { ids: Vec::new(), weights: Vec::new() }, answer: usize::MAX }
    }

    fn push(&mut self, ids: &[u32], weight: f32) {
        self.example.ids.extend(ids);
        self.example.weights.resize(self.example.ids.len(), weight);
        if let Some(first) = self.example.weights.first_mut() {
            *first = 0.0;
        }
    }

    /// Pushes ids that are to be learnt.
    fn push_answer(&mut self, ids: &[u32]) {
        if !ids.is_empty() {
            self.answer = self.answer.min(self.example.ids.len());
            self.push(ids, 1.0);
        }
    }
}

/// Makes examples of records, by a model's tokenizer and template.
#[derive(Clone, Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    options: DataOptions,
    eos: Option<u32>,
    fim: Option<[u32; 3]>,
}

impl<'a> Encoder<'a> {
    /// Errors: as [`DataOptions::check`]; `context` is the model's.
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: &'a ChatTemplate,
        context: usize,
        options: DataOptions,
    ) -> Result<Self> {
        options.check(context)?;
        let token = |name: &&str| -> Option<u32> {
            let ids = tokenizer.encode(name, bare(true)).ok()?;
            ids.first().copied().filter(|&id| ids.len() == 1 && tokenizer.token_text(id) == Some(*name))
        };
        let tokens = |[a, b, c]: &[&str; 3]| Some([token(a)?, token(b)?, token(c)?]);
        Ok(Self { tokenizer, template, options, eos: tokenizer.eos(), fim: FIM_TOKENS.iter().find_map(tokens) })
    }

    /// How examples are made.
    pub fn options(&self) -> &DataOptions {
        &self.options
    }

    /// The examples of `record`, uncut. Errors: see [`super::Dataset::push`].
    pub(super) fn encode(&self, record: &Record) -> Result<Vec<Draft>> {
        match record {
            Record::Chat { messages } => self.chat(messages),
            Record::Pair { prompt, completion } => Ok(vec![self.pair(prompt, completion)?]),
            Record::FillInTheMiddle { prefix, middle, suffix } => Ok(vec![self.fim(prefix, middle, suffix)?]),
            Record::Text { text } => {
                let mut windows = Windows::new(self.options.seq_len);
                let mut examples = windows.push(&self.start(text)?);
                examples.extend(windows.push(self.eos()));
                examples.extend(windows.finish());
                Ok(examples.into_iter().map(|example| Draft { example, answer: 1 }).collect())
            }
        }
    }

    fn pair(&self, prompt: &str, completion: &str) -> Result<Draft> {
        let mut draft = Draft::new();
        draft.push(&self.start(prompt)?, self.options.prompt_loss_weight);
        let whole = self.start(&[prompt, completion].concat())?;
        match whole.strip_prefix(&draft.example.ids[..]) {
            Some(rest) => draft.push_answer(rest),
            None => draft.push_answer(&self.text(completion)?),
        }
        draft.push_answer(self.eos());
        Ok(draft)
    }

    /// Prefix, suffix, middle: the order "PSM" of the paper.
    fn fim(&self, prefix: &str, middle: &str, suffix: &str) -> Result<Draft> {
        let [before_prefix, before_suffix, before_middle] = self.fim.ok_or_else(|| Error::Unsupported {
            what: "to fill in the middle with this model".into(),
            hint: "its vocabulary has no tokens for it; give pairs of `prompt` and `completion`".into(),
        })?;
        let weight = self.options.prompt_loss_weight;
        let mut draft = Draft::new();
        draft.push(&self.start("")?, weight);
        for (token, text) in [(before_prefix, prefix), (before_suffix, suffix)] {
            draft.push(&[token], weight);
            draft.push(&self.text(text)?, weight);
        }
        draft.push(&[before_middle], weight);
        draft.push_answer(&self.text(middle)?);
        draft.push_answer(self.eos());
        Ok(draft)
    }

    fn chat(&self, messages: &[Message]) -> Result<Vec<Draft>> {
        let mut drafts = Vec::new();
        let mut open: Option<Turns> = None;
        for turn in (0..messages.len()).filter(|&i| messages[i].role == "assistant") {
            let prompt = self.template.render(&messages[..turn], true)?;
            let whole = self.template.render(&messages[..=turn], false)?;
            if !whole.starts_with(&prompt) {
                let reason = "it does not begin an answer as it asks for one, so the answers can't be told from the rest; \
                              give pairs of `prompt` and `completion`";
                return Err(Error::ChatTemplate(reason.into()));
            }
            let mut turns = match open.take() {
                Some(turns) if prompt.starts_with(&turns.said) => turns,
                before => {
                    drafts.extend(before.map(|turns| turns.close(self.eos())));
                    Turns { draft: Draft::new(), said: String::new(), ended: false }
                }
            };
            turns.add(self, prompt, whole)?;
            let full = turns.draft.example.ids.len() > self.options.seq_len;
            open = Some(turns);
            if full {
                // What comes later would be cut.
                break;
            }
        }
        drafts.extend(open.map(|turns| turns.close(self.eos())));
        if drafts.is_empty() {
            let reason = "no message has the role `assistant`, so there is nothing to learn".into();
            return Err(Error::InvalidArgument { name: "messages", reason });
        }
        Ok(drafts)
    }

    /// The ids of a text that starts an example, with BOS where the file asks for one.
    pub(super) fn start(&self, text: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_bos: None, ..bare(self.options.parse_special) };
        self.tokenizer.encode(text, options)
    }

    /// The ids of a text that follows others.
    pub(super) fn text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, bare(self.options.parse_special))
    }

    /// The end of a text, if the vocabulary has one.
    pub(super) fn eos(&self) -> &[u32] {
        self.eos.as_slice()
    }

    /// The ids of a rendered conversation; most templates write the BOS themselves.
    fn rendered(&self, text: &str) -> Result<Vec<u32>> {
        let bos = self.tokenizer.bos().and_then(|id| self.tokenizer.token_text(id));
        let add_bos = if bos.is_some_and(|bos| text.starts_with(bos)) { Some(false) } else { None };
        self.tokenizer.encode(text, EncodeOptions { add_bos, ..bare(true) })
    }
}

/// Neither BOS nor EOS.
fn bare(parse_special: bool) -> EncodeOptions {
    EncodeOptions { add_bos: Some(false), add_eos: Some(false), parse_special, continuation: false }
}

/// A conversation so far.
struct Turns {
    draft: Draft,
    /// What `draft` encodes.
    said: String,
    /// The last answer has its end-of-generation token.
    ended: bool,
}

impl Turns {
    /// Goes on to `prompt` and from there to `whole`, each of which begins with the one before.
    fn add(&mut self, encoder: &Encoder<'_>, prompt: String, whole: String) -> Result<()> {
        let asked = self.following(encoder, &prompt)?;
        self.draft.push(&asked, 0.0);
        self.said = prompt;
        let answer = self.following(encoder, &whole)?;
        let end = answer.iter().rposition(|&id| encoder.tokenizer.is_end_of_generation(id));
        // What the template writes after the end of a turn, no model is asked for.
        let (learnt, rest) = answer.split_at(end.map_or(answer.len(), |end| end + 1));
        self.draft.push_answer(learnt);
        self.draft.push(rest, 0.0);
        self.said = whole;
        self.ended = end.is_some();
        Ok(())
    }

    /// The ids of `text` beyond what has been said.
    fn following(&self, encoder: &Encoder<'_>, text: &str) -> Result<Vec<u32>> {
        let whole = encoder.rendered(text)?;
        match whole.strip_prefix(&self.draft.example.ids[..]) {
            Some(rest) => Ok(rest.to_vec()),
            None => encoder.tokenizer.encode(&text[self.said.len()..], bare(true)),
        }
    }

    fn close(mut self, eos: &[u32]) -> Draft {
        if !self.ended {
            self.draft.push_answer(eos);
        }
        self.draft
    }
}

/// Cuts a document into examples: each begins with the last token of the one before, so that every token but the first is
/// predicted once.
pub(super) struct Windows {
    seq_len: usize,
    ids: Vec<u32>,
}

impl Windows {
    pub(super) fn new(seq_len: usize) -> Self {
        Self { seq_len, ids: Vec::with_capacity(seq_len) }
    }

    /// The examples that are now full.
    pub(super) fn push(&mut self, ids: &[u32]) -> Vec<Example> {
        let mut full = Vec::new();
        for &id in ids {
            if self.ids.len() == self.seq_len {
                full.extend(self.finish());
            }
            self.ids.push(id);
        }
        full
    }

    /// The rest, if it predicts anything.
    pub(super) fn finish(&mut self) -> Option<Example> {
        let last = self.ids.last().copied();
        let ids = std::mem::replace(&mut self.ids, last.into_iter().collect());
        let mut weights = vec![1.0; ids.len()];
        *weights.first_mut()? = 0.0;
        (ids.len() > 1).then_some(Example { ids, weights })
    }
}
