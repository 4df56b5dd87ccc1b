//! The output folder: the adapter as PEFT lays it out, and `checkpoints/` with the states to go on from.

use std::path::{Path, PathBuf};

use crate::adapter::{Adapter, BaseShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::peft::{CHECKPOINTS, is_staged};
use crate::train::Trainer;

const LOG: &str = "steps.jsonl";

pub(super) struct Folder {
    out: PathBuf,
    /// Its run is to go on.
    pub(super) resume: bool,
}

impl Folder {
    /// Checks `out`; nothing is made yet.
    ///
    /// Errors: [`Error::InvalidArgument`] for a folder that holds anything, unless it is a run to go on with.
    pub(super) fn check(out: &Path, resume: bool) -> Result<Self> {
        let invalid = |reason: &str| {
            let reason = format!("{} {reason}", out.display());
            Err(Error::InvalidArgument { name: "out", reason })
        };
        let folder = Self { out: out.into(), resume };
        if !out.exists() {
            return Ok(folder);
        }
        if !out.is_dir() {
            return invalid("is a file; name a folder");
        }
        let empty = std::fs::read_dir(out).map_err(|e| Error::io(out, e))?.next().is_none();
        match (empty, resume) {
            (true, _) => Ok(folder),
            (false, true) if folder.checkpoint_folder().is_dir() => Ok(folder),
            (false, true) => invalid("holds no run to resume; name the folder that was trained to"),
            (false, false) => invalid("is not empty; `--resume` goes on with a run, another name starts one"),
        }
    }

    /// Makes the folders; what a killed run left half-written goes.
    ///
    /// Errors: [`Error::Io`].
    pub(super) fn create(&self) -> Result<()> {
        let folder = self.checkpoint_folder();
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        for folder in [&self.out, &folder] {
            for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
                let name = entry.file_name();
                let text = name.to_string_lossy();
                if is_staged(&name) || text.starts_with(".step-") && text.ends_with(".tmp") {
                    std::fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
                }
            }
        }
        Ok(())
    }

    /// Checkpoints by step, ascending.
    ///
    /// Errors: [`Error::Io`].
    pub(super) fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.checkpoint_folder();
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?;
        let step = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?;
            Some((name.parse().ok()?, path))
        };
        let mut all: Vec<_> = entries.flatten().filter_map(|entry| step(entry.path())).collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Saves where `trainer` stands, then removes all but the last `keep` checkpoints.
    ///
    /// Errors: as [`Trainer::save`]; the checkpoints that were there are kept then.
    pub(super) fn save(&self, trainer: &Trainer, keep: u64) -> Result<PathBuf> {
        let path = self.checkpoint_folder().join(format!("step-{}.safetensors", trainer.cursor().step));
        trainer.save(&path)?;
        let all = self.checkpoints()?;
        for (_, old) in all.iter().rev().skip(keep as usize) {
            std::fs::remove_file(old).map_err(|e| Error::io(old, e))?;
        }
        Ok(path)
    }

    /// Writes the adapter, in place of the one that is there.
    ///
    /// Errors: as [`Adapter::save_peft`].
    pub(super) fn write_adapter(&self, adapter: &Adapter, shape: &BaseShape) -> Result<()> {
        adapter.save_peft(&self.out, DType::F32, shape)
    }

    /// Where the steps are logged unless the user says so.
    pub(super) fn log(&self) -> PathBuf {
        self.checkpoint_folder().join(LOG)
    }

    pub(super) fn path(&self) -> &Path {
        &self.out
    }

    fn checkpoint_folder(&self) -> PathBuf {
        self.out.join(CHECKPOINTS)
    }
}
