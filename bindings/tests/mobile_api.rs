//! `docs/mobile-api.md` against the sources: every public call of a language's hand-written layer is
//! in its column, and whatever is in a column is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

type Names = BTreeSet<String>;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap()
}

/// The names of a column of the page's tables, 0 for Rust's.
fn column(page: &str, column: usize) -> Names {
    let rows = page.lines().filter(|line| line.starts_with("| `") || line.starts_with("| —"));
    let cells = rows.filter_map(|row| row.split(" | ").nth(column));
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(String::from));
    names.collect()
}

/// Text of all files of that ending in a folder and those below it.
fn sources(folder: &Path, ending: &str) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(sources(&path, ending));
        } else if path.extension().is_some_and(|found| found == ending) {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    texts
}

/// What a language calls a type, a call and a property.
struct Language {
    types: &'static [&'static str],
    members: &'static [&'static str],
}

const KOTLIN: Language = Language {
    types: &[
        "class ",
        "data class ",
        "object ",
        "interface ",
        "fun interface ",
        "sealed interface ",
    ],
    members: &["fun ", "suspend fun ", "val "],
};
const SWIFT: Language = Language {
    types: &["final class ", "struct ", "protocol ", "enum "],
    members: &["func ", "static func ", "var "],
};

impl Language {
    /// `Type.member` of every public declaration that is no field: of a type that is indented less,
    /// or of the receiver before its name.
    fn members_of(&self, source: &str) -> Names {
        let mut owner = String::new();
        let mut names = Names::new();
        for line in source.lines() {
            let declared = line.trim_start();
            if let Some(extended) = declared.strip_prefix("extension ") {
                owner = word(extended);
            }
            if declared.starts_with("override fun close(") {
                names.insert(format!("{owner}.close"));
            }
            let Some(declared) = declared.strip_prefix("public ") else { continue };
            let after = |kinds: &[&str]| kinds.iter().find_map(|kind| declared.strip_prefix(kind));
            if let Some(name) = after(self.types) {
                owner = word(name);
            } else if let Some(name) = after(self.members) {
                names.insert(member(&owner, name, line.starts_with(' ')));
            }
        }
        names
    }
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// `<T> Flow<Token>.text(` is `Flow.text`, `Message.Companion.user(` is `Message.user`.
fn member(owner: &str, declared: &str, inside: bool) -> String {
    let declared = match declared.strip_prefix('<') {
        Some(generic) => generic.split_once("> ").unwrap().1,
        None => declared,
    };
    let head = declared.split(['(', ':']).next().unwrap();
    match head.replace(".Companion", "").rsplit_once('.') {
        Some((receiver, name)) => format!("{}.{}", word(receiver), word(name)),
        None if inside => format!("{owner}.{}", word(head)),
        None => word(head),
    }
}

fn assert_same(language: &str, page: &Names, code: &Names) {
    let missing: Vec<_> = code.difference(page).collect();
    let gone: Vec<_> = page.difference(code).collect();
    assert!(missing.is_empty(), "{language}: docs/mobile-api.md lacks {missing:?}");
    assert!(gone.is_empty(), "{language}: docs/mobile-api.md has {gone:?}, the sources have not");
}

#[test]
fn kotlin_is_what_the_page_says() {
    let sources = sources(&repository("android/epiphyte/src/main/kotlin"), "kt");
    let code: Names = sources.iter().flat_map(|source| KOTLIN.members_of(source)).collect();
    let fields = ["BatchSequence.session", "BatchSequence.options"].map(String::from);
    let code = &code - &Names::from(fields);
    assert_same("Kotlin", &column(&read("docs/mobile-api.md"), 1), &code);
}

/// The types whose every call is on the page.
const RUST: [&str; 6] = ["Engine", "Session", "Generation", "Batch", "TrainRun", "TrainControl"];

#[test]
fn rust_is_what_the_page_says() {
    let (pinned, page) = (read("docs/api.txt"), column(&read("docs/mobile-api.md"), 0));
    for line in pinned.lines() {
        let [.., of, call] = *line.trim().split("::").collect::<Vec<_>>() else { continue };
        let name = format!("{of}::{call}");
        let listed = !RUST.contains(&of) || page.contains(&name);
        assert!(listed, "docs/mobile-api.md lacks {name}");
    }
    for name in page {
        let (of, call) = name.split_once("::").unwrap();
        let known = pinned.lines().any(|line| line.ends_with(&format!("::{name}")));
        // An iterator's `next` is the trait's.
        let iterates = call == "next" && pinned.lines().any(|line| line.ends_with(of));
        assert!(known || iterates, "docs/mobile-api.md has {name}, docs/api.txt has not");
    }
}

#[test]
fn swift_is_what_the_page_says() {
    let sources = sources(&repository("ios/Sources/Epiphyte"), "swift");
    let code: Names = sources.iter().flat_map(|source| SWIFT.members_of(source)).collect();
    // What protocols of the language's own ask for.
    let asked = ["makeAsyncIterator", "Iterator.next", "errorDescription", "recoverySuggestion"];
    let own = |name: &String| !asked.iter().any(|asked| name.ends_with(asked));
    let code = code.into_iter().filter(own).collect();
    assert_same("Swift", &column(&read("docs/mobile-api.md"), 2), &code);
}

#[test]
fn every_cause_of_an_error_is_on_the_page() {
    let (page, source) = (read("docs/mobile-api.md"), read("bindings/src/error.rs"));
    let (_, causes) = source.split_once("\nerrors! {").unwrap();
    let (causes, _) = causes.split_once("\nimpl EpiphyteError").unwrap();
    let declared = causes.lines().filter_map(|line| line.strip_prefix("    "));
    let declared = declared.filter(|line| line.starts_with(char::is_uppercase)).map(word);
    let (_, rows) = page.split_once("| cause | data | when |").unwrap();
    let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
    let listed = rows.map(|row| word(row.trim_start_matches("| ")));
    assert_eq!(declared.collect::<Names>(), listed.collect::<Names>());
}
