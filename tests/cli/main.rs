//! The built binary, from outside: what it prints, where, and its exit codes.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measured")]

mod adapter;
mod answers;
mod chat;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod common;
mod curves;
mod eval;
mod federated;
mod flower;
mod library;
mod merge;
mod outputs;
mod quantize;
mod quiet;
mod runs;
mod terminal;
mod train;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerSpec};
use serde_json::Value;

use common::{golden, model_path};

fn epiphyte(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epiphyte"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(args: &[&str]) -> Output {
    epiphyte(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts a failure with `code`, nothing on stdout, and `says` in the last line on stderr.
fn assert_fails(output: &Output, code: i32, says: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.contains(says), "{stderr}");
}

/// The one object on stdout.
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokenizer(model: &Path) -> Tokenizer {
    Tokenizer::from_spec(TokenizerSpec::from_gguf(&Gguf::open(model).unwrap()).unwrap()).unwrap()
}

#[test]
fn help_names_every_command() {
    let output = run(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = [
        "generate",
        "chat",
        "perplexity",
        "bench",
        "flower",
        "train",
        "eval",
        "inspect",
        "quantize",
        "imatrix",
        "checkpoint",
        "list",
        "add",
        "remove",
        "plan",
        "doctor",
        "adapter",
        "delta",
        "aggregate",
        "privacy",
        "completions",
        "man",
    ];
    for command in commands {
        assert!(help.contains(command), "{help}");
        assert!(run(&[command, "--help"]).status.success(), "{command}");
    }
}

#[test]
fn bad_use_exits_with_2() {
    let cases: [(&[&str], &str); 19] = [
        (&[], "Usage"),
        (&["generate"], "--prompt"),
        (&["generate", "-p", "x", "--no-such-flag"], "--no-such-flag"),
        (&["generate", "-p", "x", "--system", "y"], "--chat"),
        (&["generate", "-p", ""], "`prompt`"),
        (&["generate", "-p", "x", "--temperature=-1"], "`temperature`"),
        (&["generate", "-p", "x", "--top-p", "1.5"], "`top_p`"),
        (&["bench", "-p", "0"], "`prompt`"),
        (&["perplexity", "-f", "x", "-c", "3"], "`window`"),
        (&["perplexity", "-f", "x", "--chunks", "0"], "`chunks`"),
        (&["perplexity", "-f", "x", "--context", "64"], "--context"),
        (&["generate", "-p", "x", "--adapter"], "--adapter"),
        (&["bench", "--adapters", "0"], "`adapters`"),
        (&["bench", "--rank", "4"], "--adapters"),
        (&["bench", "--adapters", "2", "--adapter", "x"], "cannot be used with"),
        (&["adapter"], "Usage"),
        (&["adapter", "inspect"], "<PATH>"),
        (&["adapter", "convert", "x", "y", "--to", "pickle"], "pickle"),
        (&["adapter", "export", "x"], "<OUT.gguf>"),
    ];
    for (args, says) in cases {
        assert_fails(&run(args), 2, says);
    }
}

#[test]
fn a_prompt_that_is_not_utf8_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt");
    std::fs::write(&path, b"caf\xe9").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    assert_fails(&epiphyte(&["generate", "-p", "-"]).stdin(file).output().unwrap(), 2, "UTF-8");
    assert_fails(&run(&["perplexity", "-f", path.to_str().unwrap()]), 1, "byte 3");
}

#[test]
fn a_missing_default_model_names_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let output = epiphyte(&["generate", "-p", "x", "--json"])
        .env("EPIPHYTE_CACHE", dir.path())
        .output()
        .unwrap();
    assert_fails(&output, 1, "make demo");
}

#[test]
fn a_bad_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("garbage.gguf");
    std::fs::write(&path, [0x5A; 4096]).unwrap();
    let path = path.to_str().unwrap();
    for args in [
        &["generate", "-p", "x", "-m", path][..],
        &["bench", "-m", path],
        &["inspect", "--json", path],
    ] {
        assert_fails(&run(args), 1, "garbage.gguf");
    }
}

#[test]
fn the_old_name_of_a_variable_is_refused_with_the_new_one() {
    let output =
        epiphyte(&["doctor", "--json"]).env("EPIPHYTE_ADAPTER", "software").output().unwrap();
    assert_fails(&output, 2, "EPIPHYTE_GPU");
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_driver_the_remedy_is_named() {
    let tiny = golden("tiny_llama.gguf");
    let generate = ["generate", "-m", tiny.to_str().unwrap(), "-p", "x", "--json"];
    for args in [&generate[..], &["doctor", "--json"]] {
        let mut command = epiphyte(args);
        command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
        assert_fails(&command.output().unwrap(), 1, "install a Vulkan driver");
    }
}

#[test]
fn inspect_collects_every_reason_to_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    std::fs::write(
        &path,
        gguf(&[("general.architecture", "other"), ("tokenizer.chat_template", "{% if %}")]),
    )
    .unwrap();
    let output = run(&["inspect", "--json", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("can't be run"), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["architecture"], "other");
    assert_eq!(report["chat_template"], "unusable");
    let refused: Vec<String> = serde_json::from_value(report["refused"].clone()).unwrap();
    for says in ["architecture `other`", "tokenizer.ggml.model"] {
        assert_eq!(
            refused.iter().filter(|reason| reason.contains(says)).count(),
            1,
            "{says}: {refused:?}"
        );
    }
    assert!(report["warnings"][0].as_str().unwrap().contains("chat template"), "{report}");
    assert!(refused.iter().all(|reason| !reason.contains("template")), "{refused:?}");
}

/// A GGUF file with texts for metadata and no tensors.
fn gguf(metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut bytes, key);
        bytes.extend(8_u32.to_le_bytes());
        text(&mut bytes, value);
    }
    bytes
}

#[test]
fn inspect_describes_the_default_model() {
    let Some(model) = model_path() else { return };
    let report = json(&run(&["inspect", "--json", model.to_str().unwrap()]));
    assert_eq!(report["refused"].as_array().map(Vec::len), Some(0), "{report}");
    let gguf = Gguf::open(&model).unwrap();
    let counted: u64 =
        report["types"].as_array().unwrap().iter().map(|t| t["tensors"].as_u64().unwrap()).sum();
    assert_eq!(counted, gguf.tensors().len() as u64);
    assert_eq!(report["shape"]["vocab_size"], tokenizer(&model).vocab_size());
    assert_eq!(report["bytes"], std::fs::metadata(&model).unwrap().len());
}

#[test]
fn generate_prints_the_same_ids_and_text_either_way() {
    let Some(model) = model_path() else { return };
    let prompt = "The sea was calm, and";
    let args = ["generate", "-m", model.to_str().unwrap(), "-n", "6", "-p", prompt];
    let report = json(&run(&[&args[..], &["--json"]].concat()));
    let tokenizer = tokenizer(&model);
    assert_eq!(
        ids(&report["prompt_ids"]),
        tokenizer.encode(prompt, EncodeOptions::default()).unwrap()
    );
    let continuation = DecodeOptions { continuation: true, ..Default::default() };
    let text = tokenizer.decode_with(&ids(&report["ids"]), continuation);
    assert_eq!(ids(&report["ids"]).len(), 6);
    assert_eq!(report["text"], text.as_str());
    assert_eq!(report["finish_reason"], "max_tokens");
    assert!(report["decode_tps"].as_f64().unwrap() > 0.0);
    let plain = run(&args);
    assert_eq!(String::from_utf8(plain.stdout).unwrap().trim_end(), text.trim_end());
}

#[test]
fn perplexity_scores_the_second_half_of_each_window() {
    let Some(model) = model_path() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    std::fs::write(&path, "one two three four five six seven eight ".repeat(8)).unwrap();
    let args =
        ["perplexity", "-m", model.to_str().unwrap(), "-f", path.to_str().unwrap(), "--json"];
    let report = json(&run(&[&args[..], &["-c", "16", "--chunks", "2"]].concat()));
    assert_eq!((report["windows"].as_u64(), report["tokens"].as_u64()), (Some(2), Some(14)));
    let nll: Vec<f64> = serde_json::from_value(report["window_nll"].clone()).unwrap();
    let mean = nll.iter().sum::<f64>() / nll.len() as f64;
    assert!((report["perplexity"].as_f64().unwrap() - mean.exp()).abs() < 1e-9 * mean.exp());
    assert!(mean > 0.0 && mean < 5.0, "a counted list is easy: {mean}");
    assert_fails(&run(&[&args[..], &["-c", "4096"]].concat()), 1, "do not fill a window");
}

#[test]
fn plan_adds_up_the_textbooks_examples() {
    let report = json(&run(&["plan", "--params", "13e9", "--bytes-per-param", "2", "--json"]));
    assert_eq!(report["total_bytes"], 31_200_000_000_u64);
    let report = json(&run(&["plan", "--params", "7e9", "--train", "--json"]));
    assert_eq!(report["total_bytes"], 56_000_000_000_u64);
    let text = String::from_utf8(run(&["plan", "--params", "7e9", "--train"]).stdout).unwrap();
    assert!(text.contains("optimiser states") && text.contains("56.00 GB"), "{text}");
    assert_fails(
        &run(&["plan", "--params", "7e9", "--memory-budget", "8GB"]),
        1,
        "weights 14.00 GB + overhead 2.80 GB",
    );
    for bad in ["8XB", "-1GB", "0", "nanGB", ""] {
        let budget = format!("--memory-budget={bad}");
        assert_fails(&run(&["plan", "--params", "7e9", &budget]), 2, "--memory-budget");
    }
    assert_fails(&run(&["plan", "--params=-7e9"]), 2, "`params`");
    assert_fails(&run(&["plan", "--params", "nan"]), 2, "`params`");
    assert_fails(&run(&["plan", "--params", "7e9", "--rank", "4"]), 2, "--rank");
}

#[test]
fn plan_fits_a_model_file_into_a_budget() {
    let tiny = golden("tiny_llama.gguf");
    let args = ["plan", "-m", tiny.to_str().unwrap(), "--train", "--json"];
    let with = |more: &[&str]| run(&[&args[..], more].concat());
    let adapter = ["--targets", "q_proj,down_proj", "--rank", "4"];
    let whole = json(&with(&[&adapter[..], &["--recompute", "none"]].concat()));
    let of_class = |report: &Value, class: &str| {
        let classes = report["classes"].as_array().unwrap();
        classes
            .iter()
            .find(|entry| entry["class"] == class)
            .and_then(|entry| entry["bytes"].as_u64())
            .unwrap()
    };
    assert_eq!(of_class(&whole, "gradients"), 4 * whole["trainable_parameters"].as_u64().unwrap());
    let sum: u64 =
        whole["buffers"].as_array().unwrap().iter().map(|b| b["bytes"].as_u64().unwrap()).sum();
    assert_eq!(whole["total_bytes"], sum);
    let budget = format!("{}B", sum * 2 / 3);
    let fitted = json(&with(&[&adapter[..], &["--memory-budget", &budget]].concat()));
    assert!(fitted["total_bytes"].as_u64().unwrap() <= sum * 2 / 3);
    let pinned =
        ["--batch", "1", "--seq-len", "256", "--recompute", "none", "--memory-budget", &budget];
    assert_fails(&with(&[&adapter[..], &pinned].concat()), 1, "fits in");
    assert_fails(&with(&["--targets", "lm_head"]), 2, "`targets`");
    assert_fails(&with(&["--seq-len", "100000"]), 2, "`seq_len`");
    let answer = ["plan", "-m", tiny.to_str().unwrap()];
    assert!(String::from_utf8(run(&answer).stdout).unwrap().contains("KV cache"));
    assert_fails(&run(&[&answer[..], &["--memory-budget", "10kB"]].concat()), 1, "smaller model");
}
