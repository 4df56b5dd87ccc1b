//! Which characters of a rendered prompt were said by a message, where a control token might begin.
//!
//! What a message says is text, even where it spells `<|im_end|>`. So each character of a message
//! that may begin a control token is replaced by a private one before a second rendering, and the
//! two are compared: as long as they differ in nothing else, the private characters show what came
//! from messages, through whatever the template did. A template may look for such words itself
//! (`content.split('</think>')`). Then the replacement changes what it does, and only words that it
//! does not look for are replaced, by the role of the message that says them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// A prompt, and what of it is not the template's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// As transformers renders it.
    pub text: String,
    /// Offsets in `text` of characters that came from messages and at which no control token may
    /// begin; ascending.
    pub said: Vec<usize>,
}

/// What a template is given.
#[derive(Clone)]
pub(super) struct Input {
    pub(super) messages: Vec<Map<String, Value>>,
    /// Other variables.
    pub(super) context: Map<String, Value>,
}

/// Characters from here on have no meaning: the second of the planes for private use.
const PRIVATE: u32 = 0xF_0000;
/// Renderings to find out which words the template looks for.
const MAX_TRIALS: usize = 200;

/// A word, or the first letter of one, by the role that says it.
type Group = (String, String);

/// The spellings of a vocabulary's control tokens, and the private character for the first letter
/// of each.
pub(super) struct Words<'a> {
    words: BTreeSet<&'a str>,
    lengths: BTreeSet<usize>,
    private: BTreeMap<char, char>,
}

impl<'a> Words<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, input: &Input, source: &str) -> Self {
        let words: BTreeSet<_> =
            tokenizer.control_tokens().filter(|word| !word.is_empty()).collect();
        let mut used = BTreeSet::new();
        let mut note = |text: &str| used.extend(text.chars().filter(|&c| c as u32 >= PRIVATE));
        note(source);
        input.each_text(&mut |_, text| note(text));
        let free =
            (PRIVATE..PRIVATE + 0xFFFE).filter_map(char::from_u32).filter(|c| !used.contains(c));
        let first = words.iter().filter_map(|word| word.chars().next()).collect::<BTreeSet<_>>();
        let private = first.into_iter().zip(free).collect();
        Self { lengths: words.iter().map(|word| word.len()).collect(), words, private }
    }

    /// The places of `text` where a word might begin: the letter, and the word if it is spelt in
    /// full.
    fn starts<'t>(&self, text: &'t str) -> impl Iterator<Item = (usize, &'t str)> {
        text.char_indices().filter(|(_, c)| self.private.contains_key(c)).map(move |(at, c)| {
            let word =
                |len: &usize| text.get(at..at + len).filter(|word| self.words.contains(word));
            (at, self.lengths.iter().rev().find_map(word).unwrap_or(&text[at..at + c.len_utf8()]))
        })
    }

    /// `text` with private characters where `role` says a word of `groups`.
    fn mark(&self, role: &str, text: &str, groups: &BTreeSet<Group>) -> String {
        let mut marked = text.to_owned();
        for (at, word) in self.starts(text).collect::<Vec<_>>().into_iter().rev() {
            let letter = word.chars().next();
            if let Some(private) =
                letter.filter(|_| groups.contains(&(role.to_owned(), word.to_owned())))
            {
                let end = at + private.len_utf8();
                marked.replace_range(at..end, &self.private[&private].to_string());
            }
        }
        marked
    }

    /// What `marked` was made of.
    fn unmark(&self, marked: &str) -> Rendered {
        let letters = self
            .private
            .iter()
            .map(|(letter, private)| (private, letter))
            .collect::<BTreeMap<_, _>>();
        let mut rendered = Rendered::default();
        for c in marked.chars() {
            if letters.contains_key(&c) {
                rendered.said.push(rendered.text.len());
            }
            rendered.text.push(*letters.get(&c).copied().unwrap_or(&c));
        }
        rendered
    }
}

impl Input {
    /// Calls `each` with every text that is not the template's, and the role that says it.
    fn each_text(&self, each: &mut dyn FnMut(&str, &str)) {
        let mut input = self.clone();
        input.map_texts(&mut |role, text| {
            each(role, text);
            None
        });
    }

    /// Length of all texts, about.
    pub(super) fn bytes(&self) -> usize {
        let mut bytes = 0;
        self.each_text(&mut |_, text| bytes += text.len());
        bytes
    }

    /// Replaces texts by what `map` gives. The names of a message's own keys are the format's.
    fn map_texts(&mut self, map: &mut dyn FnMut(&str, &str) -> Option<String>) {
        for message in &mut self.messages {
            let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
            message.values_mut().for_each(|value| map_texts(value, &mut |text| map(&role, text)));
        }
        self.context.values_mut().for_each(|value| map_texts(value, &mut |text| map("", text)));
    }
}

fn map_texts(value: &mut Value, map: &mut dyn FnMut(&str) -> Option<String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = map(text) {
                *text = new;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| map_texts(item, map)),
        Value::Object(fields) => {
            for (key, mut value) in std::mem::take(fields) {
                map_texts(&mut value, map);
                fields.insert(map(&key).unwrap_or(key), value);
            }
        }
        _ => {}
    }
}

/// Renders `input` and finds out what of the text the messages say.
pub(super) fn render(
    words: &Words<'_>,
    input: &Input,
    render: &mut dyn FnMut(&Input) -> Result<String>,
) -> Result<Rendered> {
    let text = render(input)?;
    let mut groups = BTreeSet::new();
    input.each_text(&mut |role, text| {
        groups.extend(words.starts(text).map(|(_, word)| (role.to_owned(), word.to_owned())));
    });
    let mut search = Search {
        words,
        input,
        render,
        kept: BTreeSet::new(),
        trials: 0,
        best: Rendered { text, said: Vec::new() },
    };
    search.keep(&groups.into_iter().collect::<Vec<_>>())?;
    Ok(search.best)
}

struct Search<'a> {
    words: &'a Words<'a>,
    input: &'a Input,
    render: &'a mut dyn FnMut(&Input) -> Result<String>,
    /// Groups that may be replaced together.
    kept: BTreeSet<Group>,
    trials: usize,
    best: Rendered,
}

impl Search<'_> {
    /// Keeps those of `groups` that the template does not look for.
    fn keep(&mut self, groups: &[Group]) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        self.trials += 1;
        if self.trials > MAX_TRIALS {
            return Err(Error::ChatTemplate(
                "it looks for too many of the control tokens that messages spell".into(),
            ));
        }
        let all = self.kept.iter().chain(groups).cloned().collect::<BTreeSet<_>>();
        let mut marked = self.input.clone();
        marked.map_texts(&mut |role, text| Some(self.words.mark(role, text, &all)));
        let rendered = (self.render)(&marked).map(|text| self.words.unmark(&text));
        match rendered {
            Ok(rendered) if rendered.text == self.best.text => {
                (self.kept, self.best) = (all, rendered);
                Ok(())
            }
            _ if groups.len() == 1 => Ok(()),
            _ => {
                let (first, second) = groups.split_at(groups.len() / 2);
                self.keep(first)?;
                self.keep(second)
            }
        }
    }
}
