//! A round from the command line: keys, a first version, three devices, the next version.

use std::path::{Path, PathBuf};

use epiphyte::DType;
use epiphyte::adapter::Adapter;
use epiphyte::base::ModelConfig;
use epiphyte::format::gguf::Gguf;
use serde_json::Value;

use super::adapter::{Folder, model, on_tiny};
use super::{assert_fails, json, run, stderr, text};
use crate::common::Random;

fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The adapter of `from`, with B changed.
fn train(folder: &Folder, from: &Path, name: &str, seed: u64) -> PathBuf {
    let shape = ModelConfig::from_gguf(&Gguf::open(model()).unwrap()).unwrap().base_shape();
    let mut adapter = Adapter::load(from, &shape).unwrap();
    let mut random = Random::new(seed);
    adapter.modules.iter_mut().flat_map(|m| &mut m.b).for_each(|v| *v += random.signed(1e-3));
    let path = folder.path(name);
    adapter.save_peft(&path, DType::F32, &shape).unwrap();
    path
}

#[test]
fn three_devices_make_the_next_version() {
    let folder = Folder::new();
    let path = |name: &str| folder.path(name).to_str().unwrap().to_string();
    let said = json(&run(&["delta", "key", &path("server.pem"), "--json"]));
    std::fs::write(folder.path("server.pub"), said["public_key"].as_str().unwrap()).unwrap();
    let mut devices = String::from("# who takes part\n");
    for i in 0..3 {
        let kind = if i == 0 { "p256" } else { "ed25519" };
        devices += &ok(&["delta", "key", &path(&format!("{i}.pem")), "--kind", kind]);
    }
    std::fs::write(folder.path("devices"), devices).unwrap();
    assert_fails(&run(&["delta", "key", &path("server.pem")]), 1, "server.pem");

    let plain = folder.adapter("plain", 1, 0.01, None);
    let (v1, v2) = (path("v1.safetensors"), path("v2.safetensors"));
    let start = ["delta", "start", text(&plain), &v1, "--id", "demo", "--key", &path("server.pem")];
    let said = json(&on_tiny(&[&start[..], &["--json"]].concat()));
    assert_eq!((&said["adapter"], &said["version"]), (&"demo".into(), &1.into()));
    std::fs::create_dir(folder.path("round")).unwrap();
    for i in 0..3 {
        let trained = train(&folder, Path::new(&v1), &format!("trained{i}"), i);
        let (out, key) = (path(&format!("round/{i}.delta")), path(&format!("{i}.pem")));
        let make = ["delta", "make", &v1, text(&trained), &out, "--key", &key, "--examples", "9"];
        let made = on_tiny(&[&make[..], &["--losses", "2.5", "2.0", "--json"]].concat());
        let said = json(&made);
        let bytes = std::fs::metadata(&out).unwrap().len();
        assert_eq!((&said["bytes"], &said["was_clipped"]), (&bytes.into(), &false.into()));
    }
    let one = path("round/0.delta");
    let said = json(&run(&["delta", "verify", &one, "--trust", &path("devices"), "--json"]));
    assert!(said[0]["name"].as_str().unwrap().starts_with("epiphyte.delta.1:"), "{said}");
    assert_fails(&run(&["delta", "verify", &one, "--trust", &path("server.pub")]), 1, "trusted");
    let report = json(&run(&["delta", "inspect", &one, "--json"]));
    assert_eq!(report["manifest"]["examples"], 8);
    assert_eq!(report["manifest"]["factors"], "B");
    std::fs::write(folder.path("round/3.delta"), b"half an upload").unwrap();

    let (round, key) = (path("round"), path("server.pem"));
    let (page, devices) = (path("report.html"), path("devices"));
    let aggregate = ["aggregate", &round, "--parent", &v1, "--out", &v2, "--key", &key];
    assert_fails(&run(&aggregate[..5]), 2, "--out");
    let few = run(&aggregate);
    assert_eq!(few.status.code(), Some(1));
    assert!(stderr(&few).contains("3 deltas were taken; 10 are needed"), "{}", stderr(&few));
    let enough = ["--min-clients", "3", "--devices", &devices, "--html", &page, "--json"];
    let report = json(&run(&[&aggregate[..], &enough].concat()));
    assert_eq!((report["taken"].as_u64(), report["refused"].as_u64()), (Some(3), Some(1)));
    assert_eq!(report["version"], 2);
    let damaged = |entry: &&Value| entry["file"] == "3.delta";
    let entry = report["entries"].as_array().unwrap().iter().find(damaged).unwrap();
    assert_eq!(entry["refusal"]["why"], "unreadable");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("3.delta") && !html.contains("<script"));

    // In two parts, the same bits.
    let (a, b, again) = (path("a.part"), path("b.part"), path("again.safetensors"));
    for (part, deltas) in [(&a, vec![0]), (&b, vec![1, 2])] {
        let deltas: Vec<_> = deltas.iter().map(|i| path(&format!("round/{i}.delta"))).collect();
        let mut args =
            vec!["aggregate", "--partial", "--parent", &v1, "--out", part, "--key", &key];
        args.extend(deltas.iter().map(String::as_str));
        ok(&args);
    }
    let parts = ["aggregate", &a, &b, "--parent", &v1, "--out", &again, "--key", &key];
    ok(&[&parts[..], &["--min-clients", "3"]].concat());
    let digest = |path: &str| Adapter::load(path, &shape()).unwrap().digest();
    assert_eq!(digest(&again), digest(&v2));

    let (applied, trust) = (path("applied"), path("server.pub"));
    let apply = ["delta", "apply", &v2, &applied, "--id", "demo", "--trust", &trust];
    assert_fails(&on_tiny(&[&apply[..], &["--current", "2"]].concat()), 1, "not above 2");
    let said = json(&on_tiny(&[&apply[..], &["--current", "1", "--json"]].concat()));
    assert_eq!((&said["version"], &said["freeze"]), (&2.into(), &"b".into()));
    let canary = folder.path("canary.jsonl");
    std::fs::write(&canary, "{\"prompt\": \"secret\", \"completion\": \" word\"}\n").unwrap();
    let (tried, canary) = (path("tried"), text(&canary).to_string());
    let again = ["delta", "apply", &v2, &tried, "--id", "demo", "--trust", &trust];
    let with =
        |loss| on_tiny(&[&again[..], &["--canary", &canary, "--canary-loss", loss]].concat());
    let refused = with("0.01");
    assert_fails(&refused, 1, "is allowed");
    assert!(!stderr(&refused).contains("secret") && !folder.path("tried").exists());
    assert!(with("50").status.success());
    assert_eq!(digest(&applied), digest(&v2));
}

fn shape() -> epiphyte::adapter::BaseShape {
    ModelConfig::from_gguf(&Gguf::open(model()).unwrap()).unwrap().base_shape()
}

#[test]
fn privacy_says_what_noise_is_worth() {
    let plan = ["privacy", "--sigma", "1", "--rounds", "100", "--delta", "1e-6", "--json"];
    let of = |clients: &str, per_round: &str| {
        json(&run(&[&plan[..], &["--clients", clients, "--per-round", per_round]].concat()))
    };
    let many = of("10000", "100");
    let epsilon = many["sampled"]["epsilon"].as_f64().unwrap();
    assert!((epsilon / 1.5073894923617364 - 1.0).abs() < 0.01, "{epsilon}");
    assert!(many["not_amplified"]["epsilon"].as_f64().unwrap() > 10.0 * epsilon);
    let few = of("50", "40");
    assert!(few["sampled"]["epsilon"].as_f64().unwrap() > 10.0, "a pilot has no useful epsilon");
    let none = run(&[&plan[..], &["--clients", "5", "--per-round", "6"]].concat());
    assert_fails(&none, 2, "per_round");
}

#[test]
fn a_simulation_goes_by_the_files_that_devices_send() {
    let folder = Folder::new();
    let path = |name: &str| folder.path(name).to_str().unwrap().to_string();
    let line = |i: u32| {
        let label = ["red", "blue", "green"][i as usize % 3];
        format!("{{\"prompt\": \"the {i} and\", \"completion\": \" {label}\"}}\n")
    };
    let lines = |range: std::ops::Range<u32>| range.map(line).collect::<String>();
    let (data, test, plot) = (path("data.jsonl"), path("test.jsonl"), path("plot.svg"));
    std::fs::write(&data, lines(0..48)).unwrap();
    std::fs::write(&test, lines(48..54)).unwrap();
    let simulate = |out: &str, more: &[&str]| {
        let args = ["federate", "simulate", "--out", out, "--rounds", "2", "--local-steps", "2"];
        on_tiny(&[&args[..], &["--seq-len", "32", "--rank", "2", "--lr", "5e-3"], more].concat())
    };
    let spread = ["--data", &data, "--clients", "4", "--alpha", "0.5", "--test", &test];
    let out = path("out");
    let more = [&spread[..], &["--plot", &plot, "--baselines", "--json"]].concat();
    let said = json(&simulate(&out, &more));
    let clients: Vec<u64> =
        said["clients"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!((clients.len(), clients.iter().sum::<u64>()), (4, 48));
    let rounds = said["rounds"].as_array().unwrap();
    assert_eq!(rounds.iter().map(|r| r["factors"].as_str().unwrap()).collect::<String>(), "BA");
    assert!(rounds.iter().all(|round| round["taken"] == 4 && round["score"]["loss"].is_f64()));
    assert_eq!(said["baselines"]["local"].as_array().unwrap().len(), 4);
    assert!(said["baselines"]["central"]["loss"].is_f64());
    assert!(std::fs::read_to_string(&plot).unwrap().contains("exact answers"));
    // The files are those of the other commands.
    let delta = path("out/round-2/device-1.delta");
    assert_eq!(json(&run(&["delta", "inspect", &delta, "--json"]))["manifest"]["factors"], "A");
    let digest = |path: &str| Adapter::load(path, &shape()).unwrap().digest();
    assert_eq!(digest(&path("out/adapter")), digest(&path("out/version-3.safetensors")));
    assert_ne!(
        digest(&path("out/version-2.safetensors")),
        digest(&path("out/version-1.safetensors"))
    );
    assert_fails(&simulate(&out, &spread), 2, "not an empty folder");
    let over = simulate(&path("over"), &[&spread[..], &["--plot", &test]].concat());
    assert_fails(&over, 2, "--plot");
    assert_eq!(std::fs::read_to_string(&test).unwrap(), lines(48..54), "it is as it was");

    // A folder has a file a device; some take part.
    std::fs::create_dir(folder.path("devices")).unwrap();
    for i in 0..3 {
        std::fs::write(folder.path(&format!("devices/{i}.jsonl")), lines(8 * i..8 * i + 8))
            .unwrap();
    }
    let devices = path("devices");
    let some = ["--data", &devices, "--per-round", "2", "--mode", "svd", "--json"];
    let said = json(&simulate(&path("c"), &some));
    assert_eq!(
        (&said["rounds"][0]["taken"], &said["rounds"][1]["factors"]),
        (&2.into(), &"AB".into())
    );
    assert!(said["rounds"][0]["score"].is_null() && said["rounds"][0]["mode_error"].is_f64());
    assert_fails(&simulate(&path("d"), &["--data", &devices, "--clients", "4"]), 2, "3 files");
    let more = ["--data", &devices, "--per-round", "4"];
    assert_fails(&simulate(&path("e"), &more), 2, "`per-round`: 4, but there are 3 devices");

    // A line that can't be used is named as it stands in the file, whoever it would go to.
    let bad = path("bad.jsonl");
    std::fs::write(&bad, lines(0..9) + "{\"prompt\": 1}\n" + &lines(9..12)).unwrap();
    assert_fails(&simulate(&path("f"), &["--data", &bad, "--clients", "4"]), 1, "line 10:");
}
