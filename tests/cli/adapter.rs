//! Adapters from the command line, on the tiny model.

use std::path::{Path, PathBuf};
use std::process::Output;

use epiphyte::adapter::{Adapter, LoraConfig, LoraModule, Modules};
use epiphyte::base::{ModelConfig, fingerprint};
use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::TokenizerSpec;
use epiphyte::{DType, Engine, EngineOptions};
use serde_json::Value;

use super::{assert_fails, epiphyte, ids, json, run, stderr, text};
use crate::common::{Random, golden};

pub(super) fn model() -> PathBuf {
    golden("tiny_llama.gguf")
}

/// Runs with `-m` the tiny model.
pub(super) fn on_tiny(args: &[&str]) -> Output {
    run(&[args, &["-m", text(&model())]].concat())
}

/// A folder for adapters.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A PEFT folder: LoRA of rank 4 on every linear of the layers, B of this size.
    pub(super) fn adapter(
        &self,
        name: &str,
        seed: u64,
        size: f32,
        made_for: Option<&str>,
    ) -> PathBuf {
        let shape = ModelConfig::from_gguf(&Gguf::open(model()).unwrap()).unwrap().base_shape();
        let config = LoraConfig {
            r: 4,
            target_modules: Modules::Pattern("all-linear".into()),
            ..LoraConfig::default()
        };
        let mut random = Random::new(seed);
        let module = |target: epiphyte::adapter::TargetModule| {
            let [n, k] = shape.shape(target.path.target);
            let mut values =
                |len: usize, size: f32| (0..len).map(|_| random.signed(size)).collect();
            let (a, b) = (values(4 * k, 0.2), values(4 * n, size));
            LoraModule { path: target.path, rank: 4, a, b, scaling: target.scaling }
        };
        let modules = config.modules(&shape).unwrap().into_iter().map(module).collect();
        let adapter = Adapter::new(config, modules, made_for.map(String::from), &shape).unwrap();
        let path = self.path(name);
        adapter.save_peft(&path, DType::F32, &shape).unwrap();
        path
    }
}

fn fingerprint() -> String {
    let gguf = Gguf::open(model()).unwrap();
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    fingerprint::fingerprint(&gguf, &config, &TokenizerSpec::from_gguf(&gguf).unwrap()).unwrap()
}

pub(super) fn generate(adapters: &[&str]) -> Value {
    let flags: Vec<&str> = adapters.iter().flat_map(|adapter| ["--adapter", adapter]).collect();
    json(&on_tiny(
        &[&["generate", "--json", "-n", "12", "--ignore-eos", "-p", "the sea"], &flags[..]]
            .concat(),
    ))
}

#[test]
fn generate_runs_adapters_with_weights() {
    let folder = Folder::new();
    let (a, b) =
        (folder.adapter("a", 1, 0.5, None), folder.adapter("b=x", 2, 0.5, Some(&fingerprint())));
    let base = generate(&[]);
    assert_eq!(base["adapters"], serde_json::json!([]));
    let with = generate(&[text(&a)]);
    assert_ne!(ids(&with["ids"]), ids(&base["ids"]));
    assert_eq!(with["adapters"][0]["path"], text(&a));
    assert_eq!(
        (&with["adapters"][0]["weight"], &with["adapters"][0]["modules"]),
        (&1.0.into(), &14.into())
    );
    assert_eq!(
        ids(&generate(&[&format!("{}=0", text(&a))])["ids"]),
        ids(&base["ids"]),
        "a weight of 0 is the base"
    );
    // `x` and `inf` are no weights, so the `=` belongs to the path.
    let two = generate(&[&format!("{}=-1.5e0", text(&a)), text(&b)]);
    assert_eq!(two["adapters"][0]["weight"], -1.5);
    assert_eq!(
        (&two["adapters"][1]["path"], &two["adapters"][1]["weight"]),
        (&text(&b).into(), &1.0.into())
    );
    assert_eq!(two["adapters"][1]["other_base"], false);
    let infinite = format!("{}=inf", text(&a));
    assert_fails(&on_tiny(&["generate", "-p", "x", "--json", "--adapter", &infinite]), 1, "a=inf");
    assert_fails(
        &on_tiny(&["generate", "-p", "x", "--adapter", text(&a), "--adapter", text(&a)]),
        2,
        "twice",
    );
}

#[test]
fn an_adapter_for_another_base_needs_force() {
    let folder = Folder::new();
    let other = folder.adapter("other", 3, 0.5, Some("0123"));
    let args = ["generate", "-p", "x", "-n", "2", "--json", "--adapter", text(&other)];
    assert_fails(&on_tiny(&args), 1, "made for base model 0123");
    let forced = on_tiny(&[&args[..], &["--force"]].concat());
    assert!(
        stderr(&forced).contains("warning: ") && stderr(&forced).contains("0123"),
        "{}",
        stderr(&forced)
    );
    assert_eq!(json(&forced)["adapters"][0]["other_base"], true);
    assert_fails(&on_tiny(&["adapter", "check", text(&other)]), 1, "made for base model 0123");
    let out = folder.path("out.gguf");
    assert_fails(
        &on_tiny(&["adapter", "export", text(&other), text(&out)]),
        1,
        "made for base model 0123",
    );
    assert!(!out.exists());
    let forced = on_tiny(&["adapter", "export", text(&other), text(&out), "--force", "--json"]);
    assert!(stderr(&forced).contains("0123"));
    assert_eq!(json(&forced)["dtype"], "F16");
    let report = json(&on_tiny(&["adapter", "inspect", "--json", text(&other)]));
    assert_eq!(
        (&report["made_for"], &report["base_fingerprint"]),
        (&"another_base".into(), &"0123".into())
    );
}

#[test]
fn perplexity_is_another_under_an_adapter() {
    let folder = Folder::new();
    let (adapter, file) = (folder.adapter("a", 4, 0.5, None), folder.path("text"));
    std::fs::write(&file, "one two three four five six seven eight ".repeat(8)).unwrap();
    let args = ["perplexity", "-f", text(&file), "-c", "16", "--chunks", "2", "--json"];
    let (base, with) = (
        json(&on_tiny(&args)),
        json(&on_tiny(&[&args[..], &["--adapter", text(&adapter)]].concat())),
    );
    let of = |report: &Value| report["perplexity"].as_f64().unwrap();
    assert!((of(&base) - of(&with)).abs() > 1e-3 * of(&base), "{} {}", of(&base), of(&with));
    assert_eq!(with["adapters"].as_array().map(Vec::len), Some(1));
}

#[test]
fn chat_changes_adapters_between_answers() {
    let folder = Folder::new();
    let (adapter, lines) = (folder.adapter("a", 5, 0.5, None), folder.path("lines"));
    let adapter = text(&adapter);
    let script = format!(
        "/adapter\n/adapter {adapter}\n/adapter {adapter}=0.5\n/adapter \
        nowhere\n/adapters\n/adapter off\n/adapters\n\
         /system be brief\n/system\n/nothing\n/quit\n"
    );
    std::fs::write(&lines, script).unwrap();
    let lines = std::fs::File::open(&lines).unwrap();
    let output = epiphyte(&["chat", "-m", text(&model()), "--adapter", adapter])
        .stdin(lines)
        .output()
        .unwrap();
    let notes = stderr(&output);
    assert!(output.status.success(), "{notes}");
    let errors: Vec<&str> = notes.lines().filter(|line| !line.trim().is_empty()).collect();
    let used = format!("* {adapter} x 0.5");
    let says = [
        "give a path",
        "nowhere",
        &used,
        adapter,
        "No adapter is in use",
        "give a text",
        "no such command",
    ];
    assert_eq!(errors.len(), says.len(), "{notes}");
    for (line, says) in errors.iter().zip(says) {
        assert!(line.contains(says), "{notes}");
    }
    assert!(!errors[3].contains(" x "), "{notes}");
}

#[test]
fn inspect_tells_modules_and_every_reason_to_refuse() {
    let folder = Folder::new();
    let adapter = folder.adapter("a", 6, 0.5, Some(&fingerprint()));
    let report = json(&on_tiny(&["adapter", "inspect", "--json", text(&adapter)]));
    assert_eq!((&report["made_for"], &report["format"]), (&"this_base".into(), &"peft".into()));
    assert_eq!(report["modules"].as_array().map(Vec::len), Some(14));
    assert_eq!(
        (&report["modules"][0]["rank"], &report["modules"][0]["scaling"]),
        (&4.into(), &2.0.into())
    );
    let table = String::from_utf8(on_tiny(&["adapter", "inspect", text(&adapter)]).stdout).unwrap();
    assert!(table.contains("rank 4, scaling 2: 2 q_proj, 2 k_proj"), "{table}");
    assert!(table.contains("made for this model") && !table.contains("refused"), "{table}");

    let config = adapter.join("adapter_config.json");
    let mut keys: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    (keys["use_dora"], keys["lora_bias"], keys["made\u{1b}up"]) =
        (true.into(), true.into(), 1.into());
    std::fs::write(&config, keys.to_string()).unwrap();
    let refused = on_tiny(&["adapter", "inspect", text(&adapter)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("does not load on this model: "), "{refused:?}");
    let table = String::from_utf8(refused.stdout).unwrap();
    for says in [
        "refused   use_dora: DoRA",
        "refused   lora_bias: the B factor",
        r"refused   made\u{1b}up: unknown",
    ] {
        assert!(table.contains(says), "{table}");
    }
    assert!(table.contains("(and 27 more): not looked at"), "{table}");
    assert_fails(&on_tiny(&["adapter", "check", text(&adapter)]), 1, "and 2 more");
    assert_fails(&on_tiny(&["adapter", "inspect", text(&folder.path("absent"))]), 1, "absent");
    // Its report is complete as JSON, too.
    let refused = on_tiny(&["adapter", "inspect", "--json", text(&adapter)]);
    assert_eq!(refused.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(
        report["keys"].as_array().unwrap().iter().any(|item| item["verdict"] == "refused"),
        "{report}"
    );
}

#[test]
fn inspect_recognises_an_adapter_in_every_format() {
    let folder = Folder::new();
    let (adapter, gguf) =
        (folder.adapter("a", 6, 0.5, Some(&fingerprint())), folder.path("a.gguf"));
    assert!(on_tiny(&["adapter", "convert", text(&adapter), text(&gguf)]).status.success());
    let tensors = adapter.join("adapter_model.safetensors");
    for (path, format) in [(&adapter, "peft"), (&tensors, "peft"), (&gguf, "gguf")] {
        let report = json(&on_tiny(&["inspect", "--json", text(path)]));
        assert_eq!(
            (&report["format"], &report["made_for"]),
            (&format.into(), &"this_base".into()),
            "{path:?}"
        );
        assert_eq!(report["modules"].as_array().map(Vec::len), Some(14), "{path:?}");
    }
    // For a model that it does not fit it is refused.
    let mut keys: Value =
        serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap())
            .unwrap();
    keys["use_dora"] = true.into();
    std::fs::write(adapter.join("adapter_config.json"), keys.to_string()).unwrap();
    assert_eq!(on_tiny(&["inspect", text(&adapter)]).status.code(), Some(1));
}

#[test]
fn a_path_with_an_equals_sign_is_taken_whole_first() {
    let folder = Folder::new();
    let (plain, whole) =
        (folder.adapter("lr", 1, 0.5, None), folder.adapter("lr=0.5", 2, 0.5, None));
    let run = |adapter: &str| {
        on_tiny(&["generate", "--json", "-n", "1", "-p", "the sea", "--adapter", adapter])
    };
    let both = run(text(&whole));
    assert!(stderr(&both).contains("the first is meant"), "{}", stderr(&both));
    let of = |output: &Output| {
        let adapter = json(output)["adapters"][0].clone();
        (adapter["path"].as_str().unwrap().to_string(), adapter["weight"].as_f64().unwrap())
    };
    assert_eq!(of(&both), (text(&whole).into(), 1.0));
    // What the warning advises.
    assert_eq!(of(&run(&format!("{}e0", text(&whole)))), (text(&plain).into(), 0.5));
    assert_eq!(of(&run(&format!("{}=2", text(&whole)))), (text(&whole).into(), 2.0));
    std::fs::remove_dir_all(&plain).unwrap();
    let alone = run(text(&whole));
    assert_eq!((of(&alone).1, stderr(&alone)), (1.0, String::new()));
    let out = folder.path("out.gguf");
    assert!(on_tiny(&["adapter", "export", text(&whole), text(&out)]).status.success());
}

#[test]
fn check_tells_what_an_adapter_does_and_refuses_one_that_does_nothing() {
    let folder = Folder::new();
    let (adapter, nothing) =
        (folder.adapter("a", 7, 0.5, None), folder.adapter("zero", 7, 0.0, None));
    let report =
        json(&on_tiny(&["adapter", "check", "--json", text(&adapter), "-p", "the sea was calm"]));
    assert!(
        report["max_abs_difference"].as_f64().unwrap()
            >= report["rms_difference"].as_f64().unwrap()
    );
    assert!(
        report["rms_difference"].as_f64().unwrap() > 0.0 && report["tokens"].as_u64().unwrap() > 1
    );
    assert_eq!(report["adapter"]["modules"], 14);
    let output = on_tiny(&["adapter", "check", text(&nothing)]);
    assert_fails(&output, 1, "changes nothing");
    assert!(on_tiny(&["adapter", "check", text(&adapter)]).status.success());
}

#[test]
fn convert_there_and_back_is_the_same_adapter() {
    let folder = Folder::new();
    let adapter = folder.adapter("a", 8, 0.5, Some(&fingerprint()));
    let (gguf, back, half) = (folder.path("a.gguf"), folder.path("back"), folder.path("half"));
    let convert = |from: &Path, to: &Path, more: &[&str]| {
        let output = on_tiny(&[&["adapter", "convert", text(from), text(to)], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    };
    convert(&adapter, &gguf, &[]);
    convert(&gguf, &back, &["--to", "peft"]);
    convert(&adapter, &half, &["--to", "gguf", "--dtype", "f16"]);
    let shape = ModelConfig::from_gguf(&Gguf::open(model()).unwrap()).unwrap().base_shape();
    let [first, there, back, half] =
        [&adapter, &gguf, &back, &half].map(|path| Adapter::load(path, &shape).unwrap());
    assert_eq!((&there.modules, &back.modules), (&first.modules, &first.modules));
    assert_eq!(half.modules[0].rank, 4);
    assert_ne!(half.modules, first.modules);
    let named = |adapter: &Adapter| adapter.base_fingerprint == Some(fingerprint());
    assert!(named(&there) && named(&back) && named(&half));
    assert_eq!(serde_json::to_value(there.report.format).unwrap(), "gguf");
    let taken = folder.path("taken");
    std::fs::write(&taken, "mine").unwrap();
    assert_fails(
        &on_tiny(&["adapter", "convert", text(&adapter), text(&taken)]),
        1,
        "a file has that name",
    );
}

/// As adapters were before fingerprints had versions.
#[test]
fn a_base_named_by_another_version_needs_force_and_is_named_again_by_convert() {
    let folder = Folder::new();
    let again = folder.path("again");
    for (name, made_for) in [
        ("before", "c7ad325bd90362d6b94c647ab6036ec8".to_string()),
        ("after", fingerprint().replace("epiphyte.base.1:", "epiphyte.base.2:")),
    ] {
        let adapter = folder.adapter(name, 3, 0.5, Some(&made_for));
        let args = ["generate", "-p", "x", "-n", "2", "--json", "--adapter", text(&adapter)];
        assert_fails(&on_tiny(&args), 1, "fingerprint of another version");
        assert!(on_tiny(&[&args[..], &["--force"]].concat()).status.success());
        let report = json(&on_tiny(&["adapter", "inspect", "--json", text(&adapter)]));
        assert_eq!(report["made_for"], "another_version");
        let convert = ["adapter", "convert", text(&adapter), text(&again)];
        assert!(on_tiny(&convert).status.success());
        assert_fails(&on_tiny(&["adapter", "check", text(&again)]), 1, "of another version");
        assert!(on_tiny(&[&convert[..], &["--force"]].concat()).status.success());
        let named = json(&on_tiny(&["adapter", "inspect", "--json", text(&again)]));
        assert_eq!(
            (&named["made_for"], &named["digest"]),
            (&"this_base".into(), &report["digest"])
        );
        assert!(on_tiny(&["adapter", "check", text(&again)]).status.success());
    }
}

#[test]
fn export_writes_a_model_that_answers_as_base_and_adapters() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 9, 0.5, None), folder.adapter("b", 10, 0.5, None));
    let (out, base) = (folder.path("out.gguf"), folder.path("base.gguf"));
    let half = format!("{}=0.5", text(&b));
    for kind in ["f16", "q8_0"] {
        let report = json(&on_tiny(&[
            "adapter",
            "export",
            text(&a),
            &half,
            text(&out),
            "--type",
            kind,
            "--json",
        ]));
        assert_eq!(
            (&report["dtype"], &report["untied"]),
            (&kind.to_uppercase().into(), &false.into())
        );
        assert_eq!(report["merged"].as_array().map(Vec::len), Some(14));
        assert!(report["rms_error_over_delta"].as_f64().unwrap() > 0.0);
        assert_eq!(report["n_bytes"], std::fs::metadata(&out).unwrap().len());
        let engine = Engine::open(&out, EngineOptions::default()).unwrap();
        assert_ne!(engine.base().fingerprint, fingerprint());
        let args =
            ["generate", "--json", "-n", "4", "--ignore-eos", "-p", "the sea", "-m", text(&out)];
        assert_eq!(
            ids(&json(&run(&args))["ids"]),
            ids(&generate(&[text(&a), &half])["ids"])[..4],
            "{kind}"
        );
    }
    let human = on_tiny(&["adapter", "export", text(&a), text(&out)]);
    assert!(String::from_utf8(human.stdout).unwrap().contains("rounding"));
    std::fs::copy(model(), &base).unwrap();
    let before = std::fs::read(&base).unwrap();
    let onto = ["adapter", "export", text(&a), text(&base), "-m", text(&base)];
    assert_fails(&run(&onto), 2, "base model");
    assert_eq!(std::fs::read(&base).unwrap(), before);
}

#[test]
fn bench_measures_what_adapters_cost() {
    let args = [
        "bench",
        "-p",
        "4",
        "-n",
        "3",
        "--sequences",
        "3",
        "--adapters",
        "2",
        "--rank",
        "5",
        "--json",
    ];
    let report = json(&on_tiny(&args));
    let adapters = &report["random_adapters"];
    assert_eq!(
        (&adapters["adapters"], &adapters["rank"], &adapters["swaps"]),
        (&2.into(), &5.into(), &20.into())
    );
    let of = |key: &str| adapters[key].as_f64().unwrap();
    for key in [
        "swap_seconds_p50",
        "token_seconds_before_swap",
        "token_seconds_after_swap",
        "base_decode_tps",
    ] {
        assert!(of(key) > 0.0, "{key}: {adapters}");
    }
    assert!(
        of("swap_seconds_p50") <= of("swap_seconds_p99")
            && of("file_to_first_token_seconds_max") > 0.0,
        "{adapters}"
    );
    let with = report["decode_tps"].as_f64().unwrap();
    assert!((of("cost_percent") - 100.0 * (of("base_decode_tps") / with - 1.0)).abs() < 1e-6);
    assert_eq!(report["adapters"], serde_json::json!([]));
}

#[test]
fn the_full_hash_sees_what_the_sampled_one_does_not() {
    let folder = Folder::new();
    let changed = folder.path("changed.gguf");
    let inspect = |path: &Path, more: &[&str]| {
        json(&run(&[&["inspect", "--json", text(path)], more].concat()))
    };
    let mut bytes = std::fs::read(model()).unwrap();
    let view = Gguf::open(model())
        .unwrap()
        .require("model.layers.0.mlp.down_proj.weight")
        .unwrap()
        .rows(7, 1)
        .into_owned();
    let at = bytes.windows(view.len()).position(|window| window == view).unwrap();
    bytes[at + 5] ^= 1;
    std::fs::write(&changed, &bytes).unwrap();
    let (old, new) = (inspect(&model(), &["--full-hash"]), inspect(&changed, &["--full-hash"]));
    assert_eq!(old["fingerprint"], fingerprint());
    assert_eq!(new["fingerprint"], old["fingerprint"]);
    assert_ne!(new["full_hash"], old["full_hash"]);
    let tagged =
        |name: &Value| name.as_str().unwrap().strip_prefix("epiphyte.base-full.1:").unwrap().len();
    assert_eq!(tagged(&old["full_hash"]), 64);
    assert_eq!(inspect(&model(), &["--full-hash"])["full_hash"], old["full_hash"]);
    assert!(inspect(&model(), &[])["full_hash"].is_null());
}

#[test]
fn compare_answers_without_and_with_each_adapter() {
    let folder = Folder::new();
    let (a, b) = (folder.adapter("a", 7, 0.4, None), folder.adapter("b", 8, 0.4, None));
    let answers = |paths: &[&Path]| -> Vec<Value> {
        let paths: Vec<&str> = paths.iter().map(|path| text(path)).collect();
        let args =
            [&["adapter", "compare", "-p", "hello", "-n", "6", "--json"], &paths[..]].concat();
        json(&on_tiny(&args))["answers"].as_array().unwrap().clone()
    };
    let both = answers(&[&a, &b]);
    assert_eq!(both.len(), 3);
    assert!(both[0]["adapter"].is_null() && both[1]["adapter"]["path"] == text(&a));
    assert_ne!(both[0]["ids"], both[1]["ids"]);
    assert_ne!(both[1]["ids"], both[2]["ids"]);
    // Each as it is alone: nothing of the one before is left.
    assert_eq!(answers(&[&b])[1]["ids"], both[2]["ids"]);
}
