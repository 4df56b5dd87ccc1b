//! Safetensors: tensors read one by one from a checked header, as f32.
//!
//! The file is read, not mapped: an adapter may be replaced on disk while it loads.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView, serialize};

use super::twice::Twice;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Far above a real header: about 100 bytes a tensor.
const MAX_HEADER: u64 = 16 << 20;

/// The bytes of a file. Equal contents give equal bytes: `serialize` alone leaves the metadata in
/// any order.
///
/// Errors: as [`serialize`].
pub(crate) fn to_bytes<'a>(
    tensors: Vec<(&'a str, TensorView<'a>)>,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, SafeTensorError> {
    let mut bytes = serialize(tensors, Some(metadata))?;
    let (len, rest) = bytes.split_first_chunk_mut::<8>().ok_or(SafeTensorError::HeaderTooSmall)?;
    let text =
        rest.get_mut(..u64::from_le_bytes(*len) as usize).ok_or(SafeTensorError::HeaderTooSmall)?;
    let mut header: serde_json::Map<_, _> = serde_json::from_slice(text)?;
    if let Some(serde_json::Value::Object(metadata)) = header.get_mut("__metadata__") {
        metadata.sort_keys();
    }
    // Keys change places, so only the padding at the end is left as it is.
    let sorted = serde_json::to_vec(&header)?;
    text.get_mut(..sorted.len()).ok_or(SafeTensorError::HeaderTooLarge)?.copy_from_slice(&sorted);
    Ok(bytes)
}

/// What a file begins with, before the data of `tensors` (name, type, shape), which follow in this
/// order: for files that are written piece by piece. Equal contents give equal bytes.
///
/// Errors: as [`Metadata::new`].
pub(crate) fn head(
    tensors: Vec<(String, Dtype, Vec<usize>)>,
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, SafeTensorError> {
    let mut end = 0;
    let info = |(name, dtype, shape): (String, Dtype, Vec<usize>)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    };
    let infos = tensors.into_iter().map(info).collect();
    let mut header = serde_json::to_value(Metadata::new(Some(metadata), infos)?)?;
    if let Some(serde_json::Value::Object(metadata)) = header.get_mut("__metadata__") {
        metadata.sort_keys();
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// Whether a file looks like it: a length, then a JSON object.
pub(crate) fn is_safetensors(path: &Path) -> bool {
    let mut head = [0; 9];
    let read = super::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok());
    read && head[8] == b'{' && !head.starts_with(b"GGUF")
}

/// An open file whose header is checked; tensors are read on demand.
pub(crate) struct SafetensorsFile<R> {
    path: PathBuf,
    reader: R,
    header: Metadata,
    data_start: u64,
    n_bytes: u64,
}

impl SafetensorsFile<BufReader<File>> {
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for a file that is not safetensors or is cut
    /// short.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::new(path, BufReader::new(super::open(path)?))
    }
}

impl<R: Read + Seek> SafetensorsFile<R> {
    /// Reads and checks the header; `path` is for errors.
    pub(crate) fn new(path: &Path, mut reader: R) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let invalid = |reason: String| Error::InvalidFile { path: path.into(), reason };
        let n_bytes = reader.seek(SeekFrom::End(0)).map_err(io)?;
        reader.rewind().map_err(io)?;
        let mut length = [0; 8];
        let cut =
            |_| invalid("cut short, or not safetensors; give an adapter's folder or file".into());
        reader.read_exact(&mut length).map_err(cut)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > n_bytes - 8 {
            return Err(invalid(format!(
                "a header of {length} bytes in a file of {n_bytes}: damaged, or not safetensors"
            )));
        }
        let mut json = vec![0; length as usize];
        reader.read_exact(&mut json).map_err(cut)?;
        let damaged = |e: serde_json::Error| {
            invalid(match e.column() {
                0 => "the header's tensors overlap, leave gaps or have other sizes than their \
                    shapes; save it again"
                    .into(),
                column => format!("the header is damaged (column {column}); download it again"),
            })
        };
        if let Twice(Some(name)) = serde_json::from_slice(&json).map_err(damaged)? {
            return Err(Error::InvalidTensor {
                name,
                reason: "it is in the header twice; save it again".into(),
            });
        }
        let header: Metadata = serde_json::from_slice(&json).map_err(damaged)?;
        let expected = 8 + length + header.data_len() as u64;
        if expected != n_bytes {
            return Err(invalid(format!(
                "{n_bytes} bytes, but the header tells of {expected}; download it again"
            )));
        }
        Ok(Self { path: path.into(), reader, header, data_start: 8 + length, n_bytes })
    }

    /// For errors.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// A text from the header's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// All texts of the header's metadata.
    pub(crate) fn all_metadata(&self) -> HashMap<String, String> {
        self.header.metadata().clone().unwrap_or_default()
    }

    /// Every tensor's name, type, shape and place in the file, sorted by name.
    pub(crate) fn places(
        &self,
    ) -> impl Iterator<Item = (String, Dtype, Vec<usize>, Range<usize>)> + '_ {
        let start = self.data_start as usize;
        self.tensors().into_iter().map(move |(name, info)| {
            let (from, to) = info.data_offsets;
            (name, info.dtype, info.shape.clone(), start + from..start + to)
        })
    }

    /// What it was read from.
    pub(crate) fn into_reader(self) -> R {
        self.reader
    }

    /// Every tensor, sorted by name.
    pub(crate) fn tensors(&self) -> Vec<(String, &TensorInfo)> {
        let mut tensors: Vec<_> = self.header.tensors().into_iter().collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    }

    /// Reads a tensor, for [`floats`].
    pub(crate) fn read(&mut self, name: &str) -> Result<(Dtype, Vec<u8>)> {
        let info = self.info(name)?;
        let (dtype, (start, end)) = (info.dtype, info.data_offsets);
        // The header was compared with the file's length, so this asks for no more than the file
        // had.
        Ok((dtype, self.read_bytes(start..end)?))
    }

    /// Reads rows of a tensor as f32. Call it for types that [`is_float`] takes.
    pub(crate) fn read_rows(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let dtype = self.info(name)?.dtype;
        floats(name, dtype, &self.read_row_bytes(name, rows)?)
    }

    /// Reads rows of a tensor as they are; a vector's rows are its numbers.
    pub(crate) fn read_row_bytes(&mut self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        let row = (end - start) / info.shape.first().copied().unwrap_or(1).max(1);
        self.read_bytes((start + rows.start * row).min(end)..(start + rows.end * row).min(end))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| Error::MissingTensor { name: name.into() })
    }

    fn read_bytes(&mut self, range: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        let at = SeekFrom::Start(self.data_start + range.start as u64);
        let read = self.reader.seek(at).and_then(|_| self.reader.read_exact(&mut bytes));
        read.map_err(|e| Error::io(&self.path, e))?;
        Ok(bytes)
    }
}

/// What [`SafetensorsFile::read`] gives, as f32. Call it for types that [`is_float`] takes.
pub(crate) fn floats(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    match dtype {
        Dtype::F64 => {
            Ok(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect())
        }
        _ => to_f32(gguf_type(dtype).ok_or_else(|| not_float(name))?, bytes)
            .ok_or_else(|| not_float(name)),
    }
}

fn not_float(name: &str) -> Error {
    Error::InvalidTensor { name: name.into(), reason: "F32, F16, BF16 or F64 is needed".into() }
}

/// Whether [`floats`] can read it.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    dtype == Dtype::F64 || gguf_type(dtype).is_some()
}

/// GGUF's name of a type that both have.
pub(crate) fn gguf_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Little-endian numbers as f32; `None` for a type in blocks.
pub(crate) fn to_f32(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        DType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) if cfg!(target_endian = "little") => halves.to_f32_vec(),
            _ => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        },
        DType::BF16 => {
            bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
        }
        _ => return None,
    })
}

/// Numbers as little-endian bytes; `None` when one is too large for the type, or the type is
/// neither F32 nor F16.
pub(crate) fn from_f32(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    let half = || values.iter().map(|&v| f16::from_f32(v));
    match dtype {
        DType::F32 if values.iter().all(|v| v.is_finite()) => {
            Some(values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        DType::F16 if half().all(f16::is_finite) => {
            Some(half().flat_map(f16::to_le_bytes).collect())
        }
        _ => None,
    }
}
