//! `epiphyte quantize` and `checkpoint`, from outside.

use super::adapter::{Folder, model, on_tiny};
use super::{assert_fails, json, run, stderr, text};

#[test]
fn a_model_goes_to_a_checkpoint_and_back() {
    let folder = Folder::new();
    let (base, checkpoint, out) = (model(), folder.path("checkpoint"), folder.path("out.gguf"));
    let written = json(&run(&["checkpoint", text(&base), text(&checkpoint), "--json"]));
    assert_eq!(written["files"].as_array().unwrap().len(), 4);
    let quantize = ["quantize", text(&checkpoint), text(&out), "--type", "q4_0", "--json"];
    let report = json(&run(&quantize));
    assert!(report["relative_rms"].as_f64().unwrap() > 0.0);
    let tensors = report["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|tensor| tensor["from"] == "BF16" && tensor["to"] == "Q4_0"));
    // Again, over its own file, as a table.
    let again = run(&["quantize", text(&checkpoint), text(&out), "--bits", "9"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let table = String::from_utf8(again.stdout).unwrap();
    assert!(table.contains("blk.0.attn_q.weight") && table.contains("bits a weight"), "{table}");
}

#[test]
fn an_imatrix_is_measured_and_used() {
    let folder = Folder::new();
    let (out, quantized) = (folder.path("imatrix.gguf"), folder.path("out.gguf"));
    let words = folder.path("text.txt");
    std::fs::write(&words, "the sea and the land ".repeat(20)).unwrap();
    let imatrix = |more: &[&str]| {
        let args = ["imatrix", "-f", text(&words), "-o", text(&out), "-c", "16"];
        on_tiny(&[&args[..], more].concat())
    };
    let report = json(&imatrix(&["--chunks", "2", "--json"]));
    assert_eq!((&report["windows"], &report["tokens"]), (&2.into(), &32.into()));
    assert_eq!(report["matrices"], 14);
    // Over its own file.
    let again = imatrix(&[]);
    assert!(again.status.success(), "{}", stderr(&again));
    let base = model();
    let with = ["quantize", text(&base), text(&quantized), "--type", "nf4", "--json"];
    let plain = json(&run(&with));
    let with = json(&run(&[&with[..], &["--imatrix", text(&out)]].concat()));
    assert!(with["without_importance"].as_u64().unwrap() <= 2);
    assert_ne!(with["relative_rms"], plain["relative_rms"]);
    let answer = run(&["generate", "-m", text(&quantized), "-p", "hello", "--max-tokens", "3"]);
    assert!(answer.status.success(), "{}", stderr(&answer));
    let none = on_tiny(&["imatrix", "-f", text(&words), "-o", text(&out), "-c", "0"]);
    assert_fails(&none, 2, "1 token or more");
    std::fs::write(&words, "short").unwrap();
    assert_fails(&imatrix(&[]), 2, "do not fill a window");
    let own = on_tiny(&["imatrix", "-f", text(&words), "-o", text(&words)]);
    assert_fails(&own, 2, "stays as it is");
}

#[test]
fn what_quantize_must_not_do() {
    let folder = Folder::new();
    let (base, out) = (folder.path("base.gguf"), folder.path("out.gguf"));
    std::fs::copy(model(), &base).unwrap();
    let quantize =
        |out: &str, options: &[&str]| run(&[&["quantize", text(&base), out][..], options].concat());
    assert_fails(&quantize(text(&out), &["--type", "IQ2_XS"]), 2, "none of F32");
    assert_fails(&quantize(text(&out), &[]), 2, "--type");
    assert_fails(&quantize(text(&out), &["--bits", "2"]), 2, "too few");
    assert_fails(&quantize(text(&base), &["--type", "F16"]), 2, "stays as it is");
    std::fs::copy(&base, &out).unwrap();
    assert_fails(&quantize(text(&out), &["--type", "F16"]), 1, "`quantize` wrote");
    assert!(quantize(text(&out), &["--type", "F16", "--overwrite"]).status.success());
    std::fs::write(folder.path("note.txt"), "mine").unwrap();
    let into = run(&["checkpoint", text(&base), text(&folder.path(""))]);
    assert_fails(&into, 1, "not a checkpoint's folder");
}
