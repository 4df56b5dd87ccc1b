//! `merge` and `formats` from the command line.

use super::adapter::{Folder, on_tiny};
use super::{assert_fails, json, run, stderr, text};

#[test]
fn adapters_become_one_that_says_where_it_is_from() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 1, 0.02, None), folder.adapter("b", 2, 0.02, None));
    let (out, plot) = (folder.path("merged"), folder.path("merged.svg"));
    let made = json(&on_tiny(&[
        "merge",
        text(&a),
        text(&b),
        "--method",
        "ties",
        "--weights",
        "1,-0.5",
        "--density",
        "0.2",
        "--rank",
        "3",
        "--out",
        text(&out),
        "--plot",
        text(&plot),
        "--json",
    ]));
    assert_eq!(
        (&made["recipe"]["method"], &made["recipe"]["density"]),
        (&"ties".into(), &0.2.into())
    );
    assert_eq!(made["modules"].as_array().unwrap().len(), 14);
    assert!(made["modules"].as_array().unwrap().iter().all(|module| module["rank"] == 3));
    let lost = made["lost"].as_f64().unwrap();
    assert!(lost > 0.1 && lost < 1.0, "{lost}");
    assert_eq!(made["relations"].as_array().unwrap().len(), 1);
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    let seen = json(&on_tiny(&["adapter", "inspect", text(&out), "--json"]));
    let manifest: serde_json::Value =
        serde_json::from_str(seen["manifest"].as_str().unwrap()).unwrap();
    assert_eq!(manifest["format"], "epiphyte.merge.1");
    assert_eq!(manifest["parents"][1]["weight"], -0.5);
    let own = json(&on_tiny(&["adapter", "inspect", text(&b), "--json"]));
    assert_eq!(manifest["parents"][1]["digest"], own["digest"]);

    // The same by a recipe, to a GGUF file, and as a table.
    let recipe = folder.path("recipe.yml");
    std::fs::write(
        &recipe,
        "merge_method: dare_ties\nmodels:\n  - model: a\n    parameters: {weight: 0.5}\n  - model: b\n\
         parameters:\n  density: 0.5\n  seed: 3\ndtype: float16\n",
    )
    .unwrap();
    let gguf = folder.path("merged.gguf");
    let table = on_tiny(&["merge", "--config", text(&recipe), "--out", text(&gguf)]);
    let said = String::from_utf8(table.stdout.clone()).unwrap();
    assert!(table.status.success() && said.contains("by dare_ties"), "{}", stderr(&table));
    assert!(said.contains("sign conflict"), "{said}");
    assert!(on_tiny(&["adapter", "inspect", text(&gguf)]).status.success());
}

#[test]
fn what_can_not_be_merged_leaves_nothing() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 1, 0.02, None), folder.adapter("b", 2, 0.02, Some("other")));
    let out = folder.path("merged");
    let merge =
        |more: &[&str]| on_tiny(&[&["merge", "--out", text(&out), text(&a)], more].concat());
    assert_fails(&merge(&[text(&b)]), 1, "made for base model other");
    assert_fails(&merge(&[text(&a), "--method", "ties", "--density", "0"]), 2, "density");
    assert_fails(&merge(&[text(&a), "--weights", "1"]), 2, "weights");
    assert_fails(&merge(&[text(&a), "--method", "cat", "--density", "0.5"]), 2, "density");
    let sum = ["--weights", "1,-1", "--normalize", "true"];
    assert_fails(&merge(&[&[text(&a)], &sum[..]].concat()), 2, "weights");
    let recipe = folder.path("recipe.yml");
    for (yaml, says) in [
        ("merge_method: ties\nmodels: [{model: a}]\nslices: 1\n", "`slices`"),
        ("a: [\n", "not YAML"),
        ("a: 1\na: 2\n", "not YAML"),
        ("? [1]\n: 2\n", "keys must be texts"),
        ("", "one document"),
    ] {
        std::fs::write(&recipe, yaml).unwrap();
        let failed = on_tiny(&["merge", "--config", text(&recipe), "--out", text(&out)]);
        assert_fails(&failed, 1, says);
    }
    assert!(!out.exists());
    // An input stays what it is.
    let failed = on_tiny(&["merge", text(&a), text(&a), "--out", text(&a)]);
    assert_fails(&failed, 2, "stays as it is");
    assert!(merge(&[text(&b), "--force"]).status.success());
}

/// A full disk, as a limit on what a process may write.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = Folder::new();
    let (a, out) = (folder.adapter("a", 1, 0.02, None), folder.path("merged"));
    let model = super::adapter::model();
    let script = format!(
        "trap '' XFSZ; ulimit -f 4; exec {} merge {} {} --out {} -m {}",
        env!("CARGO_BIN_EXE_epiphyte"),
        text(&a),
        text(&a),
        text(&out),
        text(&model),
    );
    let failed = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_fails(&failed, 1, "File too large");
    let left: Vec<_> = std::fs::read_dir(&out).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn formats_show_bits_and_errors() {
    let shown = run(&["formats", "1234.56789"]);
    let said = String::from_utf8(shown.stdout.clone()).unwrap();
    assert!(shown.status.success(), "{}", stderr(&shown));
    assert!(said.contains("0 10001001 0011010011") && said.contains("1235"), "{said}");
    let found = json(&run(&["formats", "1234.56789", "-2000", "--json"]));
    assert_eq!(found["formats"].as_array().unwrap().len(), 10);
    assert_eq!(found["formats"][2]["numbers"][0]["value"], 1232.0);
    assert_fails(&run(&["formats", "many"]), 2, "many");
}

#[test]
fn models_are_stacked_by_layers() {
    let folder = Folder::new();
    let model = super::adapter::model();
    let (out, deep) = (folder.path("stacked.gguf"), folder.path("deep.gguf"));
    let parts = [format!("{}:0-1", text(&model)), format!("{}:1-1", text(&model))];
    let made = json(&run(&["stack", &parts[0], &parts[1], "--out", text(&out), "--json"]));
    assert_eq!(made["num_hidden_layers"], 3);
    let answer = run(&["generate", "-m", text(&out), "-p", "hello", "--max-tokens", "3"]);
    assert!(answer.status.success(), "{}", stderr(&answer));
    let solar =
        json(&run(&["stack", text(&model), "--overlap", "1", "--out", text(&deep), "--json"]));
    assert_eq!(solar["num_hidden_layers"], 2);
    let again = run(&["stack", text(&model), "--out", text(&deep)]);
    assert!(again.status.success() && stderr(&again).contains("needs training"));
    let last = format!("{}:0-9", text(&model));
    assert_fails(
        &run(&["stack", &last, "--out", text(&folder.path("x"))]),
        2,
        "a model that has 2",
    );
    let wrong = format!("{}:1-", text(&model));
    assert_fails(&run(&["stack", &wrong, "--out", text(&folder.path("x"))]), 2, "no range");
    assert_fails(&run(&["stack", text(&model), "--out", text(&model)]), 2, "stays as it is");
    assert!(!folder.path("x").exists());
}
