//! The shards of a model: how their files are named.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The shards of a model by the name of the first; nothing is opened.
pub fn shards_of(first: &Path) -> Vec<PathBuf> {
    let name = first
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(".gguf"));
    // A name may say anything; files say how many they are in 16 bits.
    let count = name.and_then(|name| name.rsplit_once("-of-")?.1.parse::<u16>().ok()).unwrap_or(1);
    let count = u32::from(count);
    let others =
        (1..count).map_while(|no| shard_path(first, no, count).ok()).filter(|path| path.exists());
    std::iter::once(first.to_path_buf()).chain(others).collect()
}

/// The path of shard `no` (from 0), beside the first.
pub(super) fn shard_path(first: &Path, no: u32, count: u32) -> Result<PathBuf> {
    let suffix = format!("-00001-of-{count:05}.gguf");
    let stem = first
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(&suffix));
    let reason = || {
        format!(
            "the first of {count} shards must be named like model{suffix}, for the others to be \
            found"
        )
    };
    let stem = stem.ok_or_else(|| Error::InvalidFile { path: first.into(), reason: reason() })?;
    Ok(first.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1)))
}

/// What to say where a shard can't be opened.
pub(super) fn missing_shard(error: Error, path: &Path, no: u32, count: u32) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => Error::InvalidFile {
            path: path.into(),
            reason: format!(
                "shard {} of {count} is missing; put all shards into one folder",
                no + 1
            ),
        },
        other => other,
    }
}
