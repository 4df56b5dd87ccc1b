//! A conversation into the prompt the model was trained on, by the Jinja template in its file.
//!
//! Templates come from strangers: their work, nesting and output are bounded, and their errors
//! never quote a message. The engine (minijinja) counts instructions, bytes and the items of a list
//! as fuel, but not what the items hold, and its lists are lazy: `n.x + n.x` a hundred times over
//! is a list of 2^100 items that costs nothing until one looks. So `rewrite` changes the parsed
//! template before it is compiled: each operand, argument and result passes through a filter of
//! `budget` that walks lists to the bottom, pays for every value in them and leaves nothing lazy.
//! All lists are then as large as what was paid for them, and so is the work of each operator and
//! filter.

mod budget;
mod builtins;
mod json;
mod message;
mod methods;
mod rewrite;
mod said;
mod syntax;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, eval, make_string_output};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::Map;

pub use message::{Content, Message};
#[cfg(feature = "gpu")]
pub(crate) use message::{LOSS_KEYS, loss_weight};
pub use said::Rendered;
pub use tools::{ToolAnswer, ToolCall, ToolFormat};

use crate::error::{Error, Result};
use crate::tokenizer::{EncodeOptions, Tokenizer};
use said::{Input, Words};

/// `ChatML`, for files without a template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + \
    message.content \
                      + '<|im_end|>\\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat_template";
/// Budget of a rendering, beside what a message adds: 1 an instruction, 1 a value in a list that is
/// made or used and 1 for every 64 bytes written, copied or passed on.
const BASE_FUEL: u64 = 200_000;
/// Templates in use spend under two hundred a message.
const MESSAGE_FUEL: u64 = 400;
/// Stack for the nesting of expressions, statements and macros that is allowed.
const STACK_BYTES: usize = 8 << 20;
/// Nesting of macros and loops.
const MAX_DEPTH: usize = 64;
/// A conversation as a template gets it.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// From the first on.
    pub messages: &'a [Message],
    /// Other variables that the template may use: `tools`, `documents`, `enable_thinking`.
    pub context: &'a Map<String, serde_json::Value>,
    /// End where the assistant's answer begins.
    pub add_generation_prompt: bool,
}

/// A chat template, rendered as Hugging Face's `apply_chat_template` does.
///
/// ```
/// use epiphyte::chat::{ChatTemplate, Message};
/// let template = ChatTemplate::new(None, "", "")?;
/// let prompt = template.render(&[Message::new("user", "Hi")], true)?;
/// assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
/// # Ok::<(), epiphyte::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    /// Normalised, or what is wrong with it.
    source: Result<Arc<str>, String>,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Parses `source` (`tokenizer.chat_template`); `None` is `ChatML`. `bos_text` and `eos_text`
    /// spell these tokens, empty if there are none.
    ///
    /// Errors: [`Error::ChatTemplate`] with the line that does not parse.
    pub fn new(source: Option<&str>, bos_text: &str, eos_text: &str) -> Result<Self> {
        let template = Self::unchecked(Ok(source), bos_text, eos_text);
        template.check()?;
        Ok(template)
    }

    /// As [`ChatTemplate::new`] for a template that may never be used: what is wrong with it is
    /// said when it is.
    pub fn unchecked(source: Result<Option<&str>>, bos_text: &str, eos_text: &str) -> Self {
        let mut environment = Environment::new();
        environment.set_recursion_limit(MAX_DEPTH);
        environment.add_global("bos_token", bos_text);
        environment.add_global("eos_token", eos_text);
        builtins::add(&mut environment);
        budget::add(&mut environment);
        let source =
            source.and_then(|source| syntax::normalised(source.unwrap_or(CHATML)).map(Into::into));
        let reason = |error| match error {
            Error::ChatTemplate(reason) => reason,
            error => error.to_string(),
        };
        Self { source: source.map_err(reason), environment }
    }

    /// That it parses.
    ///
    /// Errors: [`Error::ChatTemplate`].
    pub fn check(&self) -> Result<()> {
        on_own_stack(|| compiled(self.source()?).map(drop))
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer
    /// begins. To make ids of it, [`ChatTemplate::tokenize`] knows what a message said from what
    /// the template did.
    ///
    /// Errors: [`Error::ChatTemplate`] when the template does not parse, rejects the conversation
    /// or works without end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_prompt(&Prompt { messages, context: &Map::new(), add_generation_prompt })
    }

    /// As [`ChatTemplate::render`].
    ///
    /// Errors: as [`ChatTemplate::render`].
    pub fn render_prompt(&self, prompt: &Prompt<'_>) -> Result<String> {
        on_own_stack(|| self.render_here(&self.input(prompt)?, seconds_now()))
    }

    /// The text of `prompt` with what of it came from messages, where that matters to `tokenizer`.
    ///
    /// Errors: as [`ChatTemplate::render`].
    pub fn render_said(&self, prompt: &Prompt<'_>, tokenizer: &Tokenizer) -> Result<Rendered> {
        on_own_stack(|| {
            let (input, now) = (self.input(prompt)?, seconds_now());
            let words = Words::new(tokenizer, &input, self.source()?);
            said::render(&words, &input, &mut |input| self.render_here(input, now))
        })
    }

    /// The ids of `prompt`: only the template's own words are control tokens.
    ///
    /// Errors: as [`ChatTemplate::render`] and [`Tokenizer::encode`].
    pub fn tokenize(&self, prompt: &Prompt<'_>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        self.render_said(prompt, tokenizer)?.encode(tokenizer)
    }

    /// Whether `name` is a word of the template: a key or variable that is not, it can't make use
    /// of.
    pub fn uses(&self, name: &str) -> bool {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        self.source
            .as_ref()
            .is_ok_and(|source| source.split(|c| !is_word(c)).any(|word| word == name))
    }

    fn source(&self) -> Result<&str> {
        self.source.as_deref().map_err(|reason| Error::ChatTemplate(reason.clone()))
    }

    fn input(&self, prompt: &Prompt<'_>) -> Result<Input> {
        let Prompt { messages, context, add_generation_prompt } = *prompt;
        let parts = messages.iter().any(|m| matches!(m.content, Some(Content::Parts(_))))
            && self.knows_parts()?;
        let mut all = Map::new();
        all.extend(["tools", "documents"].map(|name| (name.to_owned(), serde_json::Value::Null)));
        all.extend(context.clone());
        all.insert("add_generation_prompt".into(), add_generation_prompt.into());
        Ok(Input {
            messages: messages.iter().map(|message| message.shown(parts)).collect(),
            context: all,
        })
    }

    /// Whether the template takes content as a list of parts: it then prints the text of one, and
    /// nothing else of it.
    fn knows_parts(&self) -> Result<bool> {
        let (text, kind) = ("needle", "'type'");
        let message = Message {
            content: Some(Content::Parts(vec![text.into()])),
            ..Message::new("user", "")
        };
        let input = Input { messages: vec![message.shown(true)], context: Map::new() };
        self.source()?;
        Ok(self
            .render_here(&input, 0)
            .is_ok_and(|shown| shown.contains(text) && !shown.contains(kind)))
    }

    fn render_here(&self, input: &Input, now: u64) -> Result<String> {
        let mut environment = self.environment.clone();
        builtins::add_clock(&mut environment, now);
        let bytes = input.bytes();
        environment
            .set_fuel(Some(BASE_FUEL + MESSAGE_FUEL * input.messages.len() as u64 + bytes as u64));
        let mut context = input.context.clone();
        context.insert(
            "messages".into(),
            input.messages.iter().cloned().map(serde_json::Value::Object).collect(),
        );
        let (instructions, blocks) = compiled(self.source()?)?;
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let context = Value::from(Serde(context));
        let done = eval(&environment, &instructions, context, &blocks, &mut out, AutoEscape::None)
            .map(drop);
        done.map_err(|e| self.failed(&e))?;
        Ok(text)
    }

    /// What went wrong, in words of the template only: values may hold what a user said.
    fn failed(&self, error: &minijinja::Error) -> Error {
        let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
        let is_ours = std::error::Error::source(error)
            .is_some_and(|source| source.is::<builtins::OwnWords>());
        let reason = match error.kind() {
            ErrorKind::OutOfFuel => format!("it does too much work{line}; it may loop without end"),
            kind => match error.detail() {
                Some(detail) if is_ours || self.says(detail) => format!("{detail}{line}"),
                Some(detail) => format!("{kind}{}{line}", self.name_in(kind, detail)),
                None => format!("{kind}{line}"),
            },
        };
        Error::ChatTemplate(reason)
    }

    /// The filter, test, function or method that an error is about, if it is a word of the
    /// template.
    fn name_in(&self, kind: ErrorKind, detail: &str) -> String {
        use ErrorKind::{UnknownFilter, UnknownFunction, UnknownMethod, UnknownTest};
        let name = match kind {
            UnknownMethod => detail.split(' ').next_back(),
            UnknownFilter | UnknownTest => detail.split(' ').nth(1),
            UnknownFunction => detail.split(' ').next(),
            _ => None,
        };
        name.filter(|name| self.uses(name)).map_or_else(String::new, |name| format!(" `{name}`"))
    }

    /// Whether `text` is in the template itself.
    fn says(&self, text: &str) -> bool {
        self.source.as_ref().is_ok_and(|source| source.contains(text))
    }
}

type Code<'a> = (Instructions<'a>, BTreeMap<&'a str, Instructions<'a>>);

fn compiled(source: &str) -> Result<Code<'_>> {
    let mut code = CodeGenerator::new(NAME, source);
    code.compile_stmt(&rewrite::statement(&syntax::parsed(source)?));
    let (instructions, blocks) = code.finish();
    let all = (0..).map_while(|i| instructions.get(i));
    let set = all
        .filter_map(|code| if let Instruction::SetAttr(name) = code { Some(name) } else { None });
    if set.collect::<BTreeSet<_>>().len() > budget::MAX_ATTRIBUTES {
        return Err(Error::ChatTemplate("it sets too many attributes".into()));
    }
    Ok((instructions, blocks))
}

impl Rendered {
    /// The ids of the prompt. Most templates write BOS themselves; the others get it where the file
    /// asks for it.
    ///
    /// Errors: as [`Tokenizer::encode`].
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let bos = tokenizer.bos().and_then(|id| tokenizer.token_text(id));
        let has_bos =
            self.said.first() != Some(&0) && bos.is_some_and(|bos| self.text.starts_with(bos));
        let add_bos = if has_bos { Some(false) } else { None };
        self.encode_with(0, tokenizer, EncodeOptions { add_bos, ..EncodeOptions::default() })
    }

    /// The ids of the prompt from byte `at` on, which follow those of what is before.
    ///
    /// Errors: as [`Tokenizer::encode`].
    pub fn encode_from(&self, at: usize, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        self.encode_with(
            at,
            tokenizer,
            EncodeOptions { continuation: true, ..EncodeOptions::default() },
        )
    }

    fn encode_with(
        &self,
        at: usize,
        tokenizer: &Tokenizer,
        options: EncodeOptions,
    ) -> Result<Vec<u32>> {
        let said = self.said.iter().filter_map(|said| said.checked_sub(at)).collect::<Vec<_>>();
        let options = EncodeOptions { add_eos: Some(false), parse_special: true, ..options };
        tokenizer.encode_said(self.text.get(at..).unwrap_or_default(), &said, options)
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Runs `work` where there is stack for it.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread =
            thread.map_err(|e| Error::ChatTemplate(format!("no thread to render it: {e}")))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::ChatTemplate("the template engine failed".into())))
    })
}
