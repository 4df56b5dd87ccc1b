//! `epiphyte eval`: adapters with weights, wrong answers beside those that are wanted, lines that
//! can't be used.

use serde_json::{Value, json};

use super::adapter::{Folder, generate, on_tiny};
use super::{assert_fails, json, stderr, text};

const PROMPT: &str = "the sea";

/// A file of lines.
fn data(folder: &Folder, lines: &[String]) -> String {
    let path = folder.path("data.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    text(&path).to_string()
}

fn pair(completion: &str) -> String {
    json!({"prompt": PROMPT, "completion": completion}).to_string()
}

fn said(report: &Value) -> &str {
    report["text"].as_str().unwrap()
}

#[test]
fn adapters_answer_with_their_weights() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 1, 0.5, None), folder.adapter("b", 2, 0.5, None));
    let weighted = format!("{}=-0.5", text(&b));
    let flags = ["--adapter", text(&a), "--adapter", &weighted];
    let wanted = generate(&[flags[1], flags[3]]);
    let data = data(&folder, &[pair(said(&wanted))]);
    let eval = |flags: &[&str]| {
        let args = ["eval", "--json", "-d", &data, "-n", "12"];
        json(&on_tiny(&[&args[..], flags].concat()))
    };
    let with = eval(&flags);
    assert_eq!((&with["exact"], &with["exact_match"]), (&json!(1), &json!(1.0)));
    assert_eq!(
        (&with["adapters"][1]["path"], &with["adapters"][1]["weight"]),
        (&json!(text(&b)), &json!(-0.5))
    );
    let (alone, without) = (eval(&flags[..2]), eval(&[]));
    assert_eq!((&alone["exact"], &without["exact"]), (&json!(0), &json!(0)));
    assert_ne!(with["loss"], alone["loss"]);
    assert_eq!(without["adapters"], json!([]));
}

#[test]
fn an_adapter_of_another_base_is_measured_by_force_only() {
    let folder = Folder::new();
    let made_for = format!("epiphyte.base.1:{}", "0123456789abcdef".repeat(4));
    let other = folder.adapter("other", 1, 0.5, Some(&made_for));
    let data = data(&folder, &[pair("x")]);
    let args = ["eval", "--json", "-d", &data, "--adapter", text(&other)];
    assert_fails(&on_tiny(&args), 1, "made for base model epiphyte.base.1:0123456789abcdef,");
    let forced = on_tiny(&[&args[..], &["--force"]].concat());
    assert_eq!(json(&forced)["adapters"][0]["other_base"], true);
    assert!(stderr(&forced).contains(&format!("was made for base model {made_for}")));
}

#[test]
fn wrong_answers_are_shown_beside_the_wanted_ones() {
    let folder = Folder::new();
    let one = data(&folder, &[pair("one")]);
    let args = ["eval", "-d", &one, "-n", "4", "--show"];
    let got = json(&on_tiny(&[&args[..], &["1", "--json"]].concat()))["wrong"][0]["got"]
        .as_str()
        .unwrap()
        .to_string();
    let lines = [pair(&got), pair("one\ntwo\u{1b}"), String::new(), pair(&got), pair("three")];
    assert_eq!(data(&folder, &lines), one);
    let shown = String::from_utf8(on_tiny(&[&args[..], &["1"]].concat()).stdout).unwrap();
    let first: Vec<&str> = shown.lines().take(4).collect();
    assert_eq!(first[..3], ["line 2", "  wanted  one", "          two\\u{1b}"]);
    assert!(first[3].starts_with("  got     ") && !shown.contains("three"));
    assert!(
        shown.contains("and 1 more wrong answers") && shown.contains("50.0 % (2 of 4 answers)"),
        "{shown}"
    );
    let report = json(&on_tiny(&[&args[..], &["9", "--json"]].concat()));
    let wrong = |i: usize| (&report["wrong"][i]["line"], &report["wrong"][i]["wanted"]);
    assert_eq!(
        (wrong(0), wrong(1)),
        ((&json!(2), &json!("one\ntwo\u{1b}")), (&json!(5), &json!("three")))
    );
    assert_eq!(report["wrong"].as_array().unwrap().len(), 2);
    assert_eq!(report["wrong"][1]["got"], got);
}

#[test]
fn lines_that_cannot_be_used_are_refused_or_counted() {
    let folder = Folder::new();
    let bad = json!({"prompt": "only"}).to_string();
    let data = data(&folder, &[pair("x"), bad, "{".into(), pair("y")]);
    let args = ["eval", "--json", "-d", &data];
    assert_fails(&on_tiny(&args), 1, "line 2");
    let skipped = on_tiny(&[&args[..], &["--skip-bad"]].concat());
    let report = json(&skipped);
    assert_eq!((&report["skipped"], &report["answers"]), (&json!(2), &json!(2)));
    assert!(
        stderr(&skipped).contains("2 lines were skipped") && stderr(&skipped).contains("line 2")
    );
}

#[test]
fn an_ensemble_answers_together() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 1, 0.5, None), folder.adapter("b", 2, 0.5, None));
    let wanted = generate(&[text(&a)]);
    let data = data(&folder, &[pair(said(&wanted))]);
    let three = format!("{},{}=1,{}", text(&b), text(&a), text(&a));
    let eval = |flags: &[&str]| {
        let args = ["eval", "--json", "-d", &data, "-n", "12"];
        on_tiny(&[&args[..], flags].concat())
    };
    let voted = json(&eval(&["--ensemble", &three, "--combine", "majority"]));
    assert_eq!((&voted["exact"], &voted["loss"]), (&json!(1), &Value::Null));
    assert_eq!(
        (&voted["combine"], voted["adapters"].as_array().unwrap().len()),
        (&json!("majority"), 3)
    );
    let joined = json(&eval(&["--ensemble", text(&a), "--ensemble", text(&b)]));
    let (alone, other) =
        (json(&eval(&["--adapter", text(&a)])), json(&eval(&["--adapter", text(&b)])));
    assert_eq!((&joined["combine"], &alone["combine"]), (&json!("logits"), &Value::Null));
    let loss = |report: &Value| report["loss"].as_f64().unwrap();
    assert!(loss(&joined) != loss(&alone) && loss(&joined) != loss(&other));
    assert_fails(&eval(&["--ensemble", text(&a), "--adapter", text(&b)]), 2, "cannot be used with");
    assert_fails(&eval(&["--combine", "majority"]), 2, "--ensemble");
}
