//! Runs of `epiphyte train` in their folder: one at a time, stopped, gone on with, made longer, and
//! what they leave.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use epiphyte::adapter::Adapter;
use epiphyte::base::ModelConfig;
use epiphyte::dtype::DType;
use epiphyte::format::gguf::Gguf;
use serde_json::{Value, json};

use super::train::{Fixture, RECIPE, interrupted, lines, pair, wait_for};
use super::{assert_fails, epiphyte, json, stderr};
use crate::common::golden;

const LOG: &str = "out/checkpoints/steps.jsonl";

impl Fixture {
    fn spawn(&self, out: &str, more: &[&str]) -> Child {
        self.train(out, more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The error of a run that is refused.
    fn refused(&self, out: &str, more: &[&str], code: i32, says: &[&str]) {
        let output = self.train(out, more).output().unwrap();
        for says in says {
            assert_fails(&output, code, says);
        }
    }

    /// The steps in the log.
    fn steps(&self, log: &str) -> Vec<u64> {
        let text = std::fs::read_to_string(self.path(log)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect()
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_folder_takes_one_run_at_a_time() {
    let fixture = Fixture::new();
    let long = ["--steps", "100000", "--checkpoint-every", "3"];
    let mut child = fixture.spawn("out", &long);
    wait_for(&mut child, &fixture.path(LOG), 4);
    std::os::unix::fs::symlink(fixture.path("out"), fixture.path("link")).unwrap();
    let first = format!("process {}", child.id());
    for (out, more) in
        [("out", &long[..]), ("out", &["--resume"]), ("link", &["--resume"]), ("./out/../out", &[])]
    {
        fixture.refused(out, more, 2, &["`out`", &first, "ago", "another folder"]);
    }
    // Another folder, but the same log.
    let log = fixture.path(LOG);
    fixture.refused(
        "other",
        &["--steps", "1", "--log", log.to_str().unwrap()],
        1,
        &["another run is writing"],
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let steps = (lines(&log) + 2).to_string();
    assert_eq!(fixture.trained("out", &["--resume", "--steps", &steps])["end"], "finished");
    assert!(!fixture.path("out/.lock").exists());
}

#[test]
fn of_two_runs_that_start_together_one_is_refused() {
    let fixture = Fixture::new();
    let children = [0, 1].map(|_| fixture.spawn("out", &["--steps", "40"]));
    let mut codes = children.map(|child| child.wait_with_output().unwrap().status.code());
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(2)]);
    assert_eq!(fixture.steps(LOG), (1..=40).collect::<Vec<_>>());
}

#[cfg(unix)]
#[test]
fn a_polite_stop_saves_whatever_asks_for_it() {
    let fixture = Fixture::new();
    for (name, out) in [("-TERM", "term"), ("-HUP", "hup")] {
        let mut child = fixture.spawn(out, &["--steps", "100000"]);
        wait_for(&mut child, &fixture.path(&format!("{out}/checkpoints/steps.jsonl")), 3);
        signal(&child, name);
        let steps = interrupted(&child.wait_with_output().unwrap())["steps"].as_u64().unwrap();
        assert!(
            steps >= 3 && fixture.checkpoints(out).contains(&format!("step-{steps}.safetensors"))
        );
    }
}

#[cfg(unix)]
#[test]
fn there_is_no_adapter_before_a_step() {
    let fixture = Fixture::new();
    let recipe = ["--steps", "20", "--batch", "24", "--accumulate", "400"];
    let child = fixture.spawn("out", &recipe);
    let start = Instant::now();
    while !fixture.path("out/checkpoints/step-0.safetensors").exists() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(interrupted(&output)["steps"], 0);
    assert!(!fixture.path("out/adapter_config.json").exists());
    // And for people.
    let mut command = fixture.train("out", &[&recipe[..], &["--resume"]].concat());
    let args: Vec<_> =
        command.get_args().filter(|arg| *arg != "--json").map(|arg| arg.to_os_string()).collect();
    command = epiphyte(&[]);
    let child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("adapter so far"));
}

#[test]
fn a_run_that_is_over_leaves_no_checkpoints_unless_they_are_asked_for() {
    let fixture = Fixture::new();
    let recipe = ["--steps", "6", "--checkpoint-every", "2"];
    fixture.trained("out", &recipe);
    assert_eq!(fixture.checkpoints("out"), ["end.safetensors", "run.json", "steps.jsonl"]);
    assert!(
        std::fs::metadata(fixture.path("out/checkpoints/end.safetensors")).unwrap().len() < 4096
    );
    fixture.trained("kept", &[&recipe[..], &["--keep", "1"]].concat());
    assert_eq!(fixture.checkpoints("kept"), ["run.json", "step-6.safetensors", "steps.jsonl"]);
    // Going on with what is over changes nothing.
    let adapter = fixture.adapter("out");
    let again = fixture.trained("out", &[&recipe[..], &["--resume"]].concat());
    assert_eq!(
        (&again["resumed_from"], &again["steps"], &again["end"]),
        (&json!(6), &json!(6), &json!("finished"))
    );
    assert!(adapter == fixture.adapter("out"));
}

#[test]
fn a_run_that_is_over_can_be_made_longer() {
    let fixture = Fixture::new();
    let constant = ["--schedule", "constant", "--warmup", "2"];
    let of = |more: &[&'static str]| [&constant[..], more].concat();
    fixture.trained("whole", &of(&["--steps", "9"]));
    fixture.trained("out", &of(&["--steps", "5", "--keep", "1"]));
    let longer = fixture.trained("out", &of(&["--steps", "9", "--resume"]));
    assert_eq!((&longer["resumed_from"], &longer["steps"]), (&json!(5), &json!(9)));
    assert!(
        fixture.adapter("whole") == fixture.adapter("out"),
        "at a constant rate it is the longer run, bit for bit"
    );
    assert_eq!(fixture.steps(LOG), (1..=9).collect::<Vec<_>>());
    fixture.refused(
        "out",
        &of(&["--steps", "8", "--resume"]),
        2,
        &["`steps`: 8 in all, but 9 are done"],
    );
    // From the adapter alone, with another schedule, by epochs, and cut off in between.
    fixture.trained("few", &["--epochs", "2"]);
    let output = fixture.train("few", &["--epochs", "4", "--resume"]).output().unwrap();
    let (report, says) = (json(&output), stderr(&output));
    assert_eq!((&report["resumed_from"], &report["steps"]), (&json!(6), &json!(12)));
    for words in ["after step 6 of 12", "a run of 12 steps", "`--keep`"] {
        assert!(says.contains(words), "{says}");
    }
    let loss = |report: &Value, which: &str| report["loss"][which].as_f64().unwrap();
    assert!(loss(&report, "last") < 0.9 * loss(&report, "first"), "{report}");
    assert_eq!(fixture.steps("few/checkpoints/steps.jsonl"), (1..=12).collect::<Vec<_>>());
    // Without a length it is the one that it had last.
    assert_eq!(fixture.trained("few", &["--resume"])["steps"], 12);
}

#[test]
fn going_on_says_what_is_not_as_it_was() {
    let fixture = Fixture::new();
    fixture.refused("nowhere", &["--resume"], 2, &["nowhere is not there", "no run to resume"]);
    std::fs::create_dir(fixture.path("empty")).unwrap();
    fixture.refused("empty", &["--resume"], 2, &["empty holds no run to resume"]);
    assert!(
        !fixture.path("nowhere").exists()
            && std::fs::read_dir(fixture.path("empty")).unwrap().next().is_none()
    );
    fixture.trained("out", &RECIPE);
    let with = |more: &[&'static str]| [&RECIPE[..], &["--resume"], more].concat();
    let differs = [
        "other settings",
        "`rank` 4, not 8",
        "(--lr) 0.005, not 0.001",
        "(--schedule) linear, not cosine",
    ];
    fixture.refused(
        "out",
        &with(&["--rank", "8", "--lr", "1e-3", "--schedule", "cosine"]),
        1,
        &differs,
    );
    let weight = ["other examples", "--prompt-loss-weight 0.1, not 0.5"];
    fixture.refused("out", &with(&["--prompt-loss-weight", "0.5"]), 1, &weight);
    let recipe = [&RECIPE[..6], &["--resume", "--validation", "5"]].concat();
    fixture.refused("out", &recipe, 1, &["--validation 4, not 5"]);
    // What is left out is as it was.
    assert_eq!(
        fixture.trained("out", &[&RECIPE[2..6], &["--resume"]].concat())["validation_data"]["records"],
        4
    );
    fixture.write("data.jsonl", (0..25).map(|i| pair(&format!("the {} in", i % 7), " the and er")));
    fixture.refused("out", &with(&[]), 1, &["other examples", "records in the file 24, not 25"]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_serves() {
    let fixture = Fixture::new();
    let recipe = ["--steps", "6", "--checkpoint-every", "2", "--keep", "9"];
    fixture.trained("out", &recipe);
    let whole = fixture.adapter("out");
    let damage = |step: u64, cut: bool| {
        let path = fixture.path(&format!("out/checkpoints/step-{step}.safetensors"));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        // A number that is one all the same.
        bytes[middle] ^= 1;
        bytes.truncate(if cut { middle } else { bytes.len() });
        std::fs::write(path, bytes).unwrap();
    };
    damage(6, true);
    damage(4, false);
    let output = fixture.train("out", &[&recipe[..], &["--resume"]].concat()).output().unwrap();
    assert_eq!(json(&output)["resumed_from"], 2);
    let says = stderr(&output);
    assert!(
        says.contains("step-6.safetensors") && says.contains("step-4.safetensors: damaged"),
        "{says}"
    );
    assert!(whole == fixture.adapter("out"));
    (0..=6).step_by(2).for_each(|step| damage(step, true));
    fixture.refused("out", &[&recipe[..], &["--resume"]].concat(), 1, &["step-6.safetensors"]);
    assert!(whole == fixture.adapter("out"));
}

/// Not passed over as if it were damaged or not there.
#[test]
fn files_of_a_later_version_are_refused_by_that_name() {
    let fixture = Fixture::new();
    let recipe = ["--steps", "4", "--checkpoint-every", "2", "--keep", "9"];
    fixture.trained("out", &recipe);
    for (file, format, later) in [
        ("run.json", "epiphyte.run.2", "epiphyte.run.3"),
        ("step-4.safetensors", "epiphyte.checkpoint.3", "epiphyte.checkpoint.4"),
    ] {
        let path = fixture.path("out/checkpoints").join(file);
        let whole = std::fs::read(&path).unwrap();
        let at = whole.windows(format.len()).rposition(|part| part == format.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + later.len()].copy_from_slice(later.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let says = [file, later, format, "update Epiphyte"];
        fixture.refused("out", &[&recipe[..], &["--resume"]].concat(), 1, &says);
        std::fs::write(&path, whole).unwrap();
    }
    fixture.trained("out", &[&recipe[..], &["--resume"]].concat());
}

#[test]
fn a_log_has_each_step_once() {
    let fixture = Fixture::new();
    let recipe = ["--steps", "6", "--checkpoint-every", "2", "--keep", "9"];
    fixture.trained("out", &recipe);
    for step in [4, 6] {
        std::fs::remove_file(fixture.path(&format!("out/checkpoints/step-{step}.safetensors")))
            .unwrap();
    }
    // As a run leaves it that was killed twice after its third step.
    let log = std::fs::read_to_string(fixture.path(LOG)).unwrap();
    let line = |step: usize| log.lines().nth(step - 1).unwrap();
    let killed =
        [1, 1, 2, 3, 3].map(|step| format!("{}\n", line(step))).concat() + "{\"step\":4,\"ep";
    std::fs::write(fixture.path(LOG), killed).unwrap();
    fixture.trained("out", &[&recipe[..], &["--resume"]].concat());
    assert_eq!(fixture.steps(LOG), (1..=6).collect::<Vec<_>>());
    // A file that is no log is not written to, whole lines or not.
    for diary in ["mine", "mine\n"] {
        std::fs::write(fixture.path("diary"), diary).unwrap();
        fixture.refused(
            "other",
            &["--steps", "1", "--log", fixture.path("diary").to_str().unwrap()],
            1,
            &["diary"],
        );
        assert_eq!(std::fs::read_to_string(fixture.path("diary")).unwrap(), diary);
    }
}

#[test]
fn log_and_picture_may_lie_beside_the_adapter() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("out")).unwrap();
    let [log, plot, png] =
        ["out/log.jsonl", "out/loss.svg", "out/loss.png"].map(|name| fixture.path(name));
    let files = ["--log", log.to_str().unwrap(), "--plot", plot.to_str().unwrap()];
    let report = fixture.trained("out", &[&files[..], &["--steps", "1", "--warmup", "0"]].concat());
    assert_eq!((lines(&log), &report["warnings"]), (1, &json!(["too_few_steps"])));
    assert!(std::fs::read_to_string(plot).unwrap().contains("<circle"), "one step is a point");
    assert!(fixture.path("out/adapter_config.json").exists());
    fixture.refused("png", &["--plot", png.to_str().unwrap()], 2, &["`plot`", ".svg"]);
    let both = fixture.path("both.svg");
    let both = both.to_str().unwrap();
    fixture.refused("same", &["--plot", both, "--log", both], 2, &["also what `--log` writes"]);
}

#[test]
fn an_adapter_of_another_base_is_a_start_only_by_force() {
    let fixture = Fixture::new();
    fixture.trained("first", &["--steps", "1", "--warmup", "0"]);
    let shape = ModelConfig::from_gguf(&Gguf::open(golden("tiny_llama.gguf")).unwrap())
        .unwrap()
        .base_shape();
    let mut adapter = Adapter::load(fixture.path("first"), &shape).unwrap();
    adapter.base_fingerprint = Some("0123".into());
    adapter.save_peft(fixture.path("other"), DType::F32, &shape).unwrap();
    let init = fixture.path("other");
    let train = |out: &str, more: &[&str]| {
        let start = ["--steps", "1", "--warmup", "0", "--init", init.to_str().unwrap()];
        fixture.train(out, &[&start[..], more].concat()).output().unwrap()
    };
    assert_fails(&train("no", &[]), 1, "made for base model 0123");
    let forced = train("yes", &["--force"]);
    assert_eq!(json(&forced)["options"]["rank"], 4);
    assert!(stderr(&forced).contains("warning: --init was made for"), "{}", stderr(&forced));
}
