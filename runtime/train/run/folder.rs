//! The output folder: the adapter as PEFT lays it out, and `checkpoints/` with the states to go on
//! from.

use std::path::{Path, PathBuf};

use super::given::Given;
use super::lock::Lock;
use super::options::RunOptions;
use super::progress::RunNote;
use crate::adapter::peft::{CHECKPOINTS, LOCK, is_staged};
use crate::adapter::{Adapter, BaseShape};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::staged::is_temporary;
use crate::train::Trainer;
use crate::train::checkpoint::Checkpoint;

const LOG: &str = "steps.jsonl";
const GIVEN: &str = "run.json";
/// Where a run ended whose checkpoints went; its numbers are the adapter's.
const END: &str = "end.safetensors";

/// The folder of a run: the adapter that it makes, and in `checkpoints/` what it takes to go on.
/// One run at a time has it, and lets go of it when it is dropped.
pub struct RunFolder {
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

impl RunFolder {
    /// The folder of a new run, which need not exist; it is made when the run begins.
    ///
    /// Errors: [`Error::InvalidArgument`] for a folder that holds anything, or that another run
    /// has.
    pub fn create(out: impl Into<PathBuf>) -> Result<Self> {
        Self::check(out.into(), Some(false))
    }

    /// That of a run that is to go on.
    ///
    /// Errors: [`Error::InvalidArgument`] for a folder without such a run, or that another run has.
    pub fn resume(out: impl Into<PathBuf>) -> Result<Self> {
        Self::check(out.into(), Some(true))
    }

    /// As [`RunFolder::resume`] where there is a run, else as [`RunFolder::create`]: for a program
    /// that may have been ended in the middle.
    ///
    /// Errors: as those.
    pub fn open(out: impl Into<PathBuf>) -> Result<Self> {
        Self::check(out.into(), None)
    }

    /// Checks `out`, and locks it if it is there; nothing else is made yet.
    fn check(out: PathBuf, resume: Option<bool>) -> Result<Self> {
        let mut folder = Self { out, resume: resume == Some(true), lock: None };
        if folder.out.exists() && !folder.out.is_dir() {
            return folder.invalid("is a file; name a folder");
        }
        let holds = folder.holds()?;
        folder.resume |= resume.is_none() && holds == Holds::Run;
        // Who else is there is worth more than what is.
        let there = folder.out.exists();
        if there && (holds != Holds::Other || folder.out.join(LOCK).exists()) {
            folder.lock = Some(Lock::take(&folder.out)?);
        }
        folder.check_holds(holds)?;
        Ok(folder)
    }

    fn check_holds(&self, holds: Holds) -> Result<()> {
        match (holds, self.resume) {
            (Holds::Nothing, false) | (Holds::Run, true) => Ok(()),
            (Holds::Nothing, true) if !self.out.exists() => self.invalid(
                "is not there, so there is no run to resume; without `--resume` one is started",
            ),
            (Holds::Nothing, true) => {
                self.invalid("holds no run to resume; without `--resume` one is started")
            }
            (Holds::Other, true) => self.invalid(
                "holds no run to resume; name the folder that was trained to, or start from its \
                adapter with `--init` in another",
            ),
            (_, false) => {
                self.invalid("is not empty; `--resume` goes on with a run, another name starts one")
            }
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
    pub(super) fn make(&mut self) -> Result<()> {
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

    /// Takes over what `options` leave open from the run that is to go on: validation, patience
    /// and length. [`super::TrainRun::open`] does it, too.
    ///
    /// Errors: [`Error::InvalidArgument`] when the file to validate on is gone;
    /// [`Error::FormatVersion`].
    pub fn fill(&self, options: &mut RunOptions) -> Result<()> {
        let given = if self.resume { Given::read(&self.given_path())? } else { None };
        given.map_or(Ok(()), |given| given.fill(options))
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

    /// The newest state that is whole, of a run that is to go on. Those that are not go to `notes`.
    ///
    /// Errors: [`Error::Io`]; [`Error::FormatVersion`]; [`Error::InvalidFile`] when none is whole.
    pub(super) fn newest(&self, notes: &mut Vec<RunNote>) -> Result<Option<State>> {
        let mut damaged = None;
        for path in self.states()?.into_iter().rev().filter(|_| self.resume) {
            match Checkpoint::read(&path) {
                Ok(checkpoint) => {
                    let is_end = path == self.end();
                    return Ok(Some(State { path, checkpoint, is_end }));
                }
                Err(error @ Error::InvalidFile { .. }) => {
                    notes.push(RunNote::Damaged { reason: error.to_string() });
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

    /// That nothing keeps other runs out.
    pub(super) fn lock_note(&self) -> Option<RunNote> {
        self.lock.as_ref().and_then(|lock| lock.note.clone())
    }

    /// Where it is written what the run was given.
    pub(super) fn given_path(&self) -> PathBuf {
        self.checkpoint_folder().join(GIVEN)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
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
