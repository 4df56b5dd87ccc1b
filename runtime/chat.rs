//! A conversation into the prompt the model was trained on, by the Jinja template in its file.
//!
//! Templates come from strangers: their work, nesting and output are bounded, and their errors never quote a message.
//! The engine (minijinja) counts instructions, bytes and the items of a list as fuel, but not what the items hold, and
//! its lists are lazy: `n.x + n.x` a hundred times over is a list of 2^100 items that costs nothing until one looks.
//! So `rewrite` changes the parsed template before it is compiled: each operand, argument and result passes through
//! a filter of `budget` that walks lists to the bottom, pays for every value in them and leaves nothing lazy. All
//! lists are then as large as what was paid for them, and so is the work of each operator and filter.

mod budget;
mod builtins;
mod rewrite;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, ast, eval, make_string_output, parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `ChatML`, for files without a template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content \
                      + '<|im_end|>\\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat_template";
/// Budget of a rendering, beside what a message adds: 1 an instruction, 1 a value in a list that is made or used and 1
/// for every 64 bytes written, copied or passed on.
const BASE_FUEL: u64 = 200_000;
/// Templates in use spend under two hundred a message.
const MESSAGE_FUEL: u64 = 400;
/// Stack for the nesting of expressions, statements and macros that is allowed.
const STACK_BYTES: usize = 8 << 20;
/// Nesting of macros and loops.
const MAX_DEPTH: usize = 64;
/// Bytes of a template; the longest in use are about 20 KiB.
const MAX_SOURCE_BYTES: usize = 1 << 16;
/// Tokens between `{{` and `}}`: operators in a row nest as deeply as there are of them.
const MAX_TAG_TOKENS: usize = 2048;

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
    source: Arc<str>,
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
        let mut environment = Environment::new();
        environment.set_recursion_limit(MAX_DEPTH);
        environment.add_global("bos_token", bos_text);
        environment.add_global("eos_token", eos_text);
        builtins::add(&mut environment);
        budget::add(&mut environment);
        on_own_stack(|| compiled(source).map(drop))?;
        Ok(Self { source: source.into(), environment })
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer begins. Encode it
    /// with `parse_special` and without another BOS.
    ///
    /// Errors: [`Error::ChatTemplate`] when the template rejects the conversation or works without end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        on_own_stack(|| self.render_here(messages, add_generation_prompt))
    }

    fn render_here(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let bytes = messages.iter().map(|m| m.role.len() + m.content.len()).sum::<usize>();
        let none = Value::from(());
        let message = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(BASE_FUEL + MESSAGE_FUEL * messages.len() as u64 + bytes as u64));
        let messages = messages.iter().map(message).collect::<Vec<_>>();
        let context = context! { messages, add_generation_prompt, tools => none.clone(), documents => none };
        let (instructions, blocks) = compiled(&self.source)?;
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let done = eval(&environment, &instructions, context, &blocks, &mut out, AutoEscape::None).map(drop);
        done.map_err(|e| self.failed(&e))?;
        Ok(text)
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
        self.source.contains(text)
    }
}

type Code<'a> = (Instructions<'a>, BTreeMap<&'a str, Instructions<'a>>);

fn compiled(source: &str) -> Result<Code<'_>> {
    let mut code = CodeGenerator::new(NAME, source);
    code.compile_stmt(&rewrite::statement(&parsed(source)?));
    let (instructions, blocks) = code.finish();
    let all = (0..).map_while(|i| instructions.get(i));
    let set = all.filter_map(|code| if let Instruction::SetAttr(name) = code { Some(name) } else { None });
    if set.collect::<BTreeSet<_>>().len() > budget::MAX_ATTRIBUTES {
        return Err(Error::ChatTemplate("it sets too many attributes".into()));
    }
    Ok((instructions, blocks))
}

fn parsed(source: &str) -> Result<ast::Stmt<'_>> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|e| Error::ChatTemplate(e.to_string()))?;
    let refused = |e| Error::ChatTemplate(format!("{e}; ask the model's maker, or pass another template"));
    let mut tokens = 0;
    for token in tokenize(source, false, syntax.clone()) {
        tokens = match token.map_err(refused)?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
            _ => tokens + 1,
        };
        if tokens > MAX_TAG_TOKENS {
            return Err(Error::ChatTemplate("one of its expressions is too long".into()));
        }
    }
    parse(source, NAME, syntax).map_err(refused)
}

/// Runs `work` where there is stack for it.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| Error::ChatTemplate(format!("no thread to render it: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(Error::ChatTemplate("the template engine failed".into())))
    })
}
