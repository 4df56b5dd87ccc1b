//! Files that appear whole or not at all: written under a temporary name, synced, renamed.
//!
//! What can't be replaced (a device, a pipe, `/dev/stdout`) is written to as it is.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Temporary files that are there now.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A file that does not have its name yet. Dropped, it is removed.
pub(crate) struct Staged {
    file: File,
    /// `None` for what is written in place.
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl Staged {
    /// Writes the bytes beside `path`; they are on the disk then.
    pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<Self> {
        let temporary = (!is_in_place(path)).then(|| temporary_name(path));
        let file = match &temporary {
            Some(temporary) => OpenOptions::new().write(true).create_new(true).open(temporary),
            None => OpenOptions::new().append(true).open(path),
        };
        live().extend(temporary.clone());
        let mut staged =
            Self { file: file.map_err(|e| Error::io(path, e))?, temporary, path: path.into() };
        staged.append(bytes)?;
        staged.sync()?;
        Ok(staged)
    }

    /// Writes more bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }

    fn sync(&self) -> Result<()> {
        match self.temporary {
            Some(_) => self.file.sync_all().map_err(|e| Error::io(&self.path, e)),
            // Pipes have nothing to sync.
            None => Ok(()),
        }
    }

    /// Whether `name` is that of a file staged for `file`.
    pub(crate) fn is_of(file: &str, name: &std::ffi::OsStr) -> bool {
        let rest = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_prefix(file)?.strip_prefix('.'));
        rest.is_some_and(|rest| rest.ends_with(".tmp"))
    }

    /// Gives the file its name, in place of any that has it.
    pub(crate) fn commit(self) -> Result<()> {
        self.sync()?;
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.path).map_err(|e| Error::io(&self.path, e))?;
            sync_folder(&self.path);
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Gone already after a commit.
            let _ = std::fs::remove_file(temporary);
            live().remove(temporary);
        }
    }
}

/// Whether `path` is written to and never replaced: a device, a pipe, or the name of something that
/// is open.
pub fn is_in_place(path: &Path) -> bool {
    let opened = ["/dev/fd", "/dev/stdout", "/dev/stderr", "/proc"];
    let is_opened =
        |path: PathBuf| cfg!(unix) && opened.iter().any(|opened| path.starts_with(opened));
    std::fs::metadata(path).is_ok_and(|kind| !kind.is_file() && !kind.is_dir())
        || std::path::absolute(path).is_ok_and(is_opened)
}

/// Removes every file that is being written and not whole yet: for a program that ends at once.
pub fn remove_unfinished() {
    live().iter().for_each(|path| drop(std::fs::remove_file(path)));
}

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn temporary_name(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(
        ".{name}.{}.{}.tmp",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ))
}

/// Whether `name` is that of any staged file.
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"))
}

/// Makes a rename last; not every system can open a folder, and none needs it for the file to be
/// whole.
fn sync_folder(path: &Path) {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::Staged;

    #[test]
    fn names_that_differ_in_their_extension_are_staged_apart() {
        let folder = std::env::temp_dir().join(format!("epiphyte-staged-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths = ["x.a", "x.b", "x", "x.a"].map(|name| folder.join(name));
        let staged: Vec<Staged> = paths
            .iter()
            .zip(b"1234")
            .map(|(path, byte)| Staged::write(path, &[*byte]).unwrap())
            .collect();
        staged.into_iter().for_each(|staged| staged.commit().unwrap());
        let read = paths.map(|path| std::fs::read(path).unwrap());
        assert_eq!(read, [b"4", b"2", b"3", b"4"], "the last of a name stays");
        let left = std::fs::read_dir(&folder).unwrap().count();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, 3, "no temporary file is left");
    }
}
