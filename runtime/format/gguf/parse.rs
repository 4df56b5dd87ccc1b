//! The header of one GGUF file: every count, length, type and offset is checked here.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::value::{Cursor, FromValue, Parsed};
use super::{Entry, brief, invalid_key, invalid_tensor};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The format's limits: bytes of a key, bytes of a tensor's name, axes.
const MAX_KEY: usize = 65_535;
const MAX_TENSOR_NAME: usize = 64;
const MAX_DIMS: u32 = 4;
/// The least bytes of an entry: key length, type, value; name length, number of axes, one axis,
/// type, offset.
const MIN_KEY_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;
const DEFAULT_ALIGNMENT: u32 = 32;

/// What one file says.
pub(super) struct Header {
    pub(super) version: u32,
    /// Type and position of each value.
    pub(super) metadata: BTreeMap<String, (u32, usize)>,
    /// In the file's order, under the file's names.
    pub(super) tensors: Vec<Entry>,
}

/// A tensor's entry as read: `dims` fastest first, `offset` from the start of the data.
struct Info<'a> {
    name: &'a str,
    dims: Vec<u64>,
    ggml_type: u32,
    offset: u64,
}

/// Reads and checks a file's header; `path` is for errors.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let invalid = |reason| Error::InvalidFile { path: path.into(), reason };
    let cursor = &mut Cursor::new(bytes, 0);
    let version = version(cursor).map_err(invalid)??;
    let n_tensors = count(cursor, MIN_TENSOR_BYTES, "tensors").map_err(invalid)?;
    let n_keys = count(cursor, MIN_KEY_BYTES, "keys").map_err(invalid)?;

    let mut metadata = BTreeMap::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    for i in 0..n_keys {
        let key = cursor.string().map_err(|e| invalid(format!("key {i}: {e}")))?;
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(invalid(format!(
                "key {i} has {} bytes; 1 to {MAX_KEY} are allowed",
                key.len()
            )));
        }
        let Some(found) = value(cursor, key, &mut alignment)? else { continue };
        if metadata.insert(key.into(), found).is_some() {
            return Err(invalid_key(key, "given twice; convert the file again".into()));
        }
    }

    let mut names = HashSet::new();
    let mut infos = Vec::new();
    for i in 0..n_tensors {
        let info = info(cursor).map_err(|e| invalid(format!("tensor entry {i}: {e}")))?;
        if !names.insert(info.name) {
            return Err(invalid_tensor(info.name, "given twice; convert the file again".into()));
        }
        infos.push(info);
    }
    // Cannot overflow: a position is below 2^63 and an alignment below 2^32.
    let start = (cursor.position() as u64).next_multiple_of(alignment.into());
    let place = |info: &Info<'_>| place(info, start, alignment, bytes.len());
    let tensors = infos.iter().map(place).collect::<Result<Vec<_>>>()?;
    check_overlaps(&tensors)?;
    check_own_types(&tensors, |key| {
        let &(kind, at) = metadata.get(key)?;
        Cursor::new(bytes, at).value(kind).ok().and_then(u32::from_value)
    })?;
    Ok(Header { version, metadata, tensors })
}

/// Magic and version. The outer error is a file that is not GGUF.
fn version(cursor: &mut Cursor<'_>) -> Parsed<Result<u32>> {
    if cursor.u32()?.to_le_bytes() != *b"GGUF" {
        return Err("it does not begin with `GGUF`; give a GGUF model file".into());
    }
    let version = cursor.u32()?;
    let unsupported =
        |what: String, hint: &str| Ok(Err(Error::Unsupported { what, hint: hint.into() }));
    match version {
        2 | 3 => Ok(Ok(version)),
        // A small number in the wrong byte order.
        _ if (1..=0xffff).contains(&version.swap_bytes()) => {
            unsupported("big-endian GGUF".into(), "convert to little-endian")
        }
        _ => unsupported(format!("GGUF version {version}"), "convert the file again, to version 3"),
    }
}

/// A number of entries that the rest of the file has room for.
fn count(cursor: &mut Cursor<'_>, min_bytes: u64, what: &str) -> Parsed<u64> {
    let n = cursor.u64()?;
    // Both counts come before the entries, so a little more than the truth is let through.
    let fits = n.checked_mul(min_bytes).is_some_and(|bytes| bytes <= cursor.remaining());
    fits.then_some(n)
        .ok_or_else(|| format!("{n} {what} don't fit in the file; it is cut short or damaged"))
}

/// Whether a key only informs, so that the file can do without it.
fn is_note(key: &str) -> bool {
    let groups = ["general.", "quantize.", "split.", "tokenizer.chat_template"];
    groups.iter().any(|group| key.starts_with(group))
        && !["general.architecture", "general.alignment"].contains(&key)
}

/// Steps over a value, checking it; notes the alignment on the way. Returns its type and position;
/// `None` for a damaged one that nothing depends on.
fn value(cursor: &mut Cursor<'_>, key: &str, alignment: &mut u32) -> Result<Option<(u32, usize)>> {
    let invalid = |reason| invalid_key(key, reason);
    let kind = cursor.u32().map_err(invalid)?;
    let position = cursor.position();
    let before = cursor.clone();
    let value = match cursor.value(kind) {
        Ok(value) => value,
        Err(reason) if is_note(key) => {
            *cursor = before;
            cursor.skip(kind).map_err(invalid)?;
            log::warn!("{}; passed over", invalid(reason));
            return Ok(None);
        }
        Err(reason) => return Err(invalid(reason)),
    };
    if key == "general.alignment" {
        let power = u32::from_value(value).filter(|v| v.is_power_of_two());
        *alignment = power
            .ok_or_else(|| invalid(format!("a power of two is needed, found {}", brief(value))))?;
    }
    Ok(Some((kind, position)))
}

fn info<'a>(cursor: &mut Cursor<'a>) -> Parsed<Info<'a>> {
    let name = cursor.string()?;
    if name.is_empty() || name.len() > MAX_TENSOR_NAME {
        return Err(format!(
            "its name has {} bytes; 1 to {MAX_TENSOR_NAME} are allowed",
            name.len()
        ));
    }
    let n_dims = cursor.u32()?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(format!("`{name}` has {n_dims} axes; 1 to {MAX_DIMS} are allowed"));
    }
    let dims = (0..n_dims).map(|_| cursor.u64()).collect::<Parsed<_>>()?;
    Ok(Info { name, dims, ggml_type: cursor.u32()?, offset: cursor.u64()? })
}

/// Checks a tensor's type, shape and place in a file of `len` bytes whose data begin at `start`.
fn place(info: &Info<'_>, start: u64, alignment: u32, len: usize) -> Result<Entry> {
    let Info { name, dims, ggml_type, offset } = info;
    let invalid = |reason: String| invalid_tensor(name, reason);
    let dtype = DType::from_ggml(*ggml_type).map_err(|e| match e {
        Error::Unsupported { what, hint } => {
            Error::Unsupported { what: format!("tensor `{name}`: {what}"), hint }
        }
        other => other,
    })?;
    let shape = dims.iter().rev().map(|&dim| usize::try_from(dim).ok().filter(|&dim| dim > 0));
    let shape: Option<Vec<usize>> = shape.collect();
    let weights = shape
        .as_ref()
        .and_then(|shape| shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim)));
    let (Some(shape), Some(weights)) = (shape, weights) else {
        return Err(invalid(format!("the shape {dims:?} is empty or too large")));
    };
    let row_len = shape[shape.len() - 1];
    if !row_len.is_multiple_of(dtype.block_len()) {
        let (ty, block) = (dtype.name(), dtype.block_len());
        return Err(invalid(format!(
            "rows of {row_len} weights are not whole {ty} blocks of {block}"
        )));
    }
    let n_bytes =
        dtype.bytes(weights).ok_or_else(|| invalid(format!("the shape {dims:?} is too large")))?;
    if !offset.is_multiple_of(alignment.into()) {
        return Err(invalid(format!(
            "its offset {offset} is not a multiple of the alignment {alignment}"
        )));
    }
    let range = start.checked_add(*offset).and_then(|at| within(at, n_bytes, len));
    let reason = || {
        format!("{n_bytes} bytes at offset {offset} go past the end of the file; download it again")
    };
    let range = range.ok_or_else(|| invalid(reason()))?;
    let (file_name, name) = ((*name).into(), String::new());
    Ok(Entry { file_name, name, known: false, dtype, shape, shard: 0, range, interleaved: None })
}

/// The range of `n` bytes from `at` on, if it lies inside `len` bytes.
fn within(at: u64, n: usize, len: usize) -> Option<Range<usize>> {
    let at = usize::try_from(at).ok()?;
    at.checked_add(n).filter(|&end| end <= len).map(|end| at..end)
}

/// That a type of ours is what the file means by its number: `key` gives a key's number.
fn check_own_types(tensors: &[Entry], key: impl Fn(&str) -> Option<u32>) -> Result<()> {
    let own = tensors.iter().filter(|entry| entry.dtype.is_own());
    for Entry { file_name, dtype, .. } in own {
        if key(&dtype.own_key()) != Some(dtype.ggml_type()) {
            return Err(Error::Unsupported {
                what: format!("tensor `{file_name}`: ggml tensor type {}", dtype.ggml_type()),
                hint: format!("only with the key `{}`; convert the file again", dtype.own_key()),
            });
        }
    }
    Ok(())
}

fn check_overlaps(tensors: &[Entry]) -> Result<()> {
    let mut by_place: Vec<_> = tensors.iter().collect();
    by_place.sort_unstable_by_key(|entry| entry.range.start);
    for pair in by_place.windows(2) {
        if let [a, b] = pair
            && b.range.start < a.range.end
        {
            return Err(invalid_tensor(
                &b.file_name,
                format!("overlaps tensor `{}`; convert again", a.file_name),
            ));
        }
    }
    Ok(())
}
