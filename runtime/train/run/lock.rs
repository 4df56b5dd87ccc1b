//! One run at a time in a folder: a lock of the system, which ends with the process that holds it,
//! however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::progress::RunNote;
use crate::adapter::peft::LOCK;
use crate::error::{Error, Result};

/// Held until it is dropped.
pub(super) struct Lock {
    /// That the file system knows no locks.
    pub(super) note: Option<RunNote>,
    path: PathBuf,
    /// Open is locked.
    _file: File,
}

/// What the file says of who holds it.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: Option<String>,
    /// Seconds since 1970.
    since: u64,
}

impl Lock {
    /// Takes the lock of `folder`, which exists; where the file system knows none, all the same.
    ///
    /// Errors: [`Error::InvalidArgument`] naming who holds it; [`Error::Io`].
    pub(super) fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let mut note = None;
        loop {
            let open =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
            let file = open.map_err(|e| Error::io(&path, e))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(taken(folder, &path)),
                Err(TryLockError::Error(e)) => {
                    note = Some(RunNote::Unlocked { path: path.clone(), reason: e.to_string() });
                }
            }
            // Whoever held it may have removed it since it was opened here.
            if is_at(&file, &path) {
                let holder =
                    Holder { pid: std::process::id(), host: host(), since: now().as_secs() };
                holder.write(&file).map_err(|e| Error::io(&path, e))?;
                return Ok(Self { note, path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Where `is_at` can't tell, a file that is removed could be locked by one and made anew by
        // another.
        if cfg!(unix) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Holder {
    fn write(&self, mut file: &File) -> std::io::Result<()> {
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(self)?)
    }
}

fn taken(folder: &Path, path: &Path) -> Error {
    let holder =
        std::fs::read(path).ok().and_then(|json| serde_json::from_slice::<Holder>(&json).ok());
    let by = holder.map_or("another process".into(), |Holder { pid, host, since }| {
        let host = host.map_or(String::new(), |host| format!(" on {host}"));
        let time = now().saturating_sub(Duration::from_secs(since));
        format!("process {pid}{host}, begun {} ago,", human_time(time))
    });
    let reason = format!(
        "{by} is training to {}; wait for it to end, or name another folder",
        folder.display()
    );
    Error::InvalidArgument { name: "out", reason }
}

/// In its largest unit.
fn human_time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (size, unit) = [(86_400, "day"), (3_600, "hour"), (60, "minute")]
        .into_iter()
        .find(|(size, _)| seconds >= *size)
        .unwrap_or((1, "second"));
    let count = seconds / size;
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Whether the open file is the one that has the name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: std::io::Result<std::fs::Metadata>| {
        found.map(|found| [found.dev(), found.ino()]).ok()
    };
    let open = id(file.metadata());
    open.is_some() && open == id(path.metadata())
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// This machine's name, where it is easily known.
fn host() -> Option<String> {
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())?;
    Some(name.trim().to_string()).filter(|name| !name.is_empty())
}
