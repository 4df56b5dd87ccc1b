//! The output folder: the adapter as PEFT lays it out, and `checkpoints/` with the states to go on
//! from.

use std::path::{Path, PathBuf};

use super::given::Given;
use super::lock::Lock;
use crate::adapter::peft::{CHECKPOINTS, LOCK, is_staged};
use crate::adapter::{Adapter, BaseShape};
use crate::cli::output;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::staged::is_temporary;
use crate::train::Trainer;
use crate::train::checkpoint::Checkpoint;

const LOG: &str = "steps.jsonl";
const GIVEN: &str = "run.json";
/// Where a run ended whose checkpoints went; its numbers are the adapter's.
const END: &str = "end.safetensors";

pub(super) struct Folder {
    out: PathBuf,
    /// Its run is to go on.
    resume: bool,
    /// None before there is a folder.
    lock: Option<Lock>,
}

/// What a folder holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Nothing, or what a run left that was killed before its first checkpoint.
    Nothing,
    Run,
    Other,
}

/// A state to go on from.
pub(super) struct State {
    pub(super) path: PathBuf,
    pub(super) checkpoint: Checkpoint,
    /// It says where the run ended; the adapter holds the numbers.
    pub(super) is_end: bool,
}

impl State {
    pub(super) fn step(&self) -> u64 {
        self.checkpoint.position.cursor.step
    }
}

impl Folder {
    /// Checks `out`, and locks it if it is there; nothing else is made yet.
    ///
    /// Errors: [`Error::InvalidArgument`] for a folder that holds anything, unless it is a run to
    /// go on with, that holds no such run, or that another process trains to.
    pub(super) fn check(out: &Path, resume: bool) -> Result<Self> {
        let mut folder = Self { out: out.into(), resume, lock: None };
        if out.exists() && !out.is_dir() {
            return folder.invalid("is a file; name a folder");
        }
        let holds = folder.holds()?;
        // Who else is there is worth more than what is.
        if out.exists() && (holds != Holds::Other || out.join(LOCK).exists()) {
            folder.lock = Some(Lock::take(out)?);
        }
        folder.check_holds(holds)?;
        Ok(folder)
    }

    fn check_holds(&self, holds: Holds) -> Result<()> {
        match (holds, self.resume) {
            (Holds::Nothing, false) | (Holds::Run, true) => Ok(()),
            (Holds::Nothing, true) if !self.out.exists() => self.invalid(
                "is not there, so there is no run to resume; without `--resume` one \
                    is started",
            ),
            (Holds::Nothing, true) => self.invalid(
                "holds no run to resume; without `--resume` \
                one is started",
            ),
            (Holds::Other, true) => self.invalid(
                "holds no run to resume; name the folder that was trained to, or start from its \
                adapter with `--init` \
                 in another",
            ),
            (_, false) => self.invalid(
                "is not empty; `--resume` goes on with a run, another name \
                starts one",
            ),
        }
    }

    fn invalid<T>(&self, reason: &str) -> Result<T> {
        Err(Error::InvalidArgument {
            name: "out",
            reason: format!("{} {reason}", self.out.display()),
        })
    }

    fn holds(&self) -> Result<Holds> {
        if !self.states()?.is_empty() {
            return Ok(Holds::Run);
        }
        let names = |folder: &Path| -> Result<Vec<_>> {
            let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
            Ok(entries.flatten().map(|entry| entry.file_name()).collect())
        };
        let (out, checkpoints) = (&self.out, self.checkpoint_folder());
        let outside = if out.exists() { names(out)? } else { Vec::new() };
        let inside = if checkpoints.is_dir() { names(&checkpoints)? } else { Vec::new() };
        let no_steps = self.log().metadata().map_or(true, |log| log.len() == 0);
        let only =
            outside.iter().all(|name| name == LOCK || name == CHECKPOINTS || is_staged(name))
                && inside
                    .iter()
                    .all(|name| name == LOG && no_steps || name == GIVEN || is_temporary(name));
        Ok(if only { Holds::Nothing } else { Holds::Other })
    }

    /// Makes the folders, and locks them; what a killed run left half-written goes.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidArgument`] if another run was there first.
    pub(super) fn create(&mut self) -> Result<()> {
        if self.lock.is_none() {
            std::fs::create_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))?;
            self.lock = Some(Lock::take(&self.out)?);
            // It may have come and gone.
            self.check_holds(self.holds()?)?;
        }
        let folder = self.checkpoint_folder();
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        for folder in [&self.out, &folder] {
            for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
                let name = entry.file_name();
                if is_staged(&name) || *folder != self.out && is_temporary(&name) {
                    std::fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
                }
            }
        }
        Ok(())
    }

    /// What the run was given that is to go on.
    pub(super) fn resumed(&self) -> Option<Given> {
        self.resume.then(|| Given::read(&self.given())).flatten()
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
            let name =
                path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?;
            Some((name.parse().ok()?, path))
        };
        let mut all: Vec<_> = entries.flatten().filter_map(|entry| step(entry.path())).collect();
        all.sort_unstable();
        Ok(all)
    }

    /// All files to go on from, the best one last.
    fn states(&self) -> Result<Vec<PathBuf>> {
        let end = Some(self.end()).filter(|path| path.exists());
        Ok(end.into_iter().chain(self.checkpoints()?.into_iter().map(|(_, path)| path)).collect())
    }

    /// The newest state that is whole, of a run that is to go on. Those that are not are named.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] when none is whole.
    pub(super) fn newest(&self) -> Result<Option<State>> {
        let mut damaged = None;
        for path in self.states()?.into_iter().rev().filter(|_| self.resume) {
            match Checkpoint::read(&path) {
                Ok(checkpoint) => {
                    let is_end = path == self.end();
                    return Ok(Some(State { path, checkpoint, is_end }));
                }
                Err(error @ Error::InvalidFile { .. }) => {
                    output::note(&format!("warning: {error}; the one before is tried"));
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    /// Saves where `trainer` stands, then removes all but the last `keep` checkpoints up to there.
    ///
    /// Errors: as [`Trainer::save`]; the checkpoints that were there are kept then.
    pub(super) fn save(&self, trainer: &Trainer, keep: u64) -> Result<()> {
        let step = trainer.cursor().step;
        trainer.save(&self.checkpoint_folder().join(format!("step-{step}.safetensors")))?;
        remove(&self.end())?;
        // A later one is damaged, or the run would have gone on from it.
        let past = self.checkpoints()?.into_iter().filter(|(of, _)| *of <= step);
        let past: Vec<_> = past.collect();
        past.iter().rev().skip(keep as usize).try_for_each(|(_, path)| remove(path))
    }

    /// Removes the checkpoints of a run that is over, and keeps where it ended. Its adapter is
    /// written.
    ///
    /// Errors: as [`Trainer::save_position`]; [`Error::Io`].
    pub(super) fn end_run(&self, trainer: &Trainer) -> Result<()> {
        trainer.save_position(&self.end())?;
        self.checkpoints()?.iter().try_for_each(|(_, path)| remove(path))
    }

    /// Writes the adapter, in place of the one that is there.
    ///
    /// Errors: as [`Adapter::save_peft`]; what else is in the folder was checked at the start.
    pub(super) fn write_adapter(&self, adapter: &Adapter, shape: &BaseShape) -> Result<()> {
        adapter.write_peft(&self.out, DType::F32, shape)
    }

    /// Where the steps are logged unless the user says so.
    pub(super) fn log(&self) -> PathBuf {
        self.checkpoint_folder().join(LOG)
    }

    /// Where it is written what the run was given.
    pub(super) fn given(&self) -> PathBuf {
        self.checkpoint_folder().join(GIVEN)
    }

    pub(super) fn path(&self) -> &Path {
        &self.out
    }

    fn end(&self) -> PathBuf {
        self.checkpoint_folder().join(END)
    }

    fn checkpoint_folder(&self) -> PathBuf {
        self.out.join(CHECKPOINTS)
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}
