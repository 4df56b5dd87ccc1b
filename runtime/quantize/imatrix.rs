//! llama.cpp's importance matrices: for each column of a matrix, the mean square of what comes in
//! there, over a text. Read from GGUF and from the older `.dat`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::format;
use crate::format::gguf::Gguf;
use crate::format::gguf_writer::GgufWriter;
use crate::format::safetensors::to_f32;

/// Endings of a tensor's sums of squares and of its number of tokens, in GGUF.
pub(super) const SUMS: &str = ".in_sum2";
pub(super) const COUNTS: &str = ".counts";
/// That of the mean square of its weights' gradients, of our own; llama.cpp passes it over.
pub(super) const SLOPE: &str = ".slope2";
/// Bytes of a `.dat` that are read: an 8B model's has 5 MB.
const MOST_BYTES: u64 = 256 << 20;
/// The least importance of a column, in the mean of its tensor: none is free.
const LEAST: f32 = 1e-4;

/// What errors of each column of a model's matrices cost.
#[derive(Clone, Debug)]
pub struct Imatrix {
    /// Of the file.
    name: String,
    /// Of the text, where the file says.
    dataset: Option<String>,
    /// Passages of the text, where the file says.
    chunks: Option<u32>,
    /// By GGUF's name of the tensor: mean 1, no less than [`LEAST`].
    columns: BTreeMap<String, Vec<f32>>,
    /// Mean squares of a matrix's gradients for the loss of a token, in nats, where the file says.
    slopes: BTreeMap<String, f64>,
}

impl Imatrix {
    /// Reads a file of `llama-imatrix`.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for one that is neither form or is cut short;
    /// [`Error::InvalidTensor`] naming the entry that can't be used; those of [`Gguf::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = format::open(path)?;
        let mut magic = [0; 4];
        let is_gguf = std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"GGUF";
        let mut imatrix = if is_gguf { from_gguf(path)? } else { from_dat(path)? };
        imatrix.name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (name, columns) in &mut imatrix.columns {
            normalise(name, columns)?;
        }
        Ok(imatrix)
    }

    /// How many tensors it knows.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Of a tensor of rows of `row_len` weights; `None` when it is not in the file.
    pub(super) fn of(&self, tensor: &str, row_len: usize) -> Result<Option<&[f32]>> {
        match self.columns.get(tensor) {
            Some(columns) if columns.len() != row_len => {
                let n = columns.len();
                let reason = format!(
                    "the imatrix has {n} columns and the tensor {row_len}; take one of this model"
                );
                Err(Error::InvalidTensor { name: tensor.into(), reason })
            }
            found => Ok(found.map(Vec::as_slice)),
        }
    }

    /// The mean square of a matrix's gradients, where the file says.
    pub(super) fn slope(&self, tensor: &str) -> Option<f64> {
        self.slopes.get(tensor).copied()
    }

    /// What llama.cpp notes of one.
    pub(super) fn keys(&self, writer: &mut GgufWriter) {
        writer.text("quantize.imatrix.file", &self.name);
        if let Some(text) = &self.dataset {
            writer.text("quantize.imatrix.dataset", text);
        }
        writer.u32("quantize.imatrix.entries_count", self.columns.len() as u32);
        if let Some(chunks) = self.chunks {
            writer.u32("quantize.imatrix.chunks_count", chunks);
        }
    }
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::InvalidFile { path: path.into(), reason: reason.into() }
}

fn invalid_entry(name: &str, reason: &str) -> Error {
    let name: String = name.chars().take(64).collect();
    Error::InvalidTensor { name, reason: format!("{reason}; make the imatrix again") }
}

/// To a mean of 1: what is common to all columns changes nothing.
fn normalise(name: &str, columns: &mut [f32]) -> Result<()> {
    if columns.iter().any(|v| !(v.is_finite() && *v >= 0.0)) {
        return Err(invalid_entry(name, "an importance is not a number from 0 up"));
    }
    let mean = columns.iter().map(|&v| f64::from(v)).sum::<f64>() / columns.len().max(1) as f64;
    for v in columns {
        let relative = if mean > 0.0 { (f64::from(*v) / mean) as f32 } else { 1.0 };
        *v = relative.max(LEAST);
    }
    Ok(())
}

fn from_gguf(path: &Path) -> Result<Imatrix> {
    let gguf = Gguf::open(path)?;
    if gguf.find_note::<&str>("general.type") != Some("imatrix") {
        return Err(invalid(path, "a GGUF file, but no imatrix; give one of llama-imatrix"));
    }
    let floats = |name: &str| {
        let view = gguf.require(name)?;
        let floats = to_f32(view.dtype, &view.bytes());
        Ok((view.n_rows(), floats.ok_or_else(|| invalid_entry(name, "it is not of F32"))?))
    };
    let (mut columns, mut slopes) = (BTreeMap::new(), BTreeMap::new());
    for view in gguf.tensors() {
        if let Some(name) = view.name.strip_suffix(SLOPE) {
            let (_, slope) = floats(view.name)?;
            if slope.len() != 1 || !(slope[0].is_finite() && slope[0] >= 0.0) {
                return Err(invalid_entry(name, "its slope is not one number from 0 up"));
            }
            slopes.insert(name.into(), f64::from(slope[0]));
            continue;
        }
        let Some(name) = view.name.strip_suffix(SUMS) else { continue };
        let ((rows, sums), (_, counts)) = (floats(view.name)?, floats(&format!("{name}{COUNTS}"))?);
        if rows != 1 || counts.len() != 1 {
            return Err(invalid_entry(name, "it is of several matrices (experts)"));
        }
        // Of a tensor that no token reached nothing is known.
        if counts[0] > 0.0 {
            columns.insert(name.into(), sums.iter().map(|sum| sum / counts[0]).collect());
        }
    }
    let datasets: Option<Vec<&str>> = gguf.find_note("imatrix.datasets");
    Ok(Imatrix {
        name: String::new(),
        dataset: datasets.and_then(|all| all.first().map(|text| (*text).to_string())),
        chunks: gguf.find_note("imatrix.chunk_count"),
        columns,
        slopes,
    })
}

/// Reads little-endian fields one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn count(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.try_into().ok()?;
        usize::try_from(i32::from_le_bytes(bytes)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let n = self.count()?;
        Some(str::from_utf8(self.take(n)?).ok()?.into())
    }

    fn floats(&mut self, n: usize) -> Option<Vec<f32>> {
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }
}

/// Entries of name, number of calls, number of columns and their sums; then, since 2024, the number
/// of chunks and the text's name.
fn from_dat(path: &Path) -> Result<Imatrix> {
    let bytes = format::read(path, MOST_BYTES)?;
    let mut fields = Fields(&bytes);
    let cut = || invalid(path, "no imatrix, or cut short; give a file of llama-imatrix");
    let mut columns = BTreeMap::new();
    for _ in 0..fields.count().ok_or_else(cut)? {
        let name = fields.text().ok_or_else(cut)?;
        let (calls, n) = (fields.count().ok_or_else(cut)?, fields.count().ok_or_else(cut)?);
        let sums = fields.floats(n).ok_or_else(cut)?;
        if n == 0 {
            return Err(invalid_entry(&name, "it has no columns"));
        }
        let calls = calls.max(1) as f32;
        if columns.insert(name.clone(), sums.iter().map(|sum| sum / calls).collect()).is_some() {
            return Err(invalid_entry(&name, "it is there twice"));
        }
    }
    if columns.is_empty() {
        return Err(cut());
    }
    let (chunks, dataset) = (fields.count(), fields.text());
    let chunks = chunks.and_then(|n| u32::try_from(n).ok());
    Ok(Imatrix { name: String::new(), dataset, chunks, columns, slopes: BTreeMap::new() })
}
