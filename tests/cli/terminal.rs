//! What a terminal, a pager and a package see: streams that go away, signals, colours, prompts,
//! completions.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::adapter::{Folder, model, on_tiny};
use super::{assert_fails, epiphyte, json, run, stderr, text};
use crate::common::model_path;

/// A pipe without a reader.
fn nobody_reads() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_of_stderr_that_goes_away_ends_nothing() {
    let model = model();
    let generate = ["generate", "-m", text(&model), "-p", "the", "-n", "2", "--stats"];
    let cases: [(&[&str], i32); 3] =
        [(&generate, 0), (&["inspect", "nowhere"], 1), (&["generate"], 2)];
    for (args, code) in cases {
        let status = epiphyte(args).stdout(Stdio::null()).stderr(nobody_reads()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_reader_of_stdout_that_goes_away_ends_the_program_quietly() {
    let model = model();
    let generate = ["generate", "-m", text(&model), "-p", "the", "-n", "8", "--ignore-eos"];
    for args in [&generate[..], &["man"], &["completions", "bash"], &["plan", "--params", "7e9"]] {
        let output = epiphyte(args).stdout(nobody_reads()).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), String::new()), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_answer_is_reported_as_far_as_it_came() {
    let Some(model) = model_path() else { return };
    let mut first_token = Duration::ZERO;
    for signal in ["-INT", "-TERM", "-HUP"] {
        let start = Instant::now();
        let args = [
            "generate",
            "-m",
            text(&model),
            "-p",
            "Once upon a time",
            "-n",
            "4000",
            "--ignore-eos",
        ];
        // The plain text tells when it has begun.
        let mut child =
            epiphyte(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        first_token = start.elapsed();
        kill(signal, child.id());
        let mut rest = String::new();
        child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        assert!(rest.ends_with('\n') && rest.len() < 4000, "{signal}: {} bytes", rest.len());
    }
    let args = [
        "generate",
        "-m",
        text(&model),
        "-p",
        "Once upon a time",
        "-n",
        "4000",
        "--ignore-eos",
        "--json",
    ];
    let child = epiphyte(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // JSON comes at the end only.
    std::thread::sleep(2 * first_token + Duration::from_secs(1));
    kill("-INT", child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "cancelled");
}

#[cfg(unix)]
#[test]
fn nohup_is_respected() {
    let Some(model) = model_path() else { return };
    let mut child = Command::new("nohup")
        .args([
            env!("CARGO_BIN_EXE_epiphyte"),
            "generate",
            "-m",
            text(&model),
            "-p",
            "One",
            "-n",
            "12",
            "--ignore-eos",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.fill_buf().unwrap();
    kill("-HUP", child.id());
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
fn kill(signal: &str, id: u32) {
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
}

#[test]
fn prompts_come_from_files_and_may_begin_with_a_hyphen() {
    let folder = Folder::new();
    let (file, model) = (folder.path("prompt"), model());
    std::fs::write(&file, "the sea\r\n").unwrap();
    let shown = |args: &[&str]| {
        let args = [&["generate", "-m", text(&model), "-n", "1", "--json", "--show-prompt"], args]
            .concat();
        json(&epiphyte(&args).stdin(std::fs::File::open(&file).unwrap()).output().unwrap())["prompt"].clone()
    };
    assert_eq!(shown(&["--prompt-file", text(&file)]), "the sea");
    assert_eq!(shown(&["--prompt-file", "-"]), "the sea\r\n");
    assert_eq!(shown(&["-p", "-"]), "the sea\r\n");
    assert_eq!(shown(&["-p", "-hello"]), "-hello");
    assert_eq!(shown(&["-p", "--json"]), "--json");
    std::fs::write(&file, b"caf\xe9").unwrap();
    assert_fails(&on_tiny(&["generate", "--prompt-file", text(&file)]), 2, "UTF-8");
    assert_fails(
        &on_tiny(&["generate", "--prompt-file", text(&folder.path("absent"))]),
        1,
        "absent",
    );
    assert_fails(
        &on_tiny(&["generate", "--prompt-file", "x", "-p", "y"]),
        2,
        "cannot be used with",
    );
}

#[test]
fn completions_and_man_pages_name_every_command() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(run(&["completions", shell]).stdout).unwrap();
        assert!(script.contains("perplexity") && script.contains("prompt-file"), "{shell}");
    }
    assert!(String::from_utf8(run(&["man"]).stdout).unwrap().contains(".TH epiphyte 1"));
    let dir = folder.path("man/man1");
    assert!(run(&["man", text(&dir)]).status.success());
    for page in ["epiphyte", "epiphyte-generate", "epiphyte-adapter-export"] {
        assert!(
            std::fs::read_to_string(dir.join(format!("{page}.1"))).unwrap().starts_with(".ie"),
            "{page}"
        );
    }
    assert_fails(&run(&["completions", "tcsh"]), 2, "tcsh");
}

/// What rustyline writes before each prompt.
#[cfg(target_os = "linux")]
const PROMPT: &[u8] = b"\x1b[?2004h";

/// Runs a shell command in a terminal of its own; what it shows. At each of its prompts these keys
/// are typed.
#[cfg(target_os = "linux")]
fn in_terminal(command: &str, keys: &[&[u8]]) -> String {
    use std::io::Write;
    use std::sync::mpsc;
    let mut child = Command::new("script")
        .args(["-qec", command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (send, bytes) = mpsc::channel();
    // The end of a terminal is an error on some systems.
    std::thread::spawn(move || {
        BufReader::new(stdout).bytes().map_while(Result::ok).try_for_each(|byte| send.send(byte))
    });
    let (mut shown, mut keys) = (Vec::new(), keys.iter());
    while let Ok(byte) = bytes.recv_timeout(Duration::from_secs(300)) {
        shown.push(byte);
        if shown.ends_with(PROMPT) {
            stdin.write_all(keys.next().copied().unwrap_or(b"\x04")).unwrap();
        }
    }
    child.wait().unwrap();
    String::from_utf8_lossy(&shown).into_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_gets_colours_lines_to_edit_and_help_that_fits() {
    let binary = env!("CARGO_BIN_EXE_epiphyte");
    let red = in_terminal(&format!("{binary} inspect nowhere"), &[]);
    assert!(red.contains("\x1b[1;31merror: \x1b[0mnowhere"), "{red:?}");
    let plain = in_terminal(&format!("NO_COLOR=1 {binary} inspect nowhere"), &[]);
    assert!(plain.contains("error: nowhere") && !plain.contains('\x1b'), "{plain:?}");
    // Usage is one line, whatever the width.
    let fits = |line: &str| line.trim_end().len() <= 60 || line.starts_with("Usage");
    let help =
        in_terminal(&format!("stty rows 24 cols 60; NO_COLOR=1 {binary} generate --help"), &[]);
    assert!(help.contains("Read the prompt") && help.lines().all(fits), "{help}");
    // The line before comes back, and is changed: `/hepl` becomes `/help`.
    let chat = format!("{binary} chat -m {}; echo left with $?", text(&model()));
    let keys: [&[u8]; 3] = [b"/hepl\n", b"\x1b[A\x1b[D\x1b[D\x1b[3~\x1b[Cp\n", b"\x03"];
    let shown = in_terminal(&chat, &keys);
    assert!(
        shown.contains("no such command") && shown.contains("forget the conversation"),
        "{shown:?}"
    );
    assert!(shown.contains("left with 130"), "{shown:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn too_small_an_address_space_is_refused_before_a_driver_crashes() {
    let command = format!("ulimit -v 400000; {} doctor", env!("CARGO_BIN_EXE_epiphyte"));
    let output = Command::new("bash").args(["-c", &command]).output().unwrap();
    assert_fails(&output, 1, "ulimit -v");
}
