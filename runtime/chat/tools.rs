//! Tool calls: what a template lets a model call, read back from what it said.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{ChatTemplate, Message};
use crate::error::{Error, Result};
use crate::grammar::ResponseFormat;

/// How a family of templates has tool calls written.
#[derive(Debug, PartialEq, Eq)]
pub struct ToolFormat {
    name: &'static str,
    /// Templates that have this in them,
    mark: &'static str,
    /// and not this.
    without: &'static str,
    /// Before and after a call; where there is nothing before, calls are all of the answer.
    around: [&'static str; 2],
    /// The key of a call's arguments.
    arguments: &'static str,
    /// Calls come as one list.
    list: bool,
}

/// The first that fits is a template's.
const FORMATS: [ToolFormat; 3] = [
    // Qwen 2.5 and 3, Hermes 2 and 3, SmolLM3.
    ToolFormat {
        name: "hermes",
        mark: "<tool_call>",
        without: "<function=",
        around: ["<tool_call>\n", "\n</tool_call>"],
        arguments: "arguments",
        list: false,
    },
    ToolFormat {
        name: "llama-3",
        mark: "\"parameters\": dictionary",
        without: "<tool_call>",
        around: ["", ""],
        arguments: "parameters",
        list: false,
    },
    // The token before it is a control token, which no text shows.
    ToolFormat {
        name: "mistral",
        mark: "[TOOL_CALLS]",
        without: "[ARGS]",
        around: ["", ""],
        arguments: "arguments",
        list: true,
    },
];

/// A tool that a model wants called.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ToolCall {
    /// Which.
    pub name: String,
    /// By name.
    pub arguments: Map<String, Value>,
}

/// An answer, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolAnswer {
    /// What it says beside the calls.
    pub content: String,
    /// In its order.
    pub calls: Vec<ToolCall>,
}

impl ToolAnswer {
    /// As the assistant's turn, from which a conversation goes on: templates know calls by the key
    /// `tool_calls`.
    pub fn message(&self) -> Message {
        let mut message = Message::new("assistant", self.content.as_str());
        let call = |call: &ToolCall| json!({ "type": "function", "function": call });
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(call).collect();
            message.extra.insert("tool_calls".into(), calls);
        }
        message
    }
}

impl ChatTemplate {
    /// How the template has tools called; `None` where it knows none, or in a way that is not read.
    pub fn tool_format(&self) -> Option<&'static ToolFormat> {
        let source = self.source().ok()?;
        FORMATS.iter().find(|format| {
            source.contains("tools")
                && source.replace("\\\"", "\"").contains(format.mark)
                && !source.contains(format.without)
        })
    }
}

impl ToolFormat {
    /// `hermes`, `llama-3` or `mistral`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Takes apart what a model said.
    ///
    /// Errors: [`Error::InvalidArgument`] for a call that is cut, no JSON, or has no name; it quotes
    /// nothing of it. An answer held to [`ToolFormat::required`] that came whole has none.
    pub fn parse(&self, text: &str) -> Result<ToolAnswer> {
        let [before, after] = self.around.map(str::trim);
        let mut answer = ToolAnswer::default();
        if before.is_empty() {
            let all = text.trim();
            if all.starts_with(['{', '[']) {
                answer.calls = self.calls(all)?;
            } else {
                answer.content = all.into();
            }
            return Ok(answer);
        }
        let mut parts = text.split(before);
        answer.content = parts.next().unwrap_or_default().trim().into();
        for part in parts {
            let (call, rest) =
                part.split_once(after).ok_or_else(|| invalid("it is cut; allow more tokens"))?;
            answer.calls.extend(self.calls(call.trim())?);
            answer.content.push_str(rest.trim());
        }
        Ok(answer)
    }

    /// The calls that `text` is: objects, one after the other, or a list of them.
    fn calls(&self, text: &str) -> Result<Vec<ToolCall>> {
        let mut calls = Vec::new();
        // Llama puts a semicolon between two.
        let mut rest = text;
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let value = values.next().and_then(|value| value.ok());
            rest = rest[values.byte_offset()..].trim_start_matches([';', '\n', ' ']);
            match value.ok_or_else(|| invalid("it is no JSON"))? {
                Value::Array(list) => {
                    calls.extend(
                        list.into_iter()
                            .map(|value| self.call(value))
                            .collect::<Result<Vec<_>>>()?,
                    );
                }
                value => calls.push(self.call(value)?),
            }
        }
        Ok(calls)
    }

    fn call(&self, mut value: Value) -> Result<ToolCall> {
        let Some(Value::String(name)) = value.get_mut("name").map(Value::take) else {
            return Err(invalid("it has no `name`"));
        };
        match value.get_mut(self.arguments).map(Value::take) {
            Some(Value::Object(arguments)) => Ok(ToolCall { name, arguments }),
            None | Some(Value::Null) => Ok(ToolCall { name, arguments: Map::new() }),
            Some(_) => Err(invalid(&format!("its `{}` are no object", self.arguments))),
        }
    }

    /// What an answer must look like that calls one of `tools`, with arguments of its schema:
    /// functions as `OpenAI` and transformers have them.
    ///
    /// Errors: [`Error::InvalidArgument`] for no tools, or one without a name.
    pub fn required(&self, tools: &[Value]) -> Result<ResponseFormat> {
        let wrong = |reason: &str| Error::InvalidArgument { name: "tools", reason: reason.into() };
        if tools.is_empty() {
            return Err(wrong("none; give at least one"));
        }
        // A schema of its own for each, as references count from its root.
        let mut rules = String::new();
        for (i, tool) in tools.iter().enumerate() {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name").filter(|name| name.is_string());
            let name = name.ok_or_else(|| wrong("one has no `name`"))?;
            let nothing = json!({ "type": "object", "additionalProperties": false });
            let schema = function.get("parameters").unwrap_or(&nothing);
            let head = format!("{{\"name\": {name}, \"{}\": ", self.arguments);
            let schema = ResponseFormat::embedded(schema);
            let _ = writeln!(rules, "call_{i}: {} args_{i} \"}}\"", literal(&head));
            let _ = writeln!(rules, "args_{i}: %json {schema}");
        }
        let any: Vec<_> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let [open, close] = if self.list { ["[", "]"] } else { ["", ""] };
        let [before, after] = self.around;
        let start =
            [&literal(&format!("{before}{open}")), "call", &literal(&format!("{close}{after}"))];
        Ok(ResponseFormat::Lark(format!(
            "start: {}\ncall: {}\n{rules}",
            start.join(" "),
            any.join(" | ")
        )))
    }
}

/// A text in a grammar; nothing for an empty one.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
}

fn invalid(reason: &str) -> Error {
    Error::InvalidArgument { name: "tool_call", reason: reason.into() }
}
