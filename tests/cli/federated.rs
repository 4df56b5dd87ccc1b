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
    assert_eq!(said["version"], 2);
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
