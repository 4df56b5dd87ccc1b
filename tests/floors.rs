//! The floors of `runtime/`: what a file imports, read from its source.
//!
//! A room is a file or a folder directly in `runtime/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Rooms that need no GPU, whatever else joins them.
const FILES: [&str; 14] = [
    "adapter",
    "base",
    "chat",
    "checkpoint",
    "classify",
    "export",
    "federated",
    "format",
    "grammar",
    "merge",
    "quant",
    "quantize",
    "stack",
    "tokenizer",
];

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "runtime"].iter().collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Packages of their own.
        if path.join("Cargo.toml").exists() {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names that follow `crate::` in a text, and `super::` where it stands for the crate: in a
/// module at `depth`, 1 for a room's own.
fn imported(text: &str, depth: usize) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<_>>().join("\n");
    let root = "super::".repeat(depth);
    let mut names = BTreeSet::new();
    for (start, prefix) in ["crate::", root.as_str()].iter().flat_map(|p| code.match_indices(p)) {
        let part_of_longer = code[..start].ends_with("super::") || code[..start].ends_with('$');
        let rest = &code[start + prefix.len()..];
        if part_of_longer || rest.starts_with("super::") {
            continue;
        }
        assert!(!rest.starts_with('{'), "one room a line: {}", rest.lines().next().unwrap());
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        names.insert(rest[..end].to_string());
    }
    names
}

/// Each room with the rooms it imports.
fn rooms() -> BTreeMap<String, BTreeSet<String>> {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut rooms = BTreeMap::<String, BTreeSet<String>>::new();
    let mut outside = BTreeSet::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Vec<_> =
            path.iter().map(|part| part.to_str().unwrap().to_string()).collect();
        module.pop_if(|last| last == "mod");
        // The public face names every room.
        if matches!(module[0].as_str(), "lib" | "main" | "face") {
            continue;
        }
        let room = module[0].clone();
        let names = imported(&std::fs::read_to_string(&file).unwrap(), module.len());
        outside.extend(names.iter().map(|name| (name.clone(), file.clone())));
        rooms.entry(room.clone()).or_default().extend(names.into_iter().filter(|n| *n != room));
    }
    for (name, file) in outside {
        assert!(rooms.contains_key(&name), "{}: `crate::{name}` is no room", file.display());
    }
    rooms
}

/// Every room that `from` stands on.
fn below<'a>(rooms: &'a BTreeMap<String, BTreeSet<String>>, from: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(room) = open.pop() {
        open.extend(rooms[room].iter().map(String::as_str).filter(|next| found.insert(*next)));
    }
    found
}

#[test]
fn no_two_rooms_import_each_other() {
    let rooms = rooms();
    for room in rooms.keys() {
        let below = below(&rooms, room);
        let way = || below.iter().filter(|other| rooms[**other].contains(room)).collect::<Vec<_>>();
        assert!(!below.contains(room.as_str()), "{room} stands on itself, through {:?}", way());
    }
}

/// The rooms that `lib.rs` builds with the feature `gpu` only.
fn with_gpu() -> Vec<String> {
    let lib = std::fs::read_to_string(root().join("lib.rs")).unwrap();
    let lines: Vec<_> = lib.lines().collect();
    let is_gate = |line: &str| line.starts_with("#[cfg(") && line.contains("feature = \"gpu\"");
    let gated = lines.windows(2).filter(|pair| is_gate(pair[0]));
    let name = |line: &str| Some(line.split_once("mod ")?.1.strip_suffix(';')?.to_string());
    gated.filter_map(|pair| name(pair[1])).collect()
}

#[test]
fn files_and_texts_need_no_gpu() {
    let (rooms, gpu) = (rooms(), with_gpu());
    assert!(["gpu", "kernels", "engine"].iter().all(|room| gpu.iter().any(|g| g == room)));
    assert!(FILES.iter().all(|room| rooms.contains_key(*room) && !gpu.iter().any(|g| g == room)));
    for room in rooms.keys().filter(|room| !gpu.contains(room)) {
        let below = below(&rooms, room);
        let needed: Vec<_> = gpu.iter().filter(|gpu| below.contains(gpu.as_str())).collect();
        assert!(needed.is_empty(), "{room} stands on {needed:?}");
    }
    assert!(!below(&rooms, "format").contains("adapter"), "a format knows no adapter");
    let engine = below(&rooms, "engine");
    assert!(engine.contains("gpu") && engine.contains("adapter"), "imports are read: {engine:?}");
}

#[test]
fn an_import_is_found_however_it_is_spelt() {
    let text = "use crate::gpu::{Gpu, Op};\n/// See [`crate::train`].\nfn f() -> super::super::model::X \
                { crate::Error::new(super::own::f()) }";
    let names = |depth| imported(text, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(names(2), ["Error", "gpu", "model"]);
    assert_eq!(names(3), ["Error", "gpu"]);
    assert_eq!(imported("use super::model;", 1).into_iter().collect::<Vec<_>>(), ["model"]);
}
