//! `generate`'s ways with an answer: what is looked up, tools that are called, turns that are dropped.

use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{assert_fails, epiphyte, ids, json as parse, run, stderr, text};
use crate::common::golden;

const TEMPLATE: &str = "{% if tools %}{{ tools[0].name }} {% endif %}{% for m in messages %}\
    {{ m.content }}{% endfor %}{% if tools %}\n<tool_call>\n{% endif %}";

struct Files {
    _dir: TempDir,
    template: PathBuf,
    tools: PathBuf,
}

fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let [template, tools] = ["t.jinja", "tools.json"].map(|name| dir.path().join(name));
    let level = json!({ "type": "integer", "minimum": 1, "maximum": 3 });
    let parameters = json!({
        "type": "object", "properties": { "level": level }, "required": ["level"],
        "additionalProperties": false,
    });
    std::fs::write(&template, TEMPLATE).unwrap();
    std::fs::write(&tools, json!([{ "name": "dim", "parameters": parameters }]).to_string())
        .unwrap();
    Files { _dir: dir, template, tools }
}

fn generate(more: &[&str]) -> Output {
    let tiny = golden("tiny_llama.gguf");
    run(&[&["generate", "-m", text(&tiny), "-p", "a b a b a b a b"], more].concat())
}

#[test]
fn tokens_that_are_looked_up_are_the_same_and_are_counted() {
    let report = |most| {
        let args = ["-n", "60", "--ignore-eos", "--json", "--prompt-lookup-num-tokens", most];
        parse(&generate(&args))
    };
    let [none, five] = ["0", "5"].map(report);
    assert_eq!(ids(&none["ids"]), ids(&five["ids"]));
    assert_eq!((&none["drafted_tokens"], &none["accepted_tokens"]), (&json!(0), &json!(0)));
    let [drafted, accepted] =
        ["drafted_tokens", "accepted_tokens"].map(|key| five[key].as_u64().unwrap());
    assert!(0 < accepted && accepted <= drafted, "{accepted} of {drafted}");
    assert_fails(&generate(&["--prompt-lookup-num-tokens", "8"]), 2, "8");
}

#[test]
fn a_tool_that_is_called_is_printed_with_its_arguments() {
    let Files { template, tools, .. } = &files();
    let args = ["--chat", "--chat-template", text(template), "--tools", text(tools)];
    let required =
        [&args[..], &["--tool-choice", "required", "-n", "100", "--temperature", "1"]].concat();
    let report = parse(&generate(&[&required[..], &["--json", "--show-prompt"]].concat()));
    let prompt = report["prompt"].as_str().unwrap();
    assert!(prompt.starts_with("dim "), "the template knows the tools: {prompt:?}");
    let call = &report["tool_calls"][0];
    assert!((1..=3).contains(&call["arguments"]["level"].as_i64().unwrap()), "{report}");
    assert_eq!((&call["name"], &report["content"]), (&json!("dim"), &json!("")));
    let plain = generate(&required);
    assert!(plain.status.success(), "{}", stderr(&plain));
    let printed = String::from_utf8(plain.stdout).unwrap();
    assert_eq!(serde_json::from_str::<Value>(printed.trim()).unwrap(), *call);
    // Left to itself, it says something else.
    let report = parse(&generate(&[&args[..], &["-n", "5", "--json"]].concat()));
    assert_eq!(report["tool_calls"], json!([]));
    assert_eq!(report["content"].as_str().unwrap(), report["text"].as_str().unwrap().trim());
}

#[test]
fn tools_that_cant_be_offered_are_refused() {
    let Files { template, tools, .. } = &files();
    let chat = ["--chat", "--tools", text(tools)];
    assert_fails(&generate(&chat), 1, "no tool calls");
    assert_fails(&generate(&chat[1..]), 2, "--chat");
    assert_fails(&generate(&["--tool-choice", "required"]), 2, "--tools");
    let with = [&chat[..], &["--chat-template", text(template)]].concat();
    let both = ["--tool-choice", "required", "--regex", "a+"];
    assert_fails(&generate(&[&with[..], &both].concat()), 2, "tool-choice");
    let wrong = ["--chat", "--tools", text(template), "--chat-template", text(template)];
    assert_fails(&generate(&wrong), 1, "no list of functions");
}

#[test]
fn a_conversation_may_go_on_without_its_oldest_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines");
    std::fs::write(&path, "One more thing that fills the context.\n".repeat(12)).unwrap();
    let tiny = golden("tiny_llama.gguf");
    let chat = |policy: &[&str]| {
        let args = [&["chat", "-m", text(&tiny), "-n", "4", "--system", "Be kind."], policy];
        let lines = std::fs::File::open(&path).unwrap();
        let output = epiphyte(&args.concat()).stdin(lines).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(chat(&[]).contains("--context-policy drop-oldest"));
    assert!(!chat(&["--context-policy", "drop-oldest"]).contains("fills the context"));
    assert_fails(&generate(&["--context-policy", "drop-oldest"]), 2, "--chat");
}
