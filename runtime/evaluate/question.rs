//! What a record asks, and how a session answers it.

use std::ops::ControlFlow;

use super::{Answer, EvaluateOptions, NumberedRecord};
use crate::chat::Prompt;
use crate::engine::{Engine, GenerateOptions, Sequence, Session, generate_batch};
use crate::error::Result;
use crate::tokenizer::EncodeOptions;
use crate::train::data::Record;

/// Tokens an answer may take more than the one that is wanted, since texts can be spelled in
/// several ways.
const SLACK: usize = 8;

/// A prompt, and the answer that is wanted.
pub(super) struct Question<'a> {
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
    pub(super) fn of(NumberedRecord { line, record }: &'a NumberedRecord) -> Option<Self> {
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
    pub(super) fn ask(&self, template: &Session) -> Result<Session> {
        let mut session = template.fork();
        match &self.asked {
            Asked::Text(text) => session.push_text(text)?,
            Asked::Chat(prompt) => session.set_prompt(prompt)?,
        }
        Ok(session)
    }

    /// Most tokens of an answer.
    pub(super) fn max_tokens(&self, engine: &Engine, options: &EvaluateOptions) -> Result<usize> {
        if let Some(max_tokens) = options.max_tokens {
            return Ok(max_tokens);
        }
        let options = EncodeOptions { add_bos: Some(false), ..EncodeOptions::default() };
        Ok(engine.base().tokenizer.encode(&self.wanted, options)?.len() + SLACK)
    }

    /// What was said, beside what is wanted.
    pub(super) fn judge(&self, got: String) -> Answer {
        let exact = got.trim() == self.wanted.trim();
        Answer { line: self.line, wanted: self.wanted.clone(), got, exact }
    }
}

/// Greedy answers of `templates` to each question, together, by question and template.
pub(super) fn answers(
    questions: &[Question<'_>],
    templates: &[&Session],
    options: &EvaluateOptions,
) -> Result<Vec<Vec<String>>> {
    let mut sessions = Vec::with_capacity(questions.len() * templates.len());
    for question in questions {
        for template in templates {
            let max_tokens = question.max_tokens(template.engine(), options)?;
            sessions.push((question.ask(template)?, max_tokens));
        }
    }
    let sequence = |(session, max_tokens)| {
        let cancel = options.cancel.clone();
        Sequence {
            session,
            options: GenerateOptions { max_tokens, cancel, ..GenerateOptions::default() },
        }
    };
    let sequences = sessions.iter_mut().map(|(session, most)| sequence((session, *most))).collect();
    let mut texts = vec![vec![String::new(); templates.len()]; questions.len()];
    generate_batch(sequences, |index, token| {
        texts[index / templates.len()][index % templates.len()].push_str(&token.text);
        ControlFlow::Continue(())
    })?;
    Ok(texts)
}
