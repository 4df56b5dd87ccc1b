//! A model's weights in another format, to GGUF. Tensors go through one after another in pieces, so
//! memory stays small, whatever the model's size.
//!
//! Which type a tensor gets is in `policy`, or with a budget of bits in `budget`; how weights are
//! rounded is in `quant`.

mod budget;
mod imatrix;
#[cfg(feature = "gpu")]
mod imatrix_file;
mod measure;
mod policy;
mod sensitivity;
mod source;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::dtype::{DType, MIXED};
use crate::error::{Error, Result};
use crate::format::gguf::{Gguf, shards_of};
use crate::format::gguf_writer::GgufWriter;
use crate::format::paths_in;
use crate::format::staged::Staged;
use crate::parallel;
use crate::quant;
use measure::Loss;
use source::{Source, Tensor};

pub use imatrix::Imatrix;
#[cfg(feature = "gpu")]
pub(crate) use imatrix_file::{ImatrixEntry, ImatrixText};

/// The key that tells a file of ours from others; its value says what was asked for.
pub(crate) const QUANTIZED_KEY: &str = "epiphyte.quantized";
/// Weights of a piece, about, and of what a thread takes of it at once.
const PIECE: usize = 4 << 20;
const SHARE: usize = 1 << 18;

/// What to make of a model.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Which types.
    pub to: QuantizeTo,
    /// What errors of a tensor's columns cost, where it says.
    pub imatrix: Option<Imatrix>,
}

impl QuantizeOptions {
    /// To these types, all errors costing the same.
    pub const fn new(to: QuantizeTo) -> Self {
        Self { to, imatrix: None }
    }

    fn wants_imatrix(&self) -> bool {
        let few = matches!(self.to, QuantizeTo::Bits(bits) if budget::wants_imatrix(bits));
        few && self.imatrix.is_none()
    }
}

/// How types are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QuantizeTo {
    /// One for all matrices, but for those of which docs/quantize.md says otherwise.
    Type(DType),
    /// For each matrix the one that lowers the loss most for its bits, so that the file has at most
    /// so many bits a weight. What errors of a matrix cost is in the imatrix, if it is one of ours.
    Bits(f64),
}

/// What was written, and what rounding took.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// Bytes of the file.
    pub n_bytes: u64,
    /// Weights in it.
    pub n_weights: u64,
    /// Bits of its tensors over weights.
    pub bits_per_weight: f64,
    /// Root mean square of the errors of all matrices over that of their weights.
    pub relative_rms: f64,
    /// Tensors that were in blocks before and were rounded again, which adds the new errors to the
    /// old ones.
    pub requantized: usize,
    /// Tensors of which the imatrix said nothing.
    pub without_importance: usize,
    /// A budget below 4 bits was spent without an imatrix: little may be left of the model.
    pub wants_imatrix: bool,
    /// Every tensor, in the file's order.
    pub tensors: Vec<QuantizedTensor>,
}

/// One tensor.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedTensor {
    /// As the file spells it.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Type before.
    pub from: &'static str,
    /// Type now.
    pub to: &'static str,
    /// Rows are no whole blocks of the type that was asked for.
    pub fell_back: bool,
    /// Root mean square of the errors over that of the weights; 0 for a copy.
    pub relative_rms: f64,
}

/// A tensor of the new file.
struct Planned<'a> {
    tensor: &'a Tensor,
    dtype: DType,
    fell_back: bool,
    importance: Option<&'a [f32]>,
    /// The mean square of its weights' gradients.
    slope: Option<f64>,
    padding: Vec<u8>,
}

/// Writes the model of `gguf` to `path` with its matrices in other types. Metadata are carried
/// over. Complete or not there at all; a file that is there is replaced. `progress` gets weights
/// done and in all.
///
/// Errors: [`Error::InvalidArgument`] for a budget that no choice of types meets, or when `path` is
/// one of the model's own files; [`Error::InvalidTensor`] naming a tensor with a weight that is not finite
/// or too large for its type, or of other columns than its importance; [`Error::Io`].
pub fn quantize_gguf(
    gguf: &Gguf,
    options: &QuantizeOptions,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<QuantizeReport> {
    refuse_own(path, &shards_of(gguf.path()))?;
    quantize(&source::GgufSource::new(gguf), options, path, progress)
}

/// As [`quantize_gguf`] for a Hugging Face checkpoint, whose sizes and tokenizer become the new
/// file's metadata.
///
/// Errors: as there.
pub fn quantize_checkpoint(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<QuantizeReport> {
    let mut files = paths_in(&checkpoint.path);
    files.retain(|path| path.extension().is_none_or(|ending| ending != "gguf"));
    refuse_own(path, &files)?;
    quantize(&source::CheckpointSource::new(checkpoint)?, options, path, progress)
}

/// That the new file is none of those that are read.
fn refuse_own(path: &Path, read: &[PathBuf]) -> Result<()> {
    let Ok(out) = path.canonicalize() else { return Ok(()) };
    if read.iter().any(|path| path.canonicalize().is_ok_and(|path| path == out)) {
        let reason = "it is the model that is read; give another name".into();
        return Err(Error::InvalidArgument { name: "path", reason });
    }
    Ok(())
}

fn quantize(
    source: &dyn Source,
    options: &QuantizeOptions,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<QuantizeReport> {
    let mut planned = plan(source, options)?;
    let mut writer = GgufWriter::new(source.alignment()?);
    source.keys(&mut writer, &|key| is_ours(key));
    keys(&mut writer, options, &planned);
    for planned in &mut planned {
        let Tensor { name, shape, .. } = planned.tensor;
        planned.padding = writer.tensor(name, shape, planned.dtype, planned.n_bytes());
    }
    let all = planned.iter().map(|planned| planned.tensor.n_weights() as u64).sum();
    let (head, mut done) = (writer.head(), 0);
    let (mut staged, mut n_bytes) = (Staged::write(path, &head)?, head.len() as u64);
    let (mut tensors, mut total) = (Vec::new(), Loss::default());
    progress(0, all);
    for planned in &planned {
        let loss = pieces(source, planned, &mut |bytes, weights| {
            (done, n_bytes) = (done + weights as u64, n_bytes + bytes.len() as u64);
            progress(done, all);
            staged.append(bytes)
        })?;
        staged.append(&planned.padding)?;
        n_bytes += planned.padding.len() as u64;
        if planned.tensor.is_matrix() {
            total = total.and(loss);
        }
        tensors.push(planned.report(loss));
    }
    staged.commit()?;
    let data: u64 = planned.iter().map(Planned::n_bytes).sum();
    Ok(QuantizeReport {
        n_bytes,
        n_weights: all,
        bits_per_weight: 8.0 * data as f64 / all.max(1) as f64,
        relative_rms: total.relative_rms(),
        requantized: planned.iter().filter(|planned| planned.is_requantized()).count(),
        without_importance: match options.imatrix {
            Some(_) => planned.iter().filter(|planned| planned.lacks_importance()).count(),
            None => 0,
        },
        wants_imatrix: options.wants_imatrix(),
        tensors,
    })
}

impl Planned<'_> {
    fn n_bytes(&self) -> u64 {
        let blocks = self.tensor.n_weights() / self.dtype.block_len();
        (blocks * self.dtype.block_bytes()) as u64
    }

    fn is_requantized(&self) -> bool {
        let from = self.tensor.dtype;
        from.block_len() > 1 && from != self.dtype && self.dtype.block_len() > 1
    }

    fn lacks_importance(&self) -> bool {
        self.tensor.is_matrix() && self.importance.is_none()
    }

    fn report(&self, loss: Loss) -> QuantizedTensor {
        QuantizedTensor {
            name: self.tensor.name.clone(),
            shape: self.tensor.shape.clone(),
            from: self.tensor.dtype.name(),
            to: self.dtype.name(),
            fell_back: self.fell_back,
            relative_rms: loss.relative_rms(),
        }
    }
}

/// Each tensor with its type.
fn plan<'a>(source: &'a dyn Source, options: &'a QuantizeOptions) -> Result<Vec<Planned<'a>>> {
    let tensors = source.tensors();
    let tied = !tensors.iter().any(|tensor| tensor.name == policy::HEAD);
    let mut planned = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let importance = match &options.imatrix {
            Some(imatrix) if tensor.is_matrix() => imatrix.of(&tensor.name, tensor.row_len())?,
            _ => None,
        };
        let wanted = match options.to {
            QuantizeTo::Type(dtype) => policy::wanted(tensor, dtype, tied),
            QuantizeTo::Bits(_) => DType::F32,
        };
        let dtype = policy::fitting(wanted, tensor.row_len());
        let fell_back = dtype != wanted;
        let slope = options.imatrix.as_ref().and_then(|imatrix| imatrix.slope(&tensor.name));
        let padding = Vec::new();
        planned.push(Planned { tensor, dtype, fell_back, importance, slope, padding });
    }
    if let QuantizeTo::Bits(bits) = options.to {
        budget::choose(source, &mut planned, bits)?;
    }
    Ok(planned)
}

/// Whether a key is written anew, or means nothing in the new file.
fn is_ours(key: &str) -> bool {
    let written = ["general.file_type", "general.quantization_version", QUANTIZED_KEY];
    written.contains(&key) || key.starts_with("split.") || key.starts_with("quantize.")
}

fn keys(writer: &mut GgufWriter, options: &QuantizeOptions, planned: &[Planned<'_>]) {
    let (told, file_type) = match options.to {
        QuantizeTo::Type(dtype) => (dtype.name().to_string(), dtype.file_type()),
        QuantizeTo::Bits(bits) => (format!("{bits} bits"), MIXED),
    };
    writer.text(QUANTIZED_KEY, &told).u32("general.file_type", file_type);
    if planned.iter().any(|planned| planned.dtype.block_len() > 1) {
        writer.u32("general.quantization_version", 2);
    }
    options.imatrix.iter().for_each(|imatrix| imatrix.keys(writer));
}

/// Hands out a tensor's bytes in pieces, each with its number of weights.
fn pieces(
    source: &dyn Source,
    planned: &Planned<'_>,
    write: &mut dyn FnMut(&[u8], usize) -> Result<()>,
) -> Result<Loss> {
    let (tensor, k) = (planned.tensor, planned.tensor.row_len());
    let (rows, at_once) = (tensor.n_rows(), (PIECE / k).max(1));
    let mut loss = Loss::default();
    for first in (0..rows).step_by(at_once) {
        let rows = first..(first + at_once).min(rows);
        let (bytes, n) = (source.bytes(tensor, rows.clone())?, rows.len() * k);
        if tensor.dtype == planned.dtype {
            write(&bytes, n)?;
            continue;
        }
        let share = (SHARE / k).max(1) * (bytes.len() / rows.len());
        let shares: Vec<&[u8]> = bytes.chunks(share).collect();
        for rounded in parallel::map(shares, |bytes| round(planned, bytes)) {
            let (bytes, part) = rounded?;
            loss = loss.and(part);
            write(&bytes, bytes.len() / planned.dtype.block_bytes() * planned.dtype.block_len())?;
        }
    }
    Ok(loss)
}

/// Whole rows in the type of the source to those of the new file.
fn round(planned: &Planned<'_>, bytes: &[u8]) -> Result<(Vec<u8>, Loss)> {
    let Planned { tensor, dtype, importance, .. } = planned;
    let n = bytes.len() / tensor.dtype.block_bytes() * tensor.dtype.block_len();
    let mut weights = vec![0.0; n];
    quant::format(tensor.dtype).dequantize(bytes, &mut weights);
    let rounded = quant::quantize(*dtype, &weights, *importance).ok_or_else(|| {
        let reason = match weights.iter().all(|w| w.is_finite()) {
            true => format!("its weights are too large for {}; take BF16 or F32", dtype.name()),
            false => "one of its weights is not a finite number; get the model again".into(),
        };
        Error::InvalidTensor { name: tensor.name.clone(), reason }
    })?;
    let mut values = vec![0.0; n];
    quant::format(*dtype).dequantize(&rounded, &mut values);
    let loss = Loss::of(&weights, &values, None);
    Ok((rounded, loss))
}
