//! Models and adapters by name: what lies in the cache folder and in folders of one's own that were
//! added to it. Nothing is fetched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::peft_files;
use crate::cache::cache_dir;
use crate::error::{Error, Result};
use crate::format::gguf::{Gguf, shards_of};
use crate::format::{paths_in, write_whole};
use crate::kind::FileKind;

/// The folders that were added, in the cache folder: a JSON array of paths.
const FOLDERS: &str = "folders.json";
/// Names that an error lists at most.
const SHOWN: usize = 8;

/// What a name can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A GGUF file that is no adapter; of several shards the first.
    Model,
    /// A LoRA adapter: a PEFT folder, or a GGUF file.
    Adapter,
}

/// A model or an adapter that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// That of its file without `.gguf` and the number of a shard, or of its folder.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// What opens it.
    pub path: PathBuf,
    /// Of its files.
    pub bytes: u64,
    /// A model's `general.architecture`, whether or not it can be run.
    pub architecture: Option<String>,
    /// It lies in the cache folder, so [`Library::remove`] may delete it.
    pub is_removable: bool,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Library {
    home: PathBuf,
}

/// Something in a folder by its name; what it is has not been looked at.
struct Candidate {
    name: String,
    path: PathBuf,
    is_removable: bool,
}

impl Library {
    /// That of [`cache_dir`].
    ///
    /// Errors: [`Error::InvalidArgument`] where there is no such folder.
    pub fn open() -> Result<Self> {
        let reason = "none is set, and there is no home; set it to a folder".into();
        let none = Error::InvalidArgument { name: "EPIPHYTE_CACHE", reason };
        cache_dir().map(Self::at).ok_or(none)
    }

    /// That of another cache folder, which need not be there.
    pub fn at(home: PathBuf) -> Self {
        Self { home }
    }

    /// The folders that are looked into, in order: the cache folder, then those that were added.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for a list of folders that is none.
    pub fn folders(&self) -> Result<Vec<PathBuf>> {
        Ok(std::iter::once(self.home.clone()).chain(self.added()?).collect())
    }

    fn added(&self) -> Result<Vec<PathBuf>> {
        let path = self.home.join(FOLDERS);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.map_err(|e| Error::io(&path, e))?,
        };
        serde_json::from_slice(&text).map_err(|_| {
            let reason = "not a JSON array of folders; delete it and add them again".into();
            Error::InvalidFile { path, reason }
        })
    }

    /// Adds a folder, whose models and adapters have names from now on.
    ///
    /// Errors: [`Error::InvalidArgument`] if it is none, or its name is no UTF-8; [`Error::Io`]; as
    /// [`Library::folders`].
    pub fn add(&self, folder: &Path) -> Result<()> {
        let invalid = |reason: String| Error::InvalidArgument { name: "folder", reason };
        if !folder.is_dir() {
            return Err(invalid(format!("{} is no folder; give one", folder.display())));
        }
        let folder = std::fs::canonicalize(folder).map_err(|e| Error::io(folder, e))?;
        if folder.to_str().is_none() {
            let shown = folder.display();
            return Err(invalid(format!("the name of {shown} is no UTF-8; give it another")));
        }
        let mut added = self.added()?;
        if !added.contains(&folder) {
            added.push(folder);
            self.write(&added)?;
        }
        Ok(())
    }

    /// Leaves a folder out again, which stays as it is; false if it was not added.
    ///
    /// Errors: as [`Library::add`].
    pub fn leave_out(&self, folder: &Path) -> Result<bool> {
        let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
        let (mut added, before) = (self.added()?, self.added()?.len());
        added.retain(|known| *known != whole && known != folder);
        if added.len() == before {
            return Ok(false);
        }
        self.write(&added).map(|()| true)
    }

    fn write(&self, added: &[PathBuf]) -> Result<()> {
        let path = self.home.join(FOLDERS);
        std::fs::create_dir_all(&self.home).map_err(|e| Error::io(&self.home, e))?;
        let text = serde_json::to_vec(added).map_err(|e| Error::io(&path, e.into()))?;
        write_whole(&path, &text)
    }

    /// Everything that has a name, folder by folder. Folders that can't be read have nothing.
    ///
    /// Errors: as [`Library::folders`].
    pub fn entries(&self) -> Result<Vec<Entry>> {
        Ok(self.candidates()?.into_iter().filter_map(Candidate::entry).collect())
    }

    /// The entry of a kind that `name` means, whatever its case: one of that name, else the only one
    /// whose name begins with it, up to a `-`, `_` or `.`. Of several with the same name the first.
    ///
    /// Errors: [`Error::InvalidArgument`] listing them where it may be several; as
    /// [`Library::folders`].
    pub fn find(&self, kind: EntryKind, name: &str) -> Result<Option<Entry>> {
        let name = name.to_lowercase();
        let means = |candidate: &Candidate| {
            let own = candidate.name.to_lowercase();
            let rest = own.strip_prefix(&name).filter(|_| !name.is_empty());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
        };
        let candidates = self.candidates()?.into_iter().filter(means);
        let of_kind = |entry: &Entry| entry.kind == kind;
        let mut found: Vec<Entry> =
            candidates.filter_map(Candidate::entry).filter(of_kind).collect();
        if let Some(exact) = found.iter().position(|entry| entry.name.to_lowercase() == name) {
            return Ok(Some(found.swap_remove(exact)));
        }
        let mut seen = BTreeSet::new();
        found.retain(|entry| seen.insert(entry.name.to_lowercase()));
        if found.len() > 1 {
            let names: Vec<_> = found.iter().take(SHOWN).map(|entry| entry.name.as_str()).collect();
            let reason = format!("`{name}` may be {}; say more of it", names.join(" or "));
            return Err(Error::InvalidArgument { name: "name", reason });
        }
        Ok(found.pop())
    }

    /// Deletes the model or adapter of the cache folder that has exactly this name; gives what it
    /// was.
    ///
    /// Errors: [`Error::InvalidArgument`] if there is none or several, it lies in a folder of one's
    /// own, or an adapter's folder holds something else; [`Error::Io`]; as [`Library::folders`].
    pub fn remove(&self, name: &str) -> Result<Entry> {
        let invalid = |reason: String| Error::InvalidArgument { name: "name", reason };
        let named = self.entries()?.into_iter().filter(|entry| entry.name == name);
        let (mut ours, others): (Vec<Entry>, Vec<_>) = named.partition(|entry| entry.is_removable);
        if let [first, second, ..] = ours.as_slice() {
            let (first, second) = (first.path.display(), second.path.display());
            return Err(invalid(format!(
                "{first} and {second} are both called so; delete one there"
            )));
        }
        let entry = ours.pop().ok_or_else(|| {
            invalid(match others.first() {
                Some(Entry { path, .. }) => {
                    format!("{} is in a folder of your own; delete it there", path.display())
                }
                None => format!("nothing is called `{name}`; say all of a name that is listed"),
            })
        })?;
        let remove = |path: &Path| std::fs::remove_file(path).map_err(|e| Error::io(path, e));
        let (files, is_folder) = (entry.files(), entry.path.is_dir());
        if is_folder && entry.path.is_symlink() {
            // What it leads to is not ours.
            return remove(&entry.path).map(|()| entry);
        }
        if is_folder && let Some(other) = paths_in(&entry.path).iter().find(|p| !files.contains(p))
        {
            let reason = format!("{} is no part of an adapter; look there first", other.display());
            return Err(invalid(reason));
        }
        files.iter().try_for_each(|path| remove(path))?;
        if is_folder {
            std::fs::remove_dir(&entry.path).map_err(|e| Error::io(&entry.path, e))?;
        }
        Ok(entry)
    }

    /// What may have a name, in the order of folders and names.
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut all = Vec::new();
        for folder in self.folders()? {
            let is_removable = folder == self.home;
            let paths = paths_in(&folder);
            let candidate =
                |path: PathBuf| Some(Candidate { name: name_of(&path)?, path, is_removable });
            all.extend(paths.into_iter().filter_map(candidate));
        }
        Ok(all)
    }
}

impl Candidate {
    /// What it is, if that has a name.
    fn entry(self) -> Option<Entry> {
        let Self { name, path, is_removable } = self;
        let kind = match FileKind::of(&path) {
            FileKind::Other if path.is_dir() => EntryKind::Adapter,
            FileKind::Model
            | FileKind::MergedModel
            | FileKind::StackedModel
            | FileKind::QuantizedModel => EntryKind::Model,
            FileKind::GgufAdapter => EntryKind::Adapter,
            FileKind::Safetensors | FileKind::Other => return None,
        };
        let mut entry = Entry { name, kind, path, bytes: 0, architecture: None, is_removable };
        if kind == EntryKind::Model {
            let gguf = Gguf::open(&entry.path).ok()?;
            entry.architecture = gguf.architecture().ok().map(String::from);
        }
        let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
        entry.bytes = entry.files().iter().map(size).sum();
        Some(entry)
    }
}

impl Entry {
    fn files(&self) -> Vec<PathBuf> {
        match self.path.is_dir() {
            true => peft_files(&self.path)[1..].to_vec(),
            false => shards_of(&self.path),
        }
    }
}

/// The name of a GGUF file, or of a folder that holds an adapter. Shards but the first have none.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    if path.is_dir() {
        let is_adapter = peft_files(path)[1..].iter().all(|file| file.is_file());
        return is_adapter.then(|| file.to_string());
    }
    let stem = file.strip_suffix(".gguf").filter(|stem| !stem.is_empty())?;
    let shard = stem.rsplit_once("-of-").and_then(|(rest, count)| {
        count.parse::<u32>().ok()?;
        let (name, number) = rest.rsplit_once('-')?;
        Some((name, number.parse::<u32>().ok()?))
    });
    match shard {
        Some((name, 1)) => Some(name.to_string()),
        Some(_) => None,
        None => Some(stem.to_string()),
    }
}
