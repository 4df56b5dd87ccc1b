//! `epiphyte quantize` and `checkpoint`, from outside.

use super::adapter::{Folder, model};
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
fn what_quantize_must_not_do() {
    let folder = Folder::new();
    let (base, out) = (folder.path("base.gguf"), folder.path("out.gguf"));
    std::fs::copy(model(), &base).unwrap();
    let quantize =
        |out: &str, options: &[&str]| run(&[&["quantize", text(&base), out][..], options].concat());
    assert_fails(&quantize(text(&out), &["--type", "Q3_K"]), 2, "none of F32");
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
