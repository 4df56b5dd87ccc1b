//! The steps of a run in a JSONL file, one line each.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::StepRecord;
use crate::error::{Error, Result};

/// How each line begins.
const START: &[u8] = b"{\"step\":";

/// Writes steps to a JSONL file as they are done: numbers only, nothing of the data.
#[derive(Debug)]
pub struct StepLog {
    path: PathBuf,
    file: File,
}

impl StepLog {
    /// Opens `path` for a run that has done `step` steps, 0 for a new one. Lines of later steps go,
    /// as does one that was cut short, so that each step has one line. What is no plain file (a
    /// device, a pipe) is only written to.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] naming a line that is no step, or while
    /// another run writes to it.
    pub fn open(path: impl AsRef<Path>, step: u64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let io = |e| Error::io(&path, e);
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().append(true).open(&path).map_err(io)?;
            return Ok(Self { path, file });
        }
        let file =
            OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(io)?;
        // Elsewhere a lock keeps readers away, too.
        if cfg!(unix) && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            let reason = "another run is writing to it; name another file".into();
            return Err(Error::InvalidFile { path, reason });
        }
        keep(&path, &file, step)?;
        Ok(Self { path, file })
    }

    /// Forgets the steps after `step`, which are taken again.
    ///
    /// Errors: as [`StepLog::open`].
    pub(crate) fn go_back(&mut self, step: u64) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        if !self.file.metadata().map_err(io)?.is_file() {
            return Ok(());
        }
        (&self.file).seek(SeekFrom::Start(0)).map_err(io)?;
        keep(&self.path, &self.file, step)
    }

    /// Appends a line and hands it to the system.
    ///
    /// Errors: [`Error::Io`].
    pub fn write(&mut self, record: &StepRecord) -> Result<()> {
        let line =
            serde_json::to_string(record).map_err(|e| Error::io(&self.path, e.into()))? + "\n";
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

/// The steps of a log in their order, each with its line; of several lines of a step the last. One
/// that was cut short at the end is left out.
///
/// Errors: [`Error::Io`]; [`Error::InvalidFile`] naming the line.
pub(super) fn read(path: &Path, file: &File) -> Result<Vec<(StepRecord, Vec<u8>)>> {
    let mut reader = BufReader::new(file);
    let mut records: Vec<(StepRecord, Vec<u8>)> = Vec::new();
    for number in 1.. {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice::<StepRecord>(&line) {
            Ok(record) if whole => {
                // A run that was resumed from before it took the step again.
                while records.pop_if(|(other, _)| other.step >= record.step).is_some() {}
                records.push((record, line));
            }
            _ if !whole && (line.starts_with(START) || START.starts_with(&line)) => break,
            _ => {
                let reason = format!(
                    "line {number} is no step of a training run; give the file that training wrote"
                );
                return Err(Error::InvalidFile { path: path.into(), reason });
            }
        }
    }
    Ok(records)
}

/// Makes the steps up to `step` all that is in a log.
fn keep(path: &Path, file: &File, step: u64) -> Result<()> {
    let kept = read(path, file)?.into_iter().filter(|(record, _)| record.step <= step);
    let kept = kept.flat_map(|(_, line)| line).collect::<Vec<u8>>();
    replace(file, &kept).map_err(|e| Error::io(path, e))
}

/// Makes `bytes` all that is in `file`, which is open for appending; what is the same stays
/// untouched.
fn replace(file: &File, bytes: &[u8]) -> std::io::Result<()> {
    let (mut file, mut old) = (file, Vec::new());
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut old)?;
    let same = old.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    if same < old.len() {
        file.set_len(same as u64)?;
    }
    file.write_all(&bytes[same..])
}
