//! The folder that files are kept in from one start to the next.

use std::env;
use std::path::PathBuf;

/// The name of the model file that `make model` fetches into the cache folder.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where `make model` puts the default model: in [`cache_dir`]. It may not be there yet.
pub fn default_model() -> Option<PathBuf> {
    cache_dir().map(|dir| dir.join(DEFAULT_MODEL))
}

/// Where the default model, the pipeline cache and the self-test's verdicts are kept:
/// `EPIPHYTE_CACHE`, else `$XDG_CACHE_HOME/epiphyte`, else `~/.cache/epiphyte`.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("EPIPHYTE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("epiphyte")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache").join("epiphyte")))
}
