//! What a command reads and what it writes: no output may be an input, another output, or a file of
//! another kind.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::ModelFile;
use epiphyte::FileKind;
use epiphyte::adapter::peft_files;
use epiphyte::checkpoint::{Checkpoint, checkpoint_files};
use epiphyte::error::{Error, Result};
use epiphyte::format::gguf::shards_of;
use epiphyte::format::is_in_place;
use epiphyte::quantize::Imatrix;
use epiphyte::train::signals::StepRecord;

/// Links that lead to links, at most.
const MAX_LINKS: usize = 40;
/// Bytes of a file by which its kind is known.
const HEAD: u64 = 4096;

/// The files of a command.
#[derive(Default)]
pub(super) struct Files {
    inputs: Vec<Named>,
    outputs: Vec<(Named, Kind)>,
}

/// A path and where it was given.
#[derive(Clone)]
struct Named {
    /// For people, as in `the data`.
    noun: &'static str,
    /// As the help spells it.
    option: &'static str,
    path: PathBuf,
}

/// What a command writes: a file that is there is replaced when it is of the same kind, or empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// LoRA as GGUF.
    Adapter,
    /// LoRA as a PEFT folder.
    AdapterFolder,
    /// Base and adapters as one GGUF.
    MergedModel,
    /// Layers of models as one GGUF.
    StackedModel,
    /// A model in another format.
    QuantizedModel,
    /// Importance of columns.
    Imatrix,
    /// A checkpoint's folder.
    CheckpointFolder,
    /// SVG or PNG.
    Picture,
    /// Steps of a training, a line of JSON each.
    StepLog,
    /// What a device sends.
    Delta,
    /// A published version of an adapter.
    Version,
    /// A part of a round of averaging.
    Part,
    /// What quantising lost.
    Residual,
    /// What a server's optimizer remembers.
    ServerState,
    /// What became of a round, as JSON or HTML.
    Report,
    /// Texts' vectors, as safetensors or `.npy`.
    Vectors,
    /// A classifier on such vectors.
    Classifier,
}

impl Files {
    /// The base model, with all its shards.
    pub(super) fn model(mut self, model: &ModelFile) -> Result<Self> {
        for path in shards_of(&model.path()?) {
            self = self.reads("the base model", "--model", &path);
        }
        Ok(self)
    }

    /// A file, or a folder with all files in it.
    pub(super) fn reads(mut self, noun: &'static str, option: &'static str, path: &Path) -> Self {
        let inside =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let all = std::iter::once(path.to_path_buf()).chain(inside.filter(|path| path.is_file()));
        self.inputs.extend(all.map(|path| Named { noun, option, path }));
        self
    }

    pub(super) fn writes(mut self, option: &'static str, path: &Path, kind: Kind) -> Self {
        self.outputs.push((Named { noun: kind.noun(), option, path: path.into() }, kind));
        self
    }

    /// That no output destroys anything; with `overwrite` files of another kind may go; `None`
    /// where there is no such option. Opens only outputs that are there.
    ///
    /// Errors: [`Error::InvalidArgument`] naming both options, or a folder that is missing;
    /// [`Error::InvalidFile`] for a file of another kind.
    pub(super) fn check(&self, overwrite: Option<bool>) -> Result<()> {
        let mut taken: Vec<(&Named, Identity)> = Vec::new();
        for (output, kind) in self.outputs.iter().filter(|(output, _)| !is_in_place(&output.path)) {
            let own = kind
                .files(&output.path)
                .into_iter()
                .map(|path| Identity::of(&path))
                .collect::<Vec<_>>();
            let is_own = |other: &Identity| own.iter().any(|own| own.is(other));
            if let Some(input) = self.inputs.iter().find(|input| is_own(&Identity::of(&input.path)))
            {
                let Named { noun, option, .. } = input;
                return Err(
                    output.clash(&format!("{noun} that `{option}` names, which stays as it is"))
                );
            }
            if let Some((other, _)) = taken.iter().find(|(_, other)| is_own(other)) {
                return Err(output.clash(&format!("also what `{}` writes", other.option)));
            }
            output.check_folder(*kind)?;
            output.check_kind(*kind, overwrite)?;
            taken.extend(own.into_iter().map(|own| (output, own)));
        }
        Ok(())
    }
}

impl Named {
    fn clash(&self, is: &str) -> Error {
        let reason = format!("{} is {is}; give another name", self.path.display());
        Error::InvalidArgument { name: self.option, reason }
    }

    /// That there is a folder to write to; a PEFT folder is made.
    fn check_folder(&self, kind: Kind) -> Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        match folder.filter(|folder| !kind.is_folder() && !folder.is_dir()) {
            None => Ok(()),
            Some(folder) => {
                let reason = format!("there is no folder {} to write to", folder.display());
                Err(Error::InvalidArgument { name: self.option, reason })
            }
        }
    }

    fn check_kind(&self, kind: Kind, overwrite: Option<bool>) -> Result<()> {
        let invalid = |reason: String| Err(Error::InvalidFile { path: self.path.clone(), reason });
        match std::fs::metadata(&self.path) {
            Ok(found) if kind.is_folder() && !found.is_dir() => {
                invalid("a file has that name; give a folder".into())
            }
            Ok(found) if !kind.is_folder() && found.is_dir() => {
                invalid(format!("a folder has that name; `{}` is the file to write", self.option))
            }
            Ok(found) if found.len() > 0 && overwrite != Some(true) && !kind.is(&self.path) => {
                let (option, noun) = (self.option, kind.noun());
                let or = if overwrite.is_some() { ", or `--overwrite`" } else { "" };
                invalid(format!(
                    "it is there already and is not {noun}, which is what `{option}` writes; give \
                    another name{or}"
                ))
            }
            _ => Ok(()),
        }
    }
}

impl Kind {
    fn is_folder(self) -> bool {
        matches!(self, Self::AdapterFolder | Self::CheckpointFolder)
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Adapter => "an adapter in GGUF",
            Self::AdapterFolder => "an adapter's folder",
            Self::MergedModel => "a merged model",
            Self::StackedModel => "a stacked model",
            Self::QuantizedModel => "a model that `quantize` wrote",
            Self::Imatrix => "an imatrix",
            Self::CheckpointFolder => "a checkpoint's folder",
            Self::Picture => "a picture",
            Self::StepLog => "a log of training steps",
            Self::Delta => "a delta",
            Self::Version => "a version of an adapter",
            Self::Part => "a part of a round",
            Self::Residual => "a residual",
            Self::ServerState => "a server's state",
            Self::Report => "a report of a round",
            Self::Vectors => "vectors of texts",
            Self::Classifier => "a classifier",
        }
    }

    /// What is written for `path`.
    fn files(self, path: &Path) -> Vec<PathBuf> {
        match self {
            Self::AdapterFolder => peft_files(path).into(),
            Self::CheckpointFolder => checkpoint_files(path).into(),
            _ => vec![path.into()],
        }
    }

    /// Whether what is at `path` is of this kind. A folder is judged by who writes to it.
    fn is(self, path: &Path) -> bool {
        match self {
            Self::Adapter => FileKind::of(path) == FileKind::GgufAdapter,
            Self::AdapterFolder => true,
            Self::CheckpointFolder => is_empty(path) || Checkpoint::is_one(path),
            Self::MergedModel => FileKind::of(path) == FileKind::MergedModel,
            Self::StackedModel => FileKind::of(path) == FileKind::StackedModel,
            Self::QuantizedModel => FileKind::of(path) == FileKind::QuantizedModel,
            Self::Imatrix => Imatrix::open(path).is_ok(),
            Self::Picture => {
                let head = head(path);
                let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head).trim_ascii_start();
                head.starts_with(b"\x89PNG\r\n\x1a\n")
                    || text.starts_with(b"<svg")
                    || text.starts_with(b"<?xml")
            }
            Self::Delta => says(path, "epiphyte.delta."),
            Self::Version => says(path, "epiphyte.manifest"),
            Self::Part => says(path, "epiphyte.partial."),
            Self::Residual => says(path, "epiphyte.residual."),
            Self::Vectors => {
                head(path).starts_with(b"\x93NUMPY") || says(path, "epiphyte.embeddings.")
            }
            Self::Classifier => says(path, "epiphyte.classifier."),
            Self::ServerState => says(path, "epiphyte.server_state."),
            Self::Report => {
                let head = head(path);
                head.starts_with(b"{\n  \"adapter\"") || head.starts_with(b"<!doctype html>")
            }
            Self::StepLog => {
                let head = head(path);
                match head.iter().position(|byte| *byte == b'\n') {
                    Some(end) => serde_json::from_slice::<StepRecord>(&head[..end]).is_ok(),
                    // The first step was cut short.
                    None => head.starts_with(b"{\"step\":"),
                }
            }
        }
    }
}

/// Whether a folder holds nothing.
fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether the head of a safetensors file names a format.
fn says(path: &Path, format: &str) -> bool {
    head(path).windows(format.len()).any(|window| window == format.as_bytes())
}

fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    // What can't be read is of no kind.
    let _ = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    head
}

/// What a path leads to.
struct Identity {
    /// Device and inode; `None` for what is not there.
    inode: Option<[u64; 2]>,
    path: PathBuf,
}

impl Identity {
    fn of(path: &Path) -> Self {
        Self {
            inode: std::fs::metadata(path).ok().and_then(|found| inode(&found)),
            path: resolve(path, MAX_LINKS),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self.inode, other.inode) {
            (Some(a), Some(b)) => a == b,
            _ => same_name(&self.path, &other.path),
        }
    }
}

#[cfg(unix)]
fn inode(found: &std::fs::Metadata) -> Option<[u64; 2]> {
    use std::os::unix::fs::MetadataExt;
    Some([found.dev(), found.ino()])
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> Option<[u64; 2]> {
    None
}

/// Whether two names are one where files are told apart by name alone.
fn same_name(a: &Path, b: &Path) -> bool {
    let ignores_case = cfg!(any(windows, target_os = "macos", target_os = "ios"));
    a == b
        || ignores_case && a.to_string_lossy().to_lowercase() == b.to_string_lossy().to_lowercase()
}

/// The path without links and dots, of what is there and of what is not yet.
fn resolve(path: &Path, links: usize) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (std::fs::read_link(path), path.file_name()) {
        (Ok(target), _) if links > 0 => resolve(&parent.join(target), links - 1),
        (_, Some(name)) => resolve(parent, links).join(name),
        // `..` of a folder that is not there.
        (_, None) => std::path::absolute(path).unwrap_or_else(|_| path.into()),
    }
}
