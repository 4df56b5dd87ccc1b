//! What several tests need.

use std::path::PathBuf;

/// The file that `make model` fetches.
const MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The default model: `EPIPHYTE_TEST_MODEL`, else the cache. `None` only when `EPIPHYTE_SKIP_MODEL=1` allows it.
pub(crate) fn model_path() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = var("EPIPHYTE_TEST_MODEL").or_else(|| Some(epiphyte::cache_dir()?.join(MODEL_FILE)));
    let found = path.filter(|path| path.exists());
    let skip = std::env::var("EPIPHYTE_SKIP_MODEL").is_ok_and(|value| value == "1");
    assert!(found.is_some() || skip, "{MODEL_FILE} is not there: run `make model`, or set EPIPHYTE_SKIP_MODEL=1");
    found
}
