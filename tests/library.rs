//! Names of models and adapters: what has one, what a name means, what is deleted.

use std::fs;
use std::path::{Path, PathBuf};

use epiphyte::library::{Entry, EntryKind, Library};

use crate::common::golden;

/// A cache folder with two models, one of them in shards, an adapter as a folder and one as a file,
/// and things without names.
fn filled(home: &Path) -> Library {
    let tiny = golden("tiny_llama.gguf");
    let copy = |from: &Path, to: &str| fs::copy(from, home.join(to)).map(drop).unwrap();
    copy(&tiny, "Tiny-llama-q4_0.gguf");
    copy(&tiny, "big-00001-of-00002.gguf");
    copy(&tiny, "big-00002-of-00002.gguf");
    fs::create_dir(home.join("pirate")).unwrap();
    for file in fs::read_dir(golden("families/qwen3")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, home.join("pirate").join(file.file_name().unwrap())).unwrap();
    }
    fs::create_dir(home.join("empty")).unwrap();
    fs::write(home.join("notes.gguf"), "none").unwrap();
    fs::write(home.join("1.kernels"), "x").unwrap();
    Library::at(home.into())
}

fn names(library: &Library) -> Vec<(String, EntryKind)> {
    library.entries().unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect()
}

fn found(library: &Library, kind: EntryKind, name: &str) -> Option<PathBuf> {
    library.find(kind, name).unwrap().map(|entry| entry.path)
}

#[test]
fn models_and_adapters_have_names_and_nothing_else_has() {
    let home = tempfile::tempdir().unwrap();
    let library = filled(home.path());
    let (model, adapter) = (EntryKind::Model, EntryKind::Adapter);
    let expected = [("Tiny-llama-q4_0", model), ("big", model), ("pirate", adapter)];
    assert_eq!(names(&library), expected.map(|(name, kind)| (name.to_string(), kind)));
    let of = |name: &str| library.entries().unwrap().into_iter().find(|e| e.name == name).unwrap();
    let Entry { bytes, architecture, .. } = of("big");
    assert_eq!(bytes, 2 * fs::metadata(golden("tiny_llama.gguf")).unwrap().len());
    assert_eq!(architecture.as_deref(), Some("llama"));
    assert!(Library::at(home.path().join("absent")).entries().unwrap().is_empty());
}

#[test]
fn a_name_means_one_thing_or_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let library = filled(home.path());
    let tiny = Some(home.path().join("Tiny-llama-q4_0.gguf"));
    for name in ["tiny", "TINY-LLAMA", "tiny-llama-q4", "Tiny-llama-q4_0"] {
        assert_eq!(found(&library, EntryKind::Model, name), tiny, "{name}");
    }
    for name in ["", "tin", "tiny-llama-q4_0.gguf", "pirate", "notes", "empty"] {
        assert_eq!(found(&library, EntryKind::Model, name), None, "{name}");
    }
    assert!(found(&library, EntryKind::Adapter, "pirate").is_some());
    fs::copy(golden("tiny_llama.gguf"), home.path().join("tiny-llama.gguf")).unwrap();
    let two = library.find(EntryKind::Model, "tiny").unwrap_err().to_string();
    assert!(two.contains("Tiny-llama-q4_0") && two.contains("tiny-llama;"), "{two}");
    // All of a name.
    let short = Some(home.path().join("tiny-llama.gguf"));
    assert_eq!(found(&library, EntryKind::Model, "tiny-llama"), short);
}

#[test]
fn folders_of_ones_own_are_looked_into_and_left_as_they_are() {
    let (home, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let library = filled(home.path());
    let model = own.path().join("mine.gguf");
    fs::copy(golden("tiny_llama.gguf"), &model).unwrap();
    assert!(library.add(&model).is_err(), "a file is no folder");
    for _ in 0..2 {
        library.add(own.path()).unwrap();
        assert_eq!(library.folders().unwrap().len(), 2);
    }
    assert!(found(&library, EntryKind::Model, "mine").is_some());
    let refused = library.remove("mine").unwrap_err().to_string();
    assert!(refused.contains("of your own"), "{refused}");
    assert!(model.exists());
    assert!(library.leave_out(own.path()).unwrap());
    assert!(!library.leave_out(own.path()).unwrap());
    assert_eq!(found(&library, EntryKind::Model, "mine"), None);
    fs::write(home.path().join("folders.json"), "{").unwrap();
    let damaged = library.entries().unwrap_err().to_string();
    assert!(damaged.contains("folders.json"), "{damaged}");
}

#[test]
fn what_is_removed_goes_whole_and_nothing_with_it() {
    let home = tempfile::tempdir().unwrap();
    let library = filled(home.path());
    for name in ["tiny", "Big", "notes", "empty", "../pirate", ""] {
        assert!(library.remove(name).is_err(), "{name}");
    }
    assert_eq!(names(&library).len(), 3);
    // Two of a name, and a folder that holds more than an adapter.
    let (twin, run) = (home.path().join("pirate.gguf"), home.path().join("pirate/steps.jsonl"));
    for (other, from) in [(&twin, "tiny_llama.gguf"), (&run, "tiny_llama.gguf")] {
        fs::copy(golden(from), other).unwrap();
        assert!(library.remove("pirate").is_err(), "{}", other.display());
        fs::remove_file(other).unwrap();
    }
    assert_eq!(names(&library).len(), 3);
    for name in ["big", "pirate"] {
        assert_eq!(library.remove(name).unwrap().name, name);
    }
    let mut left: Vec<_> =
        fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["1.kernels", "Tiny-llama-q4_0.gguf", "empty", "notes.gguf"]);
}
