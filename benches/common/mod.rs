//! The model that is timed.

use std::path::PathBuf;

/// The file that `make model` fetches.
pub(crate) const MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The file that `EPIPHYTE_TEST_MODEL` names, or the default model; `None` where it is not there.
pub(crate) fn model_path() -> Option<PathBuf> {
    let named = std::env::var_os("EPIPHYTE_TEST_MODEL").map(PathBuf::from);
    named.or_else(|| Some(epiphyte::cache_dir()?.join(MODEL_FILE))).filter(|path| path.exists())
}
