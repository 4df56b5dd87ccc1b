//! `list`, `add` and `remove`, and the names that other commands take.

use std::fs;

use super::{assert_fails, epiphyte, golden, json, text};

#[test]
fn what_has_a_name_is_listed_used_and_removed() {
    let (home, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::copy(golden("tiny_llama.gguf"), own.path().join("tiny-llama-q4_0.gguf")).unwrap();
    let run = |args: &[&str]| epiphyte(args).env("EPIPHYTE_CACHE", home.path()).output().unwrap();
    let listed = || {
        let all = json(&run(&["list", "--json"]))["entries"].clone();
        let names = all.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap().to_string());
        names.collect::<Vec<_>>()
    };
    assert!(listed().is_empty());
    assert!(run(&["add", text(own.path())]).status.success());
    fs::copy(golden("tiny_llama.gguf"), home.path().join("other.gguf")).unwrap();
    assert_eq!(listed(), ["other", "tiny-llama-q4_0"]);
    let plan = json(&run(&["plan", "-m", "tiny-llama", "--json"]));
    assert_eq!(plan, json(&run(&["plan", "-m", text(&golden("tiny_llama.gguf")), "--json"])));
    assert_fails(&run(&["plan", "-m", "another"]), 1, "another");
    assert_fails(&run(&["remove", "tiny-llama-q4_0"]), 2, "of your own");
    assert!(run(&["remove", "other"]).status.success());
    assert!(run(&["remove", text(own.path())]).status.success());
    assert!(listed().is_empty());
    assert!(own.path().join("tiny-llama-q4_0.gguf").exists());
}
