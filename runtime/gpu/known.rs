//! Which kernels an earlier start compiled on the same driver, by their texts. What the driver keeps
//! of them is its own affair; this is what can be counted.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::device::{GpuOptions, driver_key};
use crate::identity::Hash;

/// Kernels by the beginnings of their texts' hashes.
pub(super) struct Known {
    /// None without a cache folder.
    path: Option<PathBuf>,
    names: BTreeSet<String>,
}

impl Known {
    /// What the cache folder says of the driver of `info`.
    pub(super) fn read(info: &wgpu::AdapterInfo, options: &GpuOptions) -> Self {
        let file = format!("{}-{}.kernels", driver_key(info), env!("CARGO_PKG_VERSION"));
        let path = options.cache_dir.as_ref().map(|dir| dir.join(file));
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let names = text.unwrap_or_default().lines().map(String::from).collect();
        Self { path, names }
    }

    /// The driver's own cache is gone.
    pub(super) fn forget(&mut self) {
        self.names.clear();
    }

    pub(super) fn has(&self, text: &Hash) -> bool {
        self.names.contains(&name(text))
    }

    /// Keeps these, too.
    pub(super) fn write<'a>(&self, texts: impl Iterator<Item = &'a Hash>) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let names: BTreeSet<String> = self.names.iter().cloned().chain(texts.map(name)).collect();
        let lines: String = names.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        replace(path, lines.as_bytes())
    }
}

fn name(text: &Hash) -> String {
    text[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file of the cache folder, whole.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}
