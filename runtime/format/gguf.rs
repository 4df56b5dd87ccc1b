//! GGUF v2 and v3: metadata and checked views of the tensors, under their Hugging Face names.
//!
//! In: a file, its shards, or bytes in memory. Out: [`Value`]s and [`TensorView`]s borrowed from
//! them. The whole of the header is validated before anything is handed out; weights are not read.
//!
//! Files of llama and its like hold the rows of q and k with the two halves of each head interleaved (row `2 i +
//! half`), for a rotation of neighbouring pairs. Views undo it: everywhere else rows are in Hugging
//! Face's order (row `half * head_dim/2 + i`), which rotates halves.
//!
//! Source: the format's description, `docs/gguf.md` of ggml.

mod names;
mod parse;
mod shards;
mod value;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use names::hf_name;
pub(crate) use names::{gguf_name, hf_name_in, interleaves};
pub use shards::shards_of;
pub use value::{Array, FromValue, Value};

use super::{Bytes, TensorView, map, map_part};
use crate::dtype::DType;
use crate::error::{Error, Result};
use shards::{missing_shard, shard_path};
use value::Cursor;

/// An open model file: metadata and tensors of all its shards.
pub struct Gguf {
    path: PathBuf,
    version: u32,
    shards: Vec<Bytes>,
    /// Type and position of each value, in the first shard.
    metadata: BTreeMap<String, (u32, usize)>,
    /// Those of the files, then the linears that are parts of some.
    tensors: Vec<Entry>,
    /// How many are of the files.
    n_stored: usize,
    /// Index into `tensors` by Hugging Face name.
    by_name: HashMap<String, usize>,
}

/// A tensor's checked place in a shard.
#[derive(Clone)]
struct Entry {
    /// As the file spells it.
    file_name: String,
    name: String,
    known: bool,
    dtype: DType,
    shape: Vec<usize>,
    shard: usize,
    range: Range<usize>,
    interleaved: Option<usize>,
}

impl Gguf {
    /// Maps a file; for a sharded model the first shard, whose siblings (`-00002-of-00003.gguf`)
    /// lie in its folder. The files must not be changed while they are open.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for a file that is not GGUF, is cut short or
    /// lacks a shard; [`Error::InvalidMetadata`] and [`Error::InvalidTensor`] naming the entry;
    /// [`Error::Unsupported`] for GGUF v1, big-endian files and unknown tensor types.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut gguf = Self::parse(path, Box::new(map(path)?))?;
        let count = gguf.expect_split(0, None)?;
        for no in 1..count {
            let path = shard_path(path, no, count)?;
            let mapped = map(&path).map_err(|e| missing_shard(e, &path, no, count))?;
            let shard = Self::parse(&path, Box::new(mapped))?;
            shard.expect_split(no, Some(count))?;
            gguf.absorb(shard);
        }
        gguf.finish()
    }

    /// Maps a model that is part of an open file, such as an entry that an archive holds as it is:
    /// `length` bytes from `offset` on, or all to the end. It has to be whole (not one of several
    /// shards); `name` is for errors. The file may be closed afterwards, and must not be changed.
    ///
    /// Errors: as [`Self::open`].
    pub fn open_part(file: &File, offset: u64, length: Option<u64>, name: &str) -> Result<Self> {
        let name = Path::new(name);
        Self::whole(name, Box::new(map_part(file, name, offset, length)?))
    }

    /// Reads a model in memory, given whole (not one of several shards).
    ///
    /// Errors: as [`Self::open`], with `<memory>` for the path.
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        Self::whole(Path::new("<memory>"), Box::new(bytes))
    }

    /// A model in one piece.
    fn whole(name: &Path, bytes: Bytes) -> Result<Self> {
        let gguf = Self::parse(name, bytes)?;
        match gguf.expect_split(0, None)? {
            1 => gguf.finish(),
            count => Err(gguf.invalid(format!(
                "this is one of {count} shards; merge them or open the first by path"
            ))),
        }
    }

    /// The file, or the first of its shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// GGUF version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of all shards.
    pub fn n_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| (**shard).as_ref().len() as u64).sum()
    }

    /// The model family, e.g. `llama`: also the prefix of its keys.
    ///
    /// Errors: [`Error::InvalidMetadata`] when the file does not say.
    pub fn architecture(&self) -> Result<&str> {
        self.get("general.architecture")
    }

    /// Every key with its value, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.metadata.keys().filter_map(|key| Some((key.as_str(), self.value(key)?)))
    }

    /// Every key with its value's type (`gguf_metadata_value_type`) and bytes, to be written again.
    pub(crate) fn raw_metadata(&self) -> impl Iterator<Item = (&str, u32, &[u8])> {
        self.metadata.iter().filter_map(|(key, &(kind, position))| {
            let bytes = (**self.shards.first()?).as_ref();
            let mut cursor = Cursor::new(bytes, position);
            cursor.value(kind).ok()?;
            Some((key.as_str(), kind, &bytes[position..cursor.position()]))
        })
    }

    /// A key's value as the type that the caller needs.
    ///
    /// Errors: [`Error::InvalidMetadata`] when the key is missing, of another type or out of range.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        let missing = || invalid_key(key, format!("missing; {} is needed", T::expected()));
        self.find(key)?.ok_or_else(missing)
    }

    /// As [`Self::get`], for a key that may be missing.
    ///
    /// Errors: [`Error::InvalidMetadata`] when it is of another type or out of range.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong =
            || invalid_key(key, format!("{} is needed, found {}", T::expected(), brief(value)));
        T::from_value(value).ok_or_else(wrong).map(Some)
    }

    /// As [`Self::find`], for a key that only informs: a value of another type is passed over with
    /// a warning.
    pub(crate) fn find_note<'a, T: FromValue<'a>>(&'a self, key: &str) -> Option<T> {
        self.find(key).unwrap_or_else(|error| {
            log::warn!("{error}; passed over");
            None
        })
    }

    /// Every tensor, in the order of the files. Where a file holds several linears as one, that
    /// one.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors[..self.n_stored].iter().map(|entry| self.view(entry))
    }

    /// Names of tensors that no model here uses; they keep the name the file gives.
    pub fn ignored(&self) -> impl Iterator<Item = &str> {
        let stored = &self.tensors[..self.n_stored];
        stored.iter().filter(|entry| !entry.known).map(|entry| entry.name.as_str())
    }

    /// A tensor by Hugging Face name, e.g. `model.norm.weight`, or a linear that is a part of one.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).and_then(|&i| self.tensors.get(i)).map(|entry| self.view(entry))
    }

    /// As [`Self::tensor`], for one that must be there.
    ///
    /// Errors: [`Error::MissingTensor`].
    pub fn require(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensor(name).ok_or_else(|| Error::MissingTensor { name: name.into() })
    }

    fn parse(path: &Path, bytes: Bytes) -> Result<Self> {
        let parse::Header { version, metadata, tensors } = parse::parse(path, (*bytes).as_ref())?;
        Ok(Self {
            path: path.into(),
            version,
            shards: vec![bytes],
            metadata,
            tensors,
            n_stored: 0,
            by_name: HashMap::new(),
        })
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        let data = &(*self.shards[entry.shard]).as_ref()[entry.range.clone()];
        let Entry { name, dtype, shape, interleaved, .. } = entry;
        TensorView { name, dtype: *dtype, shape, data, interleaved: *interleaved }
    }

    fn value(&self, key: &str) -> Option<Value<'_>> {
        let &(kind, position) = self.metadata.get(key)?;
        Cursor::new((**self.shards.first()?).as_ref(), position).value(kind).ok()
    }

    fn invalid(&self, reason: String) -> Error {
        Error::InvalidFile { path: self.path.clone(), reason }
    }

    /// Checks that this is shard `no`; returns how many there are.
    fn expect_split(&self, no: u32, count: Option<u32>) -> Result<u32> {
        let found_count = self.find_note("split.count").unwrap_or(1).max(1);
        let found_no = self.find_note("split.no").unwrap_or(0);
        if no == 0 && found_no != 0 {
            return Err(self.invalid(format!(
                "this is shard {} of {found_count}; open the first",
                found_no + 1
            )));
        }
        let count = count.unwrap_or(found_count);
        if (found_no, found_count) != (no, count) {
            let found = format!("it says it is shard {} of {found_count}", u64::from(found_no) + 1);
            return Err(self.invalid(format!(
                "{found}, but is named {} of {count}; download it again",
                no + 1
            )));
        }
        Ok(count)
    }

    fn absorb(&mut self, mut shard: Self) {
        let first = self.shards.len();
        self.shards.append(&mut shard.shards);
        self.tensors.extend(
            shard.tensors.into_iter().map(|entry| Entry { shard: entry.shard + first, ..entry }),
        );
    }

    /// Names the tensors, once all shards are there.
    fn finish(mut self) -> Result<Self> {
        if let Some(n) = self
            .find_note::<u32>("split.tensors.count")
            .filter(|&n| n as usize != self.tensors.len())
        {
            let wrong = invalid_key(
                "split.tensors.count",
                format!("{n}, but the shards hold {}", self.tensors.len()),
            );
            if self.shards.len() > 1 {
                return Err(wrong);
            }
            log::warn!("{wrong}; passed over, as this is the only one");
        }
        let architecture = self.find_note("general.architecture").unwrap_or("llama").to_string();
        let mut tensors = std::mem::take(&mut self.tensors);
        let mut parts = Vec::new();
        for entry in &mut tensors {
            let hf = hf_name_in(&architecture, &entry.file_name);
            entry.known = hf.is_some();
            entry.name = hf.unwrap_or_else(|| entry.file_name.clone());
            entry.interleaved = self.interleaved(&architecture, entry)?;
            parts.extend(self.parts(&architecture, entry)?);
        }
        self.n_stored = tensors.len();
        tensors.append(&mut parts);
        for (i, entry) in tensors.iter().enumerate() {
            if self.by_name.insert(entry.name.clone(), i).is_some() {
                return Err(invalid_tensor(
                    &entry.file_name,
                    "given twice; convert the file again".into(),
                ));
            }
        }
        self.tensors = tensors;
        Ok(self)
    }

    /// The linears that a tensor holds: blocks do not cross rows, so that rows can be told apart.
    fn parts(&self, architecture: &str, entry: &Entry) -> Result<Vec<Entry>> {
        let names = names::parts(architecture, &entry.name);
        let [rows, k] = entry.shape[..] else { return Ok(Vec::new()) };
        let shares = match names.len() {
            0 => return Ok(Vec::new()),
            // q, k and v by their heads, gate and up alike.
            3 => {
                let (heads, kv_heads) = self.head_counts(architecture)?;
                vec![heads as usize, kv_heads as usize, kv_heads as usize]
            }
            n => vec![1; n],
        };
        let all = shares.iter().try_fold(0_usize, |all, &share| all.checked_add(share));
        let Some(all) = all.filter(|&all| all > 0 && rows.is_multiple_of(all)) else {
            let reason =
                format!("{rows} rows can't be split by {shares:?}; convert the file again");
            return Err(invalid_tensor(&entry.file_name, reason));
        };
        let (size, row_bytes) = (rows / all, entry.range.len() / rows);
        let mut from = entry.range.start;
        let part = |(name, share): (String, usize)| {
            let range = from..from + share * size * row_bytes;
            from = range.end;
            Entry { name, shape: vec![share * size, k], range, ..entry.clone() }
        };
        Ok(names.into_iter().zip(shares).map(part).collect())
    }

    /// Heads of queries, and of keys and values.
    fn head_counts(&self, architecture: &str) -> Result<(u32, u32)> {
        let count = |what: &str| format!("{architecture}.attention.{what}");
        let all: u32 = self.get(&count("head_count"))?;
        Ok((all, self.find(&count("head_count_kv"))?.unwrap_or(all)))
    }

    /// Rows of a head, for the tensors that llama files interleave.
    fn interleaved(&self, architecture: &str, entry: &Entry) -> Result<Option<usize>> {
        let is = |module: &str| {
            entry.name.split_once(".self_attn.").is_some_and(|(_, m)| m.starts_with(module))
        };
        let (q, k) = (is("q_proj."), is("k_proj."));
        let is_said = self.find("general.architecture")? == Some(architecture);
        if !entry.known || !(q || k) || !is_said || !interleaves(architecture) {
            return Ok(None);
        }
        let (all, kv_heads) = self.head_counts(architecture)?;
        let heads = if q { all } else { kv_heads };
        let rows = entry.shape[0];
        let head = rows.checked_div(heads as usize).unwrap_or(0);
        let blocks_move_whole = entry.shape.len() > 1 || entry.dtype.block_len() == 1;
        if head == 0 || head % 2 == 1 || head * heads as usize != rows || !blocks_move_whole {
            let reason = format!(
                "{rows} rows can't be split into {heads} heads of an even size; convert the file \
                again"
            );
            return Err(invalid_tensor(&entry.file_name, reason));
        }
        Ok(Some(head))
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path.display(), self.n_stored)
    }
}

/// A value short enough for a message.
fn brief(value: Value<'_>) -> String {
    match value {
        Value::String(_) => "text".into(),
        other => other.to_string(),
    }
}

fn invalid_key(key: &str, reason: String) -> Error {
    Error::InvalidMetadata { key: key.into(), reason }
}

fn invalid_tensor(name: &str, reason: String) -> Error {
    Error::InvalidTensor { name: name.into(), reason }
}
