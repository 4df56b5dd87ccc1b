//! Tool calls: what a template lets a model call, read back from what it said.

use std::fmt::Write as _;

use serde::Serialize;
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ToolCall {
    /// Which.
    pub name: String,
    /// By name.
    pub arguments: Map<String, Value>,
}

/// An answer, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ToolAnswer {
    /// What it says beside the calls.
    pub content: String,
    /// In its order.
    #[serde(rename = "tool_calls")]
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

    /// Takes apart what a model said. Where calls have no marks around them, an answer that begins
    /// like JSON and is no call is content.
    ///
    /// Errors: [`Error::InvalidArgument`] for a call that is cut, no JSON, or has no name; it quotes
    /// nothing of it. An answer held to [`ToolFormat::required`] that came whole has none.
    pub fn parse(&self, text: &str) -> Result<ToolAnswer> {
        let [before, after] = self.around.map(str::trim);
        if before.is_empty() {
            let all = text.trim();
            return Ok(match self.bare(all)? {
                Some(calls) => ToolAnswer { calls, ..ToolAnswer::default() },
                None => ToolAnswer { content: all.into(), ..ToolAnswer::default() },
            });
        }
        let (mut said, mut calls, mut rest) = (Vec::new(), Vec::new(), Some(text));
        while let Some(part) = rest {
            let (content, call) =
                part.split_once(before).map_or((part, None), |(c, o)| (c, Some(o)));
            said.push(content.trim());
            // Where a call ends is for JSON to say: its strings may hold the marks.
            rest = call.map(|call| self.marked(call, after, &mut calls)).transpose()?;
        }
        said.retain(|part| !part.is_empty());
        Ok(ToolAnswer { content: said.join("\n"), calls })
    }

    /// Adds the call that `text` begins with, and gives what comes after its mark.
    fn marked<'t>(&self, text: &'t str, after: &str, calls: &mut Vec<ToolCall>) -> Result<&'t str> {
        let (value, rest) = first_value(text).map_err(invalid)?;
        calls.extend(self.calls(value)?);
        let rest = rest.trim_start();
        let reason = if rest.is_empty() { CUT } else { NO_JSON };
        rest.strip_prefix(after).ok_or_else(|| invalid(reason))
    }

    /// Calls that are all of an answer, objects, one after the other, or a list of them; none where
    /// it is something else.
    fn bare(&self, text: &str) -> Result<Option<Vec<ToolCall>>> {
        let (mut calls, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            if calls.is_empty() && !rest.starts_with(['{', '[']) {
                return Ok(None);
            }
            let (value, after) = match first_value(rest) {
                Err(NO_JSON) if calls.is_empty() => return Ok(None),
                Ok((value, _)) if calls.is_empty() && !is_call(&value) => return Ok(None),
                found => found.map_err(invalid)?,
            };
            calls.extend(self.calls(value)?);
            // Llama puts a semicolon between two.
            rest = after.trim_start_matches([';', '\n', ' ']);
        }
        Ok((!calls.is_empty()).then_some(calls))
    }

    /// One, or a list of them.
    fn calls(&self, value: Value) -> Result<Vec<ToolCall>> {
        match value {
            Value::Array(list) => list.into_iter().map(|value| self.call(value)).collect(),
            value => Ok(vec![self.call(value)?]),
        }
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
    /// Errors: [`Error::InvalidArgument`] for no tools, or one without a name or with parameters that
    /// are no schema of an object.
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
            let schema = function.get("parameters").filter(|schema| !schema.is_null());
            let schema = of_object(schema.unwrap_or(&nothing));
            let schema = schema
                .ok_or_else(|| wrong("one has `parameters` that are no schema of an object"))?;
            let head = format!("{{\"name\": {name}, \"{}\": ", self.arguments);
            let schema = ResponseFormat::embedded(&schema);
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

const CUT: &str = "it is cut; allow more tokens";
const NO_JSON: &str = "it is no JSON";

/// The value that a text begins with, and the rest; else what is wrong.
fn first_value(text: &str) -> Result<(Value, &str), &'static str> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => Ok((value, &text[values.byte_offset()..])),
        Some(Err(e)) if !e.is_eof() => Err(NO_JSON),
        _ => Err(CUT),
    }
}

/// It has a name, or is a list of such.
fn is_call(value: &Value) -> bool {
    match value {
        Value::Array(list) => !list.is_empty() && list.iter().all(is_call),
        value => value.get("name").is_some_and(Value::is_string),
    }
}

/// A schema that asks for an object; none where it asks for something else.
fn of_object(schema: &Value) -> Option<Value> {
    const OTHERS: [&str; 6] = ["string", "number", "integer", "boolean", "array", "null"];
    let mut schema = schema.clone();
    let kind = schema.as_object_mut()?.entry("type").or_insert_with(|| "object".into());
    let other = kind.as_str().is_some_and(|kind| OTHERS.contains(&kind));
    (!other).then_some(schema)
}

fn invalid(reason: &str) -> Error {
    Error::InvalidArgument { name: "tool_call", reason: reason.into() }
}
