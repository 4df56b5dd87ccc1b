//! What a command writes: never over what it reads, over another output, or over something of
//! another kind.

use std::path::Path;
use std::process::Stdio;

use super::adapter::{Folder, model, on_tiny};
use super::{assert_fails, epiphyte, run, stderr, text};

/// Runs `args`, which must be refused with `code`, `says` it, and leave `file` as it was.
fn assert_keeps(file: &Path, args: &[&str], code: i32, says: &str) {
    let before = std::fs::read(file).unwrap();
    assert_fails(&run(args), code, says);
    assert!(std::fs::read(file).unwrap() == before, "{file:?} was changed by {args:?}");
}

#[test]
fn an_output_is_never_an_input() {
    let folder = Folder::new();
    let (adapter, base) = (folder.adapter("a", 1, 0.5, None), folder.path("base.gguf"));
    std::fs::copy(model(), &base).unwrap();
    std::fs::create_dir(folder.path("sub")).unwrap();
    let mut names = vec![base.clone(), folder.path("sub/../base.gguf")];
    #[cfg(unix)]
    {
        let (soft, hard) = (folder.path("soft.gguf"), folder.path("hard.gguf"));
        std::os::unix::fs::symlink(&base, &soft).unwrap();
        std::fs::hard_link(&base, &hard).unwrap();
        names.extend([soft, hard]);
    }
    for out in &names {
        let convert = ["adapter", "convert", text(&adapter), text(out), "-m", text(&base)];
        assert_keeps(&base, &convert, 2, "`OUT`: ");
        // Even when told to replace what is there.
        let export =
            ["adapter", "export", text(&adapter), text(out), "-m", text(&base), "--overwrite"];
        assert_keeps(&base, &export, 2, "the base model that `--model` names");
    }
    // An adapter's folder, and a file in it.
    let tensors = adapter.join("adapter_model.safetensors");
    for out in [&adapter, &tensors] {
        let convert =
            ["adapter", "convert", text(&adapter), text(out), "--to", "peft", "-m", text(&base)];
        assert_keeps(&tensors, &convert, 2, "the adapter that `PATH` names");
        let export = ["adapter", "export", text(&adapter), text(out), "-m", text(&base)];
        assert_keeps(&tensors, &export, 2, "the adapter that `PATH` names");
    }
    let inside = ["adapter", "convert", text(&tensors), text(&adapter), "-m", text(&base)];
    assert_keeps(&tensors, &inside, 2, "the adapter that `PATH` names");
}

#[test]
fn every_shard_of_the_base_is_an_input() {
    let folder = Folder::new();
    let adapter = folder.adapter("a", 1, 0.5, None);
    let [first, second] = [1, 2].map(|no| folder.path(&format!("m-0000{no}-of-00002.gguf")));
    for shard in [&first, &second] {
        std::fs::copy(model(), shard).unwrap();
    }
    let convert =
        ["adapter", "convert", text(&adapter), text(&second), "-m", text(&first), "--overwrite"];
    assert_keeps(&second, &convert, 2, "`--model`");
}

#[test]
fn a_file_of_another_kind_is_not_replaced() {
    let folder = Folder::new();
    let [a, b] = [1, 2].map(|seed| folder.adapter(&format!("peft{seed}"), seed, 0.5, None));
    let [first, second, merged] = ["a.gguf", "b.gguf", "m.gguf"].map(|name| folder.path(name));
    let base = model();
    let base = ["-m", text(&base)];
    for (from, to) in [(&a, &first), (&b, &second), (&b, &second)] {
        assert!(
            on_tiny(&["adapter", "convert", text(from), text(to)]).status.success(),
            "an adapter is replaced"
        );
    }
    // The name of the new file was forgotten, so it is the last adapter's.
    let forgotten = [&["adapter", "export", text(&first), text(&second)], &base[..]].concat();
    assert_keeps(&second, &forgotten, 1, "not a merged model");
    assert!(on_tiny(&["adapter", "export", text(&first), text(&merged)]).status.success());
    assert!(
        on_tiny(&["adapter", "export", text(&second), text(&merged)]).status.success(),
        "a merged one is replaced"
    );
    let onto_merged = [&["adapter", "convert", text(&a), text(&merged)], &base[..]].concat();
    assert_keeps(&merged, &onto_merged, 1, "not an adapter in GGUF");
    let notes = folder.path("notes.gguf");
    std::fs::write(&notes, "mine").unwrap();
    for command in ["convert", "export"] {
        let args = ["adapter", command, text(&a), text(&notes)];
        assert_keeps(&notes, &[&args, &base[..]].concat(), 1, "--overwrite");
        let overwritten = on_tiny(&[&args, &["--overwrite"][..]].concat());
        assert!(overwritten.status.success(), "{}", stderr(&overwritten));
        std::fs::write(&notes, "mine").unwrap();
    }
    // Nothing is lost with an empty file.
    std::fs::write(&notes, "").unwrap();
    assert!(on_tiny(&["adapter", "export", text(&a), text(&notes)]).status.success());
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_written_to_and_stay() {
    use std::os::unix::fs::FileTypeExt;
    let folder = Folder::new();
    let (adapter, wanted, pipe) =
        (folder.adapter("a", 1, 0.5, None), folder.path("a.gguf"), folder.path("pipe"));
    let convert = |out: &str| {
        let model = model();
        let mut command = epiphyte(&[
            "adapter",
            "convert",
            text(&adapter),
            out,
            "--to",
            "gguf",
            "-m",
            text(&model),
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    assert!(convert(text(&wanted)).status().unwrap().success());
    let bytes = std::fs::read(&wanted).unwrap();
    assert!(convert("/dev/null").status().unwrap().success());
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());

    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    assert!(convert(text(&pipe)).status().unwrap().success());
    assert!(reader.join().unwrap() == bytes);
    assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());

    let output = convert("/dev/stdout").output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(&bytes), "{}", stderr(&output));
    assert!(Path::new("/dev/stdout").is_symlink());
}

#[cfg(unix)]
#[test]
fn steps_are_logged_to_a_pipe() {
    let folder = Folder::new();
    let (data, out, model) = (folder.path("data.jsonl"), folder.path("out"), model());
    std::fs::write(&data, "{\"text\": \"the sea was calm and the wind was cold\"}\n").unwrap();
    let args =
        ["train", "-m", text(&model), "--data", text(&data), "--out", text(&out), "--steps", "1"];
    let output = run(&[&args[..], &["--seq-len", "32", "--log", "/dev/stdout"]].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.starts_with("{\"step\":1,"),
        "{stdout} {}",
        stderr(&output)
    );
}
