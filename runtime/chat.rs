//! A conversation into the prompt the model was trained on, by the Jinja template in its file.
//!
//! Templates come from strangers: their work, nesting and output are bounded, and their errors never quote a message.
//! One gap is the engine's (minijinja 3.1): what a filter or operator makes of a list that holds itself many times over
//! is charged only when it is done, so a template written for it can still use up time and memory.

mod builtins;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `ChatML`, for files without a template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content \
                      + '<|im_end|>\\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat_template";
/// Budget of a rendering, beside what a message adds: 1 an instruction and 1 for every 64 bytes written or copied.
const BASE_FUEL: u64 = 200_000;
/// Templates in use spend under a hundred a message.
const MESSAGE_FUEL: u64 = 200;
/// Stack for the values a template can nest before its fuel is spent: dropping one recurses.
const STACK_BYTES_PER_FUEL: u64 = 512;
/// Nesting of macros and loops.
const MAX_DEPTH: usize = 64;
/// Bytes of a template; the longest in use are about 20 KiB.
const MAX_SOURCE_BYTES: usize = 1 << 18;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`; the template decides what else it takes.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A parsed chat template, rendered as Hugging Face's `apply_chat_template` does.
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
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Parses `source` (`tokenizer.chat_template`); `None` is `ChatML`. `bos_text` and `eos_text` spell these tokens,
    /// empty if there are none.
    ///
    /// Errors: [`Error::ChatTemplate`] with the line that does not parse.
    pub fn new(source: Option<&str>, bos_text: &str, eos_text: &str) -> Result<Self> {
        let source = source.unwrap_or(CHATML);
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::ChatTemplate(format!("{} bytes are too many for a template", source.len())));
        }
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let mut environment = Environment::new();
        environment.set_syntax(syntax.map_err(|e| Error::ChatTemplate(e.to_string()))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.add_global("bos_token", bos_text);
        environment.add_global("eos_token", eos_text);
        builtins::add(&mut environment);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| Error::ChatTemplate(format!("{e}; ask the model's maker, or pass another template")))?;
        Ok(Self { environment })
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer begins. Encode it
    /// with `parse_special` and without another BOS.
    ///
    /// Errors: [`Error::ChatTemplate`] when the template rejects the conversation or works without end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let bytes = messages.iter().map(|m| m.role.len() + m.content.len()).sum::<usize>();
        let fuel = BASE_FUEL + MESSAGE_FUEL * messages.len() as u64 + bytes as u64 / 4;
        let stack_bytes = usize::try_from(fuel * STACK_BYTES_PER_FUEL).unwrap_or(usize::MAX);
        let render = || self.render_with(messages, add_generation_prompt, fuel);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(stack_bytes).spawn_scoped(scope, render);
            let thread = thread.map_err(|e| Error::ChatTemplate(format!("no thread to render it: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(Error::ChatTemplate("the template engine failed".into())))
        })
    }

    fn render_with(&self, messages: &[Message], add_generation_prompt: bool, fuel: u64) -> Result<String> {
        let none = Value::from(());
        let message = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let messages = messages.iter().map(message).collect::<Vec<_>>();
        let context = context! { messages, add_generation_prompt, tools => none.clone(), documents => none };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).map_err(|e| self.failed(&e))?;
        template.render(context).map_err(|e| self.failed(&e))
    }

    /// What went wrong, in words of the template only: values may hold what a user said.
    fn failed(&self, error: &minijinja::Error) -> Error {
        let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
        let reason = match error.kind() {
            ErrorKind::OutOfFuel => format!("it does too much work{line}; it may loop without end"),
            kind => match error.detail().filter(|&detail| self.says(detail)) {
                Some(detail) => format!("{detail}{line}"),
                None => format!("{kind}{line}"),
            },
        };
        Error::ChatTemplate(reason)
    }

    /// Whether `text` is in the template itself.
    fn says(&self, text: &str) -> bool {
        self.environment.get_template(NAME).is_ok_and(|template| template.source().contains(text))
    }
}
