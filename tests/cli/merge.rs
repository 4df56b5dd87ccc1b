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

#[test]
fn weights_and_methods_are_found_by_loss() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 1, 0.5, None), folder.adapter("b", 2, 0.5, None));
    let (out, plot) = (folder.path("merged"), folder.path("loss.svg"));
    let wanted = super::adapter::generate(&[text(&a)]);
    let data = folder.path("held_out.jsonl");
    let pair = serde_json::json!({"prompt": "the sea", "completion": wanted["text"]});
    std::fs::write(&data, pair.to_string()).unwrap();
    let merge = |more: &[&str]| {
        let args = ["merge", text(&a), text(&b), "--tune", text(&data), "--out", text(&out)];
        on_tiny(&[&args[..], more].concat())
    };
    let plotted = ["--method", "linear,slerp", "--grid", "0,1", "--plot", text(&plot), "--json"];
    let found = json(&merge(&plotted));
    let tune = &found["tune"];
    let trials = tune["trials"].as_array().unwrap();
    let best = &trials[tune["best"].as_u64().unwrap() as usize];
    assert_eq!((&best["loss"], &best["method"]), (&tune["loss"], &found["recipe"]["method"]));
    assert!(tune["loss"].as_f64() <= tune["loss_before"].as_f64());
    assert_eq!(found["parents"][1]["weight"], best["weights"][1]);
    assert!(trials.iter().any(|trial| trial["method"] == "slerp"));
    // Their sum is 0, and slerp divides by it.
    let refused = |trial: &&serde_json::Value| trial["loss"].is_null();
    assert!(trials.iter().filter(refused).all(|trial| trial["method"] == "slerp"));
    let drawn = std::fs::read_to_string(&plot).unwrap();
    assert!(drawn.contains("linear by the weight of") && drawn.contains("loss, nats a token"));
    // What was written is what was measured.
    let eval = ["eval", "--json", "-d", text(&data), "--adapter", text(&out)];
    assert_eq!(json(&on_tiny(&eval))["loss"], tune["loss"]);
    let table = merge(&["--rounds", "1"]);
    let said = String::from_utf8(table.stdout.clone()).unwrap();
    assert!(table.status.success() && said.contains("loss   method"), "{}", stderr(&table));

    let several = ["merge", text(&a), text(&b), "--method", "linear,ties", "--out", text(&out)];
    assert_fails(&on_tiny(&several), 2, "--tune");
    assert_fails(&merge(&["--grid", "x"]), 2, "--grid");
    let other = folder.path("x.gguf");
    let own = ["merge", text(&a), "--tune", text(&data), "--out", text(&other)];
    assert_fails(&on_tiny(&[&own[..], &["--plot", text(&data)]].concat()), 2, "stays as it is");
}

#[test]
fn what_quantising_took_becomes_an_adapter() {
    let folder = Folder::new();
    let (few, out) = (folder.path("few.gguf"), folder.path("adapter"));
    let model = super::adapter::model();
    let quantized = run(&["quantize", text(&model), text(&few), "--type", "q2_1"]);
    assert!(quantized.status.success(), "{}", stderr(&quantized));
    let loftq = |more: &[&str]| {
        let args = ["adapter", "loftq", text(&model), text(&few), "--out", text(&out)];
        run(&[&args[..], more].concat())
    };
    let made = json(&loftq(&["--rank", "8", "--json"]));
    assert!(made["after"].as_f64() < made["before"].as_f64());
    assert_eq!(made["modules"].as_array().unwrap().len(), 14);
    let base = ["-m", text(&few), "-p", "hello", "--max-tokens", "3"];
    let with = run(&[&["generate", "--adapter", text(&out)], &base[..]].concat());
    assert!(with.status.success(), "{}", stderr(&with));
    assert_fails(&loftq(&["--rank", "0"]), 2, "`rank`");
    let same = ["adapter", "loftq", text(&model), text(&model), "--out", text(&out)];
    assert_fails(&run(&same), 2, "lost nothing");
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
