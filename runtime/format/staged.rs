//! Files that appear whole or not at all: written under a temporary name, synced, renamed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A file that does not have its name yet. Dropped, it is removed.
pub(crate) struct Staged {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Writes the bytes beside `path`; they are on the disk then.
    pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let unique = format!(".{name}.{}.{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = path.with_file_name(unique);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let mut staged = Self { file: file.map_err(|e| Error::io(path, e))?, temporary, path: path.into() };
        staged.append(bytes)?;
        staged.sync()?;
        Ok(staged)
    }

    /// Writes more bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }

    /// Whether `name` is that of a file staged for `file`.
    pub(crate) fn is_of(file: &str, name: &std::ffi::OsStr) -> bool {
        let rest = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_prefix(file)?.strip_prefix('.'));
        rest.is_some_and(|rest| rest.ends_with(".tmp"))
    }

    /// Gives the file its name, in place of any that has it.
    pub(crate) fn commit(self) -> Result<()> {
        self.sync()?;
        std::fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(&self.path, e))?;
        sync_folder(&self.path);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already after a commit.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Makes a rename last; not every system can open a folder, and none needs it for the file to be whole.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
