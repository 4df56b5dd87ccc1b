//! The folder that files are kept in from one start to the next.

use std::env;
use std::path::PathBuf;

/// The name of the model file that `make model` fetches into the cache folder.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where `make model` puts the default model: in [`cache_dir`]. It may not be there yet.
pub fn default_model() -> Option<PathBuf> {
    cache_dir().map(|dir| dir.join(DEFAULT_MODEL))
}

/// A model of the cache folder by a short name: the one file whose name is `name` or begins with it,
/// whatever the case, up to a `.` or `-`. `None` where there is none or several.
pub fn named_model(name: &str) -> Option<PathBuf> {
    let name = name.to_lowercase();
    let is_meant = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let rest = file.to_lowercase();
        let rest = rest.strip_suffix(".gguf").and_then(|stem| stem.strip_prefix(&name));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
    };
    let entries = std::fs::read_dir(cache_dir()?).ok()?.flatten().map(|entry| entry.path());
    let mut meant = entries.filter(is_meant);
    meant.next().filter(|_| !name.is_empty() && meant.next().is_none())
}

/// Where the default model, the pipeline cache and the self-test's verdicts are kept:
/// `EPIPHYTE_CACHE`, else `$XDG_CACHE_HOME/epiphyte`, else `~/.cache/epiphyte`.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("EPIPHYTE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("epiphyte")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache").join("epiphyte")))
}
