//! Files in and out: every name, length and offset of a file is checked here, so the floors above
//! can trust them. What is in them, a base or an adapter, is theirs to know.

pub mod gguf;
pub(crate) mod gguf_writer;
pub(crate) mod safetensors;
pub(crate) mod staged;
pub(crate) mod twice;

use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapOptions};

use crate::dtype::DType;
use crate::error::{Error, Result};

pub use staged::{is_in_place, remove_unfinished};

/// The bytes of one file: a mapping, or memory that the caller gave.
pub(crate) type Bytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Writes a file that appears whole or not at all.
///
/// Errors: [`Error::Io`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    staged::Staged::write(path, bytes)?.commit()
}

/// What is in a folder, in order; nothing where it can't be read.
pub(crate) fn paths_in(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = paths.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Opens a regular file for reading.
pub(crate) fn open(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !kind.is_file() {
        // Opening a pipe would block and mapping a folder fails obscurely.
        return Err(Error::InvalidFile {
            path: path.into(),
            reason: "not a regular file; give a model file".into(),
        });
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// A regular file's bytes, at most `most`; no more are asked for than it has.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_into(Vec::new(), path, most)
}

/// As [`read`], in the memory of `room`.
pub(crate) fn read_into(mut room: Vec<u8>, path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let io = |e| Error::io(path, e);
    let n_bytes = file.metadata().map_err(io)?.len();
    if n_bytes > most {
        let reason = format!("{n_bytes} bytes; at most {most} are read");
        return Err(Error::InvalidFile { path: path.into(), reason });
    }
    room.clear();
    room.reserve(n_bytes as usize);
    file.take(most).read_to_end(&mut room).map_err(io)?;
    Ok(room)
}

/// Maps a regular file read-only.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = open(path)?;
    map_part(&file, path, 0, None)
}

/// Maps `length` bytes of an open regular file from `offset` on, or all to its end; errors call it
/// `name`. The mapping outlives the file.
pub(crate) fn map_part(file: &File, name: &Path, offset: u64, length: Option<u64>) -> Result<Mmap> {
    let kind = file.metadata().map_err(|e| Error::io(name, e))?;
    let rest = kind.len().checked_sub(offset).filter(|_| kind.is_file());
    let length = rest.and_then(|rest| {
        let length = length.unwrap_or(rest);
        usize::try_from(length).ok().filter(|_| length <= rest)
    });
    let invalid = |reason: &str| Error::InvalidFile { path: name.into(), reason: reason.into() };
    let length = length.ok_or_else(|| {
        invalid("not a regular file that holds these bytes; give where the model lies in it")
    })?;
    // SAFETY: the mapping is read-only and private to this process. Rust can't stop another process
    // from changing the file; callers' docs ask for it to be left alone, and nothing read from it
    // is trusted without a bounds check.
    unsafe { MmapOptions::new().offset(offset).len(length).map(file) }
        .map_err(|e| Error::io(name, e))
}

/// A tensor inside a file: its checked description and its bytes, in Hugging Face's order of rows.
///
/// Cheap to make; nothing is copied until the bytes are asked for, and then only when rows have to
/// be reordered.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    /// Hugging Face module path, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: &'a str,
    /// How the weights are stored.
    pub dtype: DType,
    /// Row-major: `[N, K]` for a matrix of N rows, `[N]` for a vector. Never empty, no zero in it.
    pub shape: &'a [usize],
    /// As in the file; not necessarily aligned to the type.
    data: &'a [u8],
    /// Rows of a head, when the file interleaves the two halves of each (see [`gguf`]).
    interleaved: Option<usize>,
}

impl<'a> TensorView<'a> {
    /// Rows: the product of every axis but the last. A vector is one row.
    pub fn n_rows(&self) -> usize {
        self.n_weights() / self.row_len()
    }

    /// Weights in a row.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of a row; a whole number of blocks.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.n_rows()
    }

    /// Weights in all.
    pub fn n_weights(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in all.
    pub fn n_bytes(&self) -> usize {
        self.data.len()
    }

    /// The bytes of `count` rows from row `start` on: borrowed from the file, or gathered when the
    /// file orders the rows otherwise. Ask for few enough rows to keep a piece small.
    ///
    /// Panics when `start + count` is past [`Self::n_rows`], as slicing does.
    pub fn rows(&self, start: usize, count: usize) -> Cow<'a, [u8]> {
        match (self.interleaved, self.shape) {
            // A vector's single row is itself what has to be reordered.
            (Some(head), &[n]) => {
                Cow::Owned(self.gather(head, start * n..(start + count) * n, self.data.len() / n))
            }
            (Some(head), _) => {
                Cow::Owned(self.gather(head, start..start + count, self.row_bytes()))
            }
            (None, _) => {
                Cow::Borrowed(&self.data[start * self.row_bytes()..][..count * self.row_bytes()])
            }
        }
    }

    /// All the bytes, as [`Self::rows`] gives them.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        self.rows(0, self.n_rows())
    }

    /// All the weights as f32, in the order of [`Self::bytes`].
    pub(crate) fn to_f32(self) -> Vec<f32> {
        let bytes = self.bytes();
        safetensors::to_f32(self.dtype, &bytes).unwrap_or_else(|| {
            let mut values = vec![0.0; self.n_weights()];
            crate::quant::format(self.dtype).dequantize(&bytes, &mut values);
            values
        })
    }

    /// The same tensor with its rows as the file orders them.
    pub(crate) fn in_file_order(self) -> Self {
        self.interleaved(None)
    }

    /// The same tensor, of whose heads the file interleaves the halves; rows of a head.
    pub(crate) fn interleaved(self, interleaved: Option<usize>) -> Self {
        Self { interleaved, ..self }
    }

    /// Where the file's row `row` is in Hugging Face's order.
    pub(crate) fn hf_row(&self, row: usize) -> usize {
        let Some(head) = self.interleaved else { return row };
        let (first, at) = (row - row % head, row % head);
        first + at % 2 * (head / 2) + at / 2
    }

    /// Copies units (rows, or a vector's weights) of `size` bytes: the one at `half * head/2 + i`
    /// of a head comes from `2 * i + half`.
    fn gather(&self, head: usize, units: Range<usize>, size: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(units.len() * size);
        for unit in units {
            let (first, at) = (unit - unit % head, unit % head);
            let (half, i) = (at / (head / 2), at % (head / 2));
            out.extend_from_slice(&self.data[(first + 2 * i + half) * size..][..size]);
        }
        out
    }
}

impl std::fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {:?}", self.name, self.dtype.name(), self.shape)
    }
}
