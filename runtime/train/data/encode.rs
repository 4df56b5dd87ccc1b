//! One record into examples.
//!
//! Text that follows other text is encoded together with it when that leaves the ids of the first
//! as they were, and apart otherwise, as its continuation: what a model is asked and what it
//! answers never share a token, as when it generates.

use serde_json::{Map, Value};

use super::shapes::{is_empty, is_name};
use super::{DataOptions, Example, Record};
use crate::chat::{ChatTemplate, LOSS_KEYS, Message, Prompt, Rendered};
use crate::error::{Error, Result};
use crate::tokenizer::{EncodeOptions, Tokenizer};
use crate::train::recipe;

// StarCoder; Qwen and CodeGemma; DeepSeek; CodeLlama.
/// Names of the tokens before prefix, suffix and middle, by family.
const FIM_TOKENS: [[&str; 3]; 4] = [
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// Keys of a message that change nothing of what is learnt, used by a template or not.
const ASIDE: [&str; 26] = [
    "name",
    "tool_call_id",
    "id",
    "message_id",
    "uuid",
    "index",
    "turn",
    "source",
    "origin",
    "model",
    "lang",
    "language",
    "timestamp",
    "created_at",
    "created",
    "date",
    "time",
    "metadata",
    "meta",
    "tokens",
    "token_count",
    "tags",
    "score",
    "rating",
    "finish_reason",
    "annotations",
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
    fn push_answer(&mut self, ids: &[u32], weight: f32) {
        if !ids.is_empty() && weight > 0.0 {
            self.answer = self.answer.min(self.example.ids.len());
        }
        self.push(ids, weight);
    }

    /// Makes all of it count `weight` times as much.
    pub(super) fn scale(&mut self, weight: f32) {
        self.example.weights.iter_mut().for_each(|of| *of *= weight);
        if weight == 0.0 {
            self.answer = usize::MAX;
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
            let ids = tokenizer.encode(name, following(true)).ok()?;
            ids.first()
                .copied()
                .filter(|&id| ids.len() == 1 && tokenizer.token_text(id) == Some(*name))
        };
        let tokens = |[a, b, c]: &[&str; 3]| Some([token(a)?, token(b)?, token(c)?]);
        Ok(Self {
            tokenizer,
            template,
            options,
            eos: tokenizer.eos(),
            fim: FIM_TOKENS.iter().find_map(tokens),
        })
    }

    /// How examples are made.
    pub fn options(&self) -> &DataOptions {
        &self.options
    }

    fn prompt_weight(&self) -> f32 {
        self.options.prompt_loss_weight.unwrap_or(recipe::PROMPT_LOSS_WEIGHT)
    }

    /// The examples of `record`, uncut. Errors: see [`super::Dataset::push`].
    pub(super) fn encode(&self, record: &Record) -> Result<Vec<Draft>> {
        match record {
            Record::Chat { messages, context } => self.chat(messages, context),
            Record::Pair { prompt, completion } => Ok(vec![self.pair(prompt, completion)?]),
            Record::FillInTheMiddle { prefix, middle, suffix } => {
                Ok(vec![self.fim(prefix, middle, suffix)?])
            }
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
        draft.push(&self.start(prompt)?, self.prompt_weight());
        let whole = self.start(&[prompt, completion].concat())?;
        match whole.strip_prefix(&draft.example.ids[..]) {
            Some(rest) => draft.push_answer(rest, 1.0),
            None => draft.push_answer(&self.text(completion)?, 1.0),
        }
        draft.push_answer(self.eos(), 1.0);
        Ok(draft)
    }

    /// Prefix, suffix, middle: the order "PSM" of the paper.
    fn fim(&self, prefix: &str, middle: &str, suffix: &str) -> Result<Draft> {
        let [before_prefix, before_suffix, before_middle] =
            self.fim.ok_or_else(|| Error::Unsupported {
                what: "to fill in the middle with this model".into(),
                hint:
                    "its vocabulary has no tokens for it; give pairs of `prompt` and `completion`"
                        .into(),
            })?;
        let weight = self.prompt_weight();
        let mut draft = Draft::new();
        draft.push(&self.start("")?, weight);
        for (token, text) in [(before_prefix, prefix), (before_suffix, suffix)] {
            draft.push(&[token], weight);
            draft.push(&self.text(text)?, weight);
        }
        draft.push(&[before_middle], weight);
        draft.push_answer(&self.text(middle)?, 1.0);
        draft.push_answer(self.eos(), 1.0);
        Ok(draft)
    }

    fn chat(&self, messages: &[Message], context: &Map<String, Value>) -> Result<Vec<Draft>> {
        let weights = self.weights(messages, context)?;
        let mut drafts = Vec::new();
        let mut open: Option<Turns> = None;
        for turn in (0..messages.len()).filter(|&i| messages[i].role == "assistant") {
            let render = |messages, add_generation_prompt| {
                self.template.render_said(
                    &Prompt { messages, context, add_generation_prompt },
                    self.tokenizer,
                )
            };
            let prompt = render(&messages[..turn], true)?;
            let whole = render(&messages[..=turn], false)?;
            if !whole.text.starts_with(&prompt.text) {
                let reason = "it does not begin an answer as it asks for one, so the answers \
                    can't be told from the rest; \
                              give pairs of `prompt` and `completion`";
                return Err(Error::ChatTemplate(reason.into()));
            }
            let mut turns = match open.take() {
                Some(turns) if prompt.text.starts_with(&turns.said) => turns,
                before => {
                    drafts.extend(before.map(|turns| turns.close(self.eos())));
                    Turns::default()
                }
            };
            turns.add(self, prompt, whole, weights[turn])?;
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

    /// What each message counts in the loss; refuses what would be learnt otherwise than it says.
    fn weights(&self, messages: &[Message], context: &Map<String, Value>) -> Result<Vec<f32>> {
        let refused = |reason| Error::InvalidArgument { name: "messages", reason };
        let unused = |map: &Map<String, Value>| {
            let is_unused =
                |(key, value): &(&String, &Value)| !is_empty(value) && !self.is_used(key);
            let key = map.iter().find(is_unused).map(|(key, _)| named(key));
            key.map(|key| format!("{key} is nothing that the chat template uses; leave it out"))
        };
        if let Some(reason) = unused(context) {
            return Err(refused(reason));
        }
        let weight = |(i, message): (usize, &Message)| {
            let refused = |reason: String| refused(format!("message {}: {reason}", i + 1));
            if let Some(reason) = unused(&message.extra) {
                return Err(refused(reason));
            }
            match (message.loss_weight().map_err(refused)?, message.role.as_str()) {
                (weight, "assistant") => Ok(weight.unwrap_or(1.0)),
                (None | Some(0.0), _) => Ok(0.0),
                _ => Err(refused(
                    "only messages of role `assistant` are learnt; take its `weight` or `train` \
                    away"
                        .into(),
                )),
            }
        };
        messages.iter().enumerate().map(weight).collect()
    }

    /// Whether a key means something to the template or the loss, or nothing to anything.
    fn is_used(&self, key: &str) -> bool {
        LOSS_KEYS.contains(&key) || ASIDE.contains(&key) || self.template.uses(key)
    }

    /// The ids of a text that starts an example, with BOS where the file asks for one.
    pub(super) fn start(&self, text: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions {
            add_bos: None,
            continuation: false,
            ..following(self.options.parse_special)
        };
        self.tokenizer.encode(text, options)
    }

    /// The ids of a text that follows others.
    pub(super) fn text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, following(self.options.parse_special))
    }

    /// The end of a text, if the vocabulary has one.
    pub(super) fn eos(&self) -> &[u32] {
        self.eos.as_slice()
    }
}

/// A text after another, before a third.
fn following(parse_special: bool) -> EncodeOptions {
    EncodeOptions { add_bos: Some(false), add_eos: Some(false), parse_special, continuation: true }
}

/// A key as an error may show it.
fn named(key: &str) -> String {
    if is_name(key) { format!("`{key}`") } else { "a key".into() }
}

/// A conversation so far.
struct Turns {
    draft: Draft,
    /// What `draft` encodes.
    said: String,
    /// What the last answer counts, if it lacks its end-of-generation token.
    unended: Option<f32>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { draft: Draft::new(), said: String::new(), unended: None }
    }
}

impl Turns {
    /// Goes on to `prompt` and from there to `whole`, each of which begins with the one before.
    fn add(
        &mut self,
        encoder: &Encoder<'_>,
        prompt: Rendered,
        whole: Rendered,
        weight: f32,
    ) -> Result<()> {
        let asked = self.following(encoder, &prompt)?;
        self.draft.push(&asked, 0.0);
        self.said = prompt.text;
        let answer = self.following(encoder, &whole)?;
        let end = answer.iter().rposition(|&id| encoder.tokenizer.is_end_of_generation(id));
        // What the template writes after the end of a turn, no model is asked for.
        let (learnt, rest) = answer.split_at(end.map_or(answer.len(), |end| end + 1));
        self.draft.push_answer(learnt, weight);
        self.draft.push(rest, 0.0);
        self.said = whole.text;
        self.unended = end.is_none().then_some(weight);
        Ok(())
    }

    /// The ids of `rendered` beyond what has been said.
    fn following(&self, encoder: &Encoder<'_>, rendered: &Rendered) -> Result<Vec<u32>> {
        let whole = rendered.encode(encoder.tokenizer)?;
        match whole.strip_prefix(&self.draft.example.ids[..]) {
            Some(rest) => Ok(rest.to_vec()),
            None => rendered.encode_from(self.said.len(), encoder.tokenizer),
        }
    }

    fn close(mut self, eos: &[u32]) -> Draft {
        if let Some(weight) = self.unended {
            self.draft.push_answer(eos, weight);
        }
        self.draft
    }
}

/// Cuts a document into examples: each begins with the last token of the one before, so that every
/// token but the first is predicted once.
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
