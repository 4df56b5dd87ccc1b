//! `epiphyte train` and `epiphyte eval` on a tiny model: what they leave behind, and what stops
//! them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{assert_fails, epiphyte, json, run, stderr};
use crate::common::skip::usual;
use crate::common::{Random, golden};

/// A folder with data in it, and a run to be made there.
pub(super) struct Fixture {
    dir: TempDir,
}

impl Fixture {
    /// Prompts with a few answers.
    pub(super) fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        fixture.write(
            "data.jsonl",
            (0..24).map(|i| pair(&format!("the {} in", i % 7), " the and er")),
        );
        fixture
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, name: &str, lines: impl Iterator<Item = Value>) {
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// `epiphyte train` to `out` with a small adapter.
    pub(super) fn train(&self, out: &str, more: &[&str]) -> Command {
        let mut command = bare(self, out);
        command.arg("--json").args(more);
        for default in [["--rank", "4"], ["--seq-len", "48"], ["--lr", "5e-3"]] {
            // An adapter to start from has a rank of its own.
            let given =
                more.contains(&default[0]) || default[0] == "--rank" && more.contains(&"--init");
            if !given {
                command.args(default);
            }
        }
        command
    }

    pub(super) fn trained(&self, out: &str, more: &[&str]) -> Value {
        json(&self.train(out, more).output().unwrap())
    }

    pub(super) fn eval(&self, data: &str, adapter: Option<&str>) -> Value {
        self.eval_with(data, adapter, &[])
    }

    fn eval_with(&self, data: &str, adapter: Option<&str>, more: &[&str]) -> Value {
        let [model, data] = [golden("tiny_llama.gguf"), self.path(data)];
        let mut command = epiphyte(&[
            "eval",
            "-m",
            model.to_str().unwrap(),
            "--json",
            "-d",
            data.to_str().unwrap(),
        ]);
        if let Some(name) = adapter {
            command.arg("--adapter").arg(self.path(name));
        }
        command.args(more);
        json(&command.output().unwrap())
    }

    pub(super) fn adapter(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.path(out).join("adapter_model.safetensors")).unwrap()
    }

    /// Names in a folder, sorted; none without the folder.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    pub(super) fn checkpoints(&self, out: &str) -> Vec<String> {
        self.names(&format!("{out}/checkpoints"))
    }

    /// Whether there is something to go on from.
    fn has_run(&self, out: &str) -> bool {
        self.checkpoints(out)
            .iter()
            .any(|name| name.ends_with(".safetensors") && !name.starts_with('.'))
    }

    /// Files that do not have their name yet.
    fn half_written(&self, out: &str) -> Vec<String> {
        let all = [self.names(out), self.checkpoints(out)].concat();
        all.into_iter().filter(|name| name.ends_with(".tmp")).collect()
    }
}

pub(super) fn pair(prompt: &str, completion: &str) -> Value {
    json!({"prompt": prompt, "completion": completion})
}

pub(super) fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn it_learns_and_leaves_an_adapter_that_answers() {
    let fixture = Fixture::new();
    let [plot, log] = ["loss.svg", "steps.jsonl"].map(|name| fixture.path(name));
    let files = ["--plot", plot.to_str().unwrap(), "--log", log.to_str().unwrap()];
    let recipe = [
        "--steps",
        "30",
        "--batch",
        "2",
        "--lr",
        "1e-2",
        "--validation",
        "3",
        "--checkpoint-every",
        "4",
        "--keep",
        "2",
    ];
    let report = fixture.trained("out", &[&recipe[..], &files].concat());
    assert_eq!(report["end"], "finished");
    assert_eq!((report["steps"].as_u64(), lines(&log)), (Some(30), 30));
    assert_eq!(
        (&report["data"]["records"], &report["validation_data"]["records"]),
        (&json!(24), &json!(3))
    );
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap();
    assert!(number("/loss/last") < 0.3 * number("/loss/first"));
    assert!(number("/validation_loss/best") <= number("/validation_loss/last"));
    assert!(number("/tokens_per_second") > 0.0 && number("/seconds") > 0.0);
    // What was planned, and the few small buffers that are not listed.
    let (peak, planned) = (number("/peak_device_bytes"), number("/plan/total_bytes"));
    assert!(peak >= planned && peak - planned < 65536.0, "{peak} {planned}");
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    assert_eq!(
        fixture.checkpoints("out"),
        ["run.json", "step-28.safetensors", "step-30.safetensors"]
    );
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture.path("out/adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(
        (&config["peft_type"], &config["r"], &config["lora_alpha"]),
        (&json!("LORA"), &json!(4), &json!(16))
    );
    let tensors = fixture.adapter("out");
    let (_, header) = safetensors::SafeTensors::read_metadata(&tensors).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert!(metadata["epiphyte.base_fingerprint"].starts_with("epiphyte.base.1:"));
    assert_eq!(metadata["epiphyte.format"], "epiphyte.adapter.1");
    let (before, after) =
        (fixture.eval("data.jsonl", None), fixture.eval("data.jsonl", Some("out")));
    assert_eq!((&before["exact_match"], &after["exact_match"]), (&json!(0.0), &json!(1.0)));
    assert!(after["loss"].as_f64().unwrap() < 0.3 * before["loss"].as_f64().unwrap());
    // It can be trained further, with what it is made of.
    let further = fixture
        .trained("further", &["--init", fixture.path("out").to_str().unwrap(), "--steps", "2"]);
    assert_eq!(further["options"]["rank"], 4);
    assert!(further["loss"]["first"].as_f64().unwrap() < 2.0 * number("/loss/last"));
}

#[test]
fn texts_and_chats_are_learnt_too() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("data.jsonl"), "the and in the er\n".repeat(20)).unwrap();
    let text = fixture.trained("text", &["--text", "--steps", "3", "--targets", "attention"]);
    assert_eq!(text["options"]["target_modules"], json!(["attention"]));
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let chat = json!({"messages": [message("user", "in"), message("assistant", "the")]});
    fixture.write("data.jsonl", std::iter::repeat_n(chat, 6));
    let recipe = [
        "--epochs",
        "40",
        "--lr",
        "1e-2",
        "--schedule",
        "cosine",
        "--warmup",
        "2",
        "--recompute",
        "none",
    ];
    fixture.trained("chat", &recipe);
    let eval = fixture.eval("data.jsonl", Some("chat"));
    assert_eq!((&eval["answers"], &eval["exact_match"]), (&json!(6), &json!(1.0)));
}

#[test]
fn a_budget_is_kept_and_what_it_costs_is_said() {
    let fixture = Fixture::new();
    let wanted = ["--steps", "2", "--batch", "4"];
    let whole =
        fixture.trained("whole", &[&wanted[..], &["--recompute", "none", "--rows", "4"]].concat());
    let budget = format!("{}B", whole["plan"]["total_bytes"].as_u64().unwrap() * 7 / 10);
    let output = fixture
        .train("less", &[&wanted[..], &["--memory-budget", &budget]].concat())
        .output()
        .unwrap();
    let report = json(&output);
    assert!(report["plan"]["total_bytes"].as_u64() <= report["plan"]["budget_bytes"].as_u64());
    assert!(!report["plan"]["decided"].as_array().unwrap().is_empty());
    let option = |report: &Value, name: &str| report["options"][name].as_u64().unwrap();
    assert!(option(&report, "micro_batch") < option(&whole, "micro_batch"));
    for name in ["batch_size", "gradient_accumulation_steps"] {
        assert_eq!(
            option(&report, name),
            option(&whole, name),
            "what a step is depends on no memory"
        );
    }
    assert!(
        stderr(&output).contains("activations") && stderr(&output).contains("within"),
        "{}",
        stderr(&output)
    );
    // A step is over the same examples, so it starts from the same loss.
    let first = |report: &Value| report["loss"]["first"].as_f64().unwrap();
    assert!((first(&whole) - first(&report)).abs() < 1e-5 * first(&whole));
    assert_fails(
        &fixture.train("none", &["--memory-budget", "300kB"]).output().unwrap(),
        1,
        "are allowed",
    );
    assert!(!fixture.path("none").exists());
}

#[test]
fn plan_says_what_train_takes() {
    let fixture = Fixture::new();
    let shape = ["--rank", "4", "--seq-len", "48", "--batch", "4"];
    let model = golden("tiny_llama.gguf");
    let model = model.to_str().unwrap();
    for budget in [&[][..], &["--memory-budget", "2MB"], &["--memory-budget", "2500kB"]] {
        let asked = [&shape[..], budget].concat();
        let planned =
            json(&run(&[&["plan", "--train", "--json", "-m", model], &asked[..]].concat()));
        let name = format!("out{}", budget.concat());
        let taken = fixture.trained(&name, &[&asked[..], &["--steps", "1"]].concat());
        assert_eq!(planned["total_bytes"], taken["plan"]["total_bytes"], "{budget:?}");
        for name in ["micro_batch", "seq_len", "checkpoint_every"] {
            assert_eq!(planned["training"][name], taken["options"][name], "{name} {budget:?}");
        }
    }
    assert_fails(&run(&["plan", "--rank", "4", "-m", model]), 2, "`rank`");
}

#[test]
fn a_step_is_a_number_of_examples_and_the_run_is_as_long_as_the_data_needs() {
    let fixture = Fixture::new();
    fixture.write("data.jsonl", (0..20).map(|i| pair(&format!("the {} in", i % 10), "er")));
    // 20 examples in steps of 8, 45 times through.
    let model = golden("tiny_llama.gguf");
    let model = model.to_str().unwrap();
    let (data, out) = (fixture.path("data.jsonl"), fixture.path("auto"));
    let arguments =
        ["train", "--json", "-m", model, "-d", data.to_str().unwrap(), "-o", out.to_str().unwrap()];
    let output =
        run(&[&arguments[..], &["--seq-len", "48", "--targets", "v_proj", "--rank", "2"]].concat());
    let report = json(&output);
    assert_eq!(
        (&report["total_steps"], &report["options"]["batch_size"]),
        (&json!(45 * 3), &json!(8))
    );
    assert!(report["options"]["learning_rate"].as_f64().unwrap() > 0.0);
    assert!(stderr(&output).contains("45 passes"), "{}", stderr(&output));
    let first = report["loss"]["first"].as_f64().unwrap();
    assert!(report["loss"]["last"].as_f64().unwrap() < first, "{report}");
}

#[test]
fn the_best_adapter_is_kept_when_validation_turns() {
    let fixture = Fixture::new();
    // What is learnt is wrong there.
    fixture.write("other.jsonl", (0..4).map(|i| pair(&format!("the {i} in"), "zzzz")));
    let other = fixture.path("other.jsonl");
    let recipe = ["--steps", "60", "--evaluate-every", "2", "--patience", "3", "--lr", "2e-2"];
    let report =
        fixture.trained("out", &[&recipe[..], &["--validation", other.to_str().unwrap()]].concat());
    assert_eq!((&report["end"], &report["best_is_kept"]), (&json!("early_stop"), &json!(true)));
    let (best, last) = (&report["validation_loss"]["best"], &report["validation_loss"]["last"]);
    let (best, last) = (best.as_f64().unwrap(), last.as_f64().unwrap());
    assert!(best < last - 0.1, "{best} {last}");
    // A validation counts answers alone.
    let kept =
        fixture.eval_with("other.jsonl", Some("out"), &["--prompt-loss-weight", "0"])["loss"]
            .as_f64()
            .unwrap();
    // Its keys and values may be f16 there.
    assert!((kept - best).abs() < 1e-2, "{kept} {best}");
    // It is over, however often one goes on.
    let adapter = fixture.adapter("out");
    let again = fixture.trained(
        "out",
        &[&recipe[..], &["--validation", other.to_str().unwrap(), "--resume"]].concat(),
    );
    assert_eq!((&again["end"], &again["steps"]), (&report["end"], &report["steps"]));
    assert!(adapter == fixture.adapter("out"));
}

#[test]
fn bad_use_and_bad_data_are_refused_and_touch_nothing() {
    let fixture = Fixture::new();
    let full = fixture.path("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("diary"), "mine").unwrap();
    let cases: [(&str, &[&str], &str); 15] = [
        ("out", &["--lr", "0"], "`learning_rate`"),
        ("out", &["--lr", "nan"], "`learning_rate`"),
        ("out", &["--rank", "65"], "`rank`: 65, but 1 to 64"),
        ("out", &["--rank", "0"], "`rank`"),
        ("out", &["--batch", "0"], "--batch"),
        ("out", &["--seq-len", "1"], "`seq_len`: 1 tokens; this model allows 2 to 256"),
        ("out", &["--seq-len", "257"], "`seq_len`"),
        ("out", &["--prompt-loss-weight", "2"], "`prompt_loss_weight`"),
        ("out", &["--targets", "lm_head"], "`targets`"),
        ("out", &["--epochs", "0"], "--epochs"),
        ("out", &["--epochs", "1", "--steps", "1"], "cannot be used with"),
        ("out", &["--patience", "2"], "--validation"),
        ("out", &["--validation", "24"], "`validation`"),
        ("out", &["--warmup", "120%"], "--warmup"),
        ("full", &[], "`out`"),
    ];
    for (out, more, says) in cases {
        assert_fails(&fixture.train(out, more).output().unwrap(), 2, says);
    }
    assert_fails(&fixture.train("full", &["--resume"]).output().unwrap(), 2, "no run to resume");
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);
    for (data, says) in [
        ("", "holds no examples"),
        ("{\"prompt\": \"a\", \"completion\": \" b\"}\nsecret words\n", "line 2: not JSON"),
        ("{\"prompt\": \"a\"}\n", "line 1: `completion` is missing"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n", "line 1"),
    ] {
        std::fs::write(fixture.path("data.jsonl"), data).unwrap();
        let output = fixture.train("out", &[]).output().unwrap();
        assert_fails(&output, 1, says);
        assert!(!stderr(&output).contains("secret"));
    }
    // No token of the answer is left after cutting.
    fixture.write("data.jsonl", [pair(&"the ".repeat(100), " and")].into_iter());
    assert_fails(&fixture.train("out", &[]).output().unwrap(), 1, "none has an answer left");
    assert!(!fixture.path("out").exists());
    let lines = [pair("the", " and"), json!({"nothing": 0}), pair("in", " er")];
    fixture.write("data.jsonl", lines.into_iter());
    let report = fixture.trained("out", &["--skip-bad"]);
    assert_eq!((&report["data"]["examples"], &report["data"]["skipped"]), (&json!(2), &json!(1)));
}

/// `epiphyte train` to `out`.
fn bare(fixture: &Fixture, out: &str) -> Command {
    let [model, data, out] =
        [golden("tiny_llama.gguf"), fixture.path("data.jsonl"), fixture.path(out)];
    let mut command =
        epiphyte(&["train", "-m", model.to_str().unwrap(), "-d", data.to_str().unwrap()]);
    command.args(["-o", out.to_str().unwrap()]);
    command
}

#[test]
fn a_device_that_computes_gradients_wrong_is_not_trained_on() {
    let (fixture, cache) = (Fixture::new(), tempfile::tempdir().unwrap());
    let train = |out: &str| {
        fixture.train(out, &["--steps", "1"]).env("EPIPHYTE_CACHE", cache.path()).output().unwrap()
    };
    json(&train("good"));
    let mut files = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
    let path = files.find(|path| path.to_string_lossy().ends_with(".selftest.json")).unwrap();
    let mut report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(std::mem::replace(&mut report["trains"], json!(false)), json!(true));
    std::fs::write(&path, report.to_string()).unwrap();
    assert_fails(&train("bad"), 1, "gradients wrong");
    assert!(!fixture.path("bad").exists());
}

#[test]
fn plan_tells_of_a_run_by_the_defaults_of_train() {
    let fixture = Fixture::new();
    let report = fixture.trained("out", &["--steps", "1"]);
    let model = golden("tiny_llama.gguf");
    let args = [
        "plan",
        "--train",
        "-m",
        model.to_str().unwrap(),
        "--rank",
        "4",
        "--seq-len",
        "48",
        "--json",
    ];
    let plan = json(&run(&args));
    for class in ["weights", "adapter", "gradients", "optimizer_states"] {
        let of = |classes: &Value| {
            classes.as_array().unwrap().iter().find(|entry| entry["class"] == class).cloned()
        };
        assert_eq!(of(&plan["classes"]).unwrap(), of(&report["plan"]["classes"]).unwrap());
    }
    assert_eq!(plan["training"]["checkpoint_every"], report["options"]["checkpoint_every"]);
    assert_eq!(plan["trainable_parameters"], report["trainable_parameters"]);
    let targets = |of: &[&str]| {
        json(&run(&[&args[..], of].concat()))["training"]["targets"].as_array().unwrap().len()
    };
    assert_eq!([targets(&[]), targets(&["--targets", "attention"])], [7, 4]);
    let kept = json(&run(&[&args[..], &["--recompute", "none"]].concat()));
    assert!(kept["training"]["checkpoint_every"].is_null());
}

#[test]
fn a_loss_that_is_no_number_leaves_the_last_good_adapter() {
    let fixture = Fixture::new();
    // Each step makes the factors a million times as large.
    let recipe = [
        "--steps",
        "50",
        "--lr",
        "1e-3",
        "--weight-decay",
        "1e9",
        "--warmup",
        "0",
        "--checkpoint-every",
        "1",
    ];
    let output = fixture.train("out", &recipe).output().unwrap();
    assert_fails(&output, 1, "not a number");
    assert!(stderr(&output).contains("the last good one"), "{}", stderr(&output));
    let tensors = fixture.adapter("out");
    let tensors = safetensors::SafeTensors::deserialize(&tensors).unwrap().tensors();
    let values = tensors.iter().flat_map(|(_, tensor)| tensor.data().as_chunks::<4>().0);
    assert!(
        values.clone().count() > 0
            && values.map(|bytes| f32::from_le_bytes(*bytes)).all(f32::is_finite)
    );
    // Of no good step there is no adapter: that of before the first adds nothing.
    let output =
        fixture.train("none", &["--steps", "5", "--lr", "1e30", "--warmup", "0"]).output().unwrap();
    assert_fails(&output, 1, "no step was good, so no adapter was written");
    assert!(!fixture.path("none/adapter_config.json").exists());
}

/// Waits until the run has done `steps`, or is over.
pub(super) fn wait_for(child: &mut Child, log: &Path, steps: usize) {
    let start = Instant::now();
    while lines(log) < steps && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no step is done");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The report of a run that was asked to stop.
pub(super) fn interrupted(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(130), "{}", stderr(output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["end"], "interrupted");
    report
}

pub(super) const RECIPE: [&str; 8] =
    ["--steps", "24", "--batch", "2", "--checkpoint-every", "3", "--validation", "4"];

#[test]
fn ctrl_c_ends_a_run_that_goes_on_to_the_same_adapter() {
    let fixture = Fixture::new();
    fixture.trained("whole", &RECIPE);
    let mut child = fixture
        .train("out", &RECIPE)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&mut child, &fixture.path("out/checkpoints/steps.jsonl"), 4);
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let report = interrupted(&child.wait_with_output().unwrap());
    let steps = report["steps"].as_u64().unwrap();
    assert!((4..24).contains(&steps), "{steps}");
    assert!(fixture.checkpoints("out").contains(&format!("step-{steps}.safetensors")));
    assert!(fixture.path("out/adapter_config.json").exists());
    // What a killed run leaves.
    let left = ["out/.adapter_config.json.1.0.tmp", "out/checkpoints/.step-9.safetensors.1.0.tmp"];
    left.iter().for_each(|name| std::fs::write(fixture.path(name), "{").unwrap());
    let resumed = fixture.trained("out", &[&RECIPE[..], &["--resume"]].concat());
    assert_eq!((&resumed["resumed_from"], &resumed["steps"]), (&json!(steps), &json!(24)));
    assert!(fixture.adapter("whole") == fixture.adapter("out"));
    assert_eq!(fixture.half_written("out"), [""; 0]);
    assert_eq!(lines(&fixture.path("out/checkpoints/steps.jsonl")), 24);
    // With other settings it is another run.
    let other = fixture
        .train("out", &[&RECIPE[..], &["--resume", "--lr", "1e-3"]].concat())
        .output()
        .unwrap();
    assert_fails(&other, 1, "other settings");
    assert!(fixture.adapter("whole") == fixture.adapter("out"));
}

/// Kills at random moments, `EPIPHYTE_KILLS` times (3), drawn from `EPIPHYTE_KILL_SEED` (5).
#[test]
fn a_killed_run_goes_on_to_the_same_adapter() {
    let kills = usual("EPIPHYTE_KILLS", 3, 50) as u32;
    let seed = std::env::var("EPIPHYTE_KILL_SEED").ok().and_then(|value| value.parse().ok());
    let fixture = Fixture::new();
    let recipe =
        [&RECIPE[..4], &["--checkpoint-every", "1", "--validation", "4", "--patience", "9"]]
            .concat();
    fixture.trained("whole", &recipe);
    let (mut random, mut killed, mut runs, mut resumed) = (Random::new(seed.unwrap_or(5)), 0, 0, 0);
    let (mut writing, mut steps) = (0, BTreeSet::new());
    while killed < kills {
        runs += 1;
        let out = format!("out{runs}");
        // Up to three times in a run.
        for _ in 0..3.min(kills - killed) {
            let more = if fixture.has_run(&out) { &["--resume"][..] } else { &[] };
            let mut child = fixture.train(&out, &[&recipe[..], more].concat());
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Some steps on, or in a start; then at any point of what is going on.
            let log = fixture.path(&out).join("checkpoints/steps.jsonl");
            wait_for(&mut child, &log, lines(&log) + random.below(8) as usize);
            std::thread::sleep(Duration::from_millis(u64::from(random.below(60))));
            child.kill().unwrap();
            killed += u32::from(child.wait().unwrap().code().is_none());
            writing += u32::from(!fixture.half_written(&out).is_empty());
            steps.insert(lines(&log));
        }
        let more = if fixture.has_run(&out) { &["--resume"][..] } else { &[] };
        let report = fixture.trained(&out, &[&recipe[..], more].concat());
        resumed += u32::from(report["resumed_from"].as_u64().is_some_and(|step| step > 0));
        assert!(fixture.adapter("whole") == fixture.adapter(&out), "{report}");
        assert_eq!(fixture.half_written(&out), [""; 0]);
    }
    println!(
        "{killed} kills in {runs} runs, {writing} of them while a file was written, after \
        {steps:?} steps in the log"
    );
    assert!(resumed > 0);
}

#[test]
fn a_full_disk_leaves_the_checkpoints_that_are_there() {
    let fixture = Fixture::new();
    let recipe = ["--steps", "8", "--checkpoint-every", "2", "--keep", "9"];
    fixture.trained("out", &recipe);
    let whole = fixture.adapter("out");
    let path = |step: u64| fixture.path(&format!("out/checkpoints/step-{step}.safetensors"));
    [6, 8].iter().for_each(|&step| std::fs::remove_file(path(step)).unwrap());
    let before: Vec<_> = [2, 4].iter().map(|&step| std::fs::read(path(step)).unwrap()).collect();
    // Files may have 64 blocks of 512 bytes; a checkpoint needs more.
    let resume = fixture.train("out", &[&recipe[..], &["--resume"]].concat());
    let limited = |limit: &str| -> Output {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\""), "sh"]);
        shell
            .arg(resume.get_program())
            .args(resume.get_args())
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    };
    assert!(before[0].len() > 64 * 1024);
    assert_fails(&limited("64"), 1, "step-6.safetensors");
    let after: Vec<_> = [2, 4].iter().map(|&step| std::fs::read(path(step)).unwrap()).collect();
    assert!(before == after && !path(6).exists());
    assert_eq!(fixture.half_written("out"), [""; 0]);
    assert!(whole == fixture.adapter("out"));
    assert_eq!(json(&limited("unlimited"))["resumed_from"], 4);
    assert!(whole == fixture.adapter("out"));
}

#[test]
fn eval_refuses_what_is_no_adapter_for_the_base() {
    let fixture = Fixture::new();
    fixture.trained("out", &["--steps", "1"]);
    let [data, out, nothing] = ["data.jsonl", "out", "nothing"].map(|name| fixture.path(name));
    let of = |model: &str, adapter: &Path| {
        let model = golden(model);
        let args = ["eval", "-m", model.to_str().unwrap(), "-d", data.to_str().unwrap()];
        run(&[&args[..], &["--adapter", adapter.to_str().unwrap()]].concat())
    };
    assert!(of("tiny_llama.gguf", &out).status.success());
    assert_fails(&of("tiny_llama.gguf", &nothing), 1, "nothing");
    assert_eq!(of("tiny_llama_llama3.gguf", &out).status.code(), Some(1));
}

#[test]
fn data_comes_from_standard_input() {
    let fixture = Fixture::new();
    let data = || std::fs::File::open(fixture.path("data.jsonl")).unwrap();
    let model = golden("tiny_llama.gguf");
    let out = fixture.path("o");
    let args = [
        "train",
        "-m",
        model.to_str().unwrap(),
        "-d",
        "-",
        "--steps",
        "1",
        "--rank",
        "4",
        "--json",
        "--out",
        out.to_str().unwrap(),
    ];
    assert_eq!(json(&epiphyte(&args).stdin(data()).output().unwrap())["data"]["records"], 24);
    let eval = ["eval", "-m", model.to_str().unwrap(), "-d", "-", "-n", "1", "--json"];
    assert_eq!(json(&epiphyte(&eval).stdin(data()).output().unwrap())["examples"], 24);
}
