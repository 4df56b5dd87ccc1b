//! `epiphyte chat`: what a conversation survives.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use super::{assert_fails, epiphyte, json, stderr};
use crate::common::odd_llama::odd_llama;
use crate::common::writer::Meta;
use crate::common::{Random, golden, model_path};

/// A conversation of these lines with `model`.
fn chat(model: &str, lines: &[u8], more: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines");
    std::fs::write(&path, lines).unwrap();
    let args = [&["chat", "-m", model], more].concat();
    let output = epiphyte(&args).stdin(std::fs::File::open(&path).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn lines_are_answered_and_a_full_context_is_reported() {
    let Some(model) = model_path() else { return };
    let lines = format!("/help\nHi\n{}\n/reset\n/quit\nnever reached\n", "word ".repeat(60));
    let output = chat(model.to_str().unwrap(), lines.as_bytes(), &["--context", "48"]);
    assert!(stderr(&output).contains("/reset starts a new one"), "{}", stderr(&output));
    assert!(!String::from_utf8(output.stdout).unwrap().trim().is_empty());
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let Some(model) = model_path() else { return };
    let mut command = epiphyte(&["chat", "-m", model.to_str().unwrap()]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut lines, mut answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    lines.write_all(b"Write a very long story about a whale.\n").unwrap();
    answers.read_exact(&mut [0]).unwrap();
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    lines.write_all(b"/help\n").unwrap();
    drop(lines);
    let mut answer = Vec::new();
    answers.read_to_end(&mut answer).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("/reset"), "{}", stderr(&output));
    // Left alone it tells over 900 bytes in 200 tokens, and goes on.
    assert!(answer.len() < 450, "{} bytes after Ctrl-C", answer.len());
}

#[test]
fn a_line_that_is_not_utf8_is_refused_alone() {
    let tiny = golden("tiny_llama.gguf");
    let said = stderr(&chat(tiny.to_str().unwrap(), b"caf\xe9\n/help\n", &[]));
    assert!(
        said.contains("not UTF-8") && said.contains("/reset") && !said.contains("caf"),
        "{said}"
    );
}

#[test]
fn a_message_that_the_template_rejects_ends_no_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("strict.gguf");
    let template = Meta::Text("{{ raise_exception('only short messages') }}");
    std::fs::write(
        &path,
        odd_llama(&mut Random::new(1)).key("tokenizer.chat_template", template).bytes(),
    )
    .unwrap();
    let said = stderr(&chat(path.to_str().unwrap(), b"Hi\n/help\n", &[]));
    assert!(said.contains("only short messages") && said.contains("/reset"), "{said}");
}

#[test]
fn a_template_from_a_file_renders_chats() {
    let dir = tempfile::tempdir().unwrap();
    let [broken, good, bad] =
        ["m.gguf", "good.jinja", "bad.jinja"].map(|name| dir.path().join(name));
    let template = Meta::Text("{% if");
    std::fs::write(
        &broken,
        odd_llama(&mut Random::new(1)).key("tokenizer.chat_template", template).bytes(),
    )
    .unwrap();
    std::fs::write(&good, "{% for m in messages %}the {{ m.content }}\r\n{% endfor %}").unwrap();
    std::fs::write(&bad, "{% if").unwrap();
    let [good, bad] = [&good, &bad].map(|path| path.to_str().unwrap());
    let generate = |model: &std::path::Path, more: &[&str]| {
        let args = [
            "generate",
            "-m",
            model.to_str().unwrap(),
            "-p",
            "and",
            "-n",
            "1",
            "--json",
            "--show-prompt",
        ];
        epiphyte(&[&args[..], more].concat()).output().unwrap()
    };
    assert_fails(&generate(&broken, &["--chat"]), 1, "--chat-template");
    let tiny = golden("tiny_llama.gguf");
    assert_eq!(json(&generate(&tiny, &["--chat", "--chat-template", good]))["prompt"], "the and\n");
    assert_fails(&generate(&tiny, &["--chat", "--chat-template", bad]), 1, "bad.jinja");
    assert_fails(&generate(&tiny, &["--chat-template", good]), 2, "--chat");
}
