//! `epiphyte quantize`: a model's weights in another format. Needs no GPU.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::output;
use crate::paths::{Files, Kind};
use epiphyte::checkpoint::Checkpoint;
use epiphyte::dtype::DType;
use epiphyte::error::{Error, Result};
use epiphyte::format::gguf::{Gguf, shards_of};
use epiphyte::quantize::{
    Imatrix, QuantizeOptions, QuantizeReport, QuantizeTo, QuantizedTensor, quantize_checkpoint,
    quantize_gguf,
};

/// Write a model with its weights in another format
#[derive(Args)]
pub(super) struct QuantizeArgs {
    /// The model: GGUF (of several shards the first), or the folder of a Hugging Face checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The new model file; one that `quantize` wrote is replaced
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,
    /// Replace another file, too
    #[arg(long)]
    overwrite: bool,
    #[arg(long = "type", value_name = "TYPE", value_parser = dtype, help = types())]
    #[arg(required_unless_present = "bits")]
    dtype: Option<DType>,
    /// Choose types by what their errors cost in loss, for at most so many bits a weight in all
    #[arg(long, value_name = "B", conflicts_with = "dtype")]
    bits: Option<f64>,
    /// Importance of columns (llama-imatrix, GGUF or .dat): errors in important ones cost more
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    out: &'a Path,
    #[serde(flatten)]
    report: QuantizeReport,
    seconds: f64,
    /// Bytes of the model that were read, in 10^9 a second.
    gb_per_second: f64,
    peak_host_bytes: Option<u64>,
}

fn names() -> String {
    DType::ALL.map(DType::name).join(", ")
}

fn types() -> String {
    format!("Type of the matrices: one of {}", names())
}

fn dtype(text: &str) -> Result<DType, String> {
    let found = DType::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("it is none of {}; a mixture is chosen by `--bits`", names()))
}

pub(super) fn run(args: &QuantizeArgs) -> Result<()> {
    let mut files = Files::default();
    let is_folder = args.model.is_dir();
    let inputs = if is_folder { vec![args.model.clone()] } else { shards_of(&args.model) };
    for input in inputs {
        files = files.reads("the model", "MODEL", &input);
    }
    if let Some(imatrix) = &args.imatrix {
        files = files.reads("the imatrix", "--imatrix", imatrix);
    }
    files.writes("OUT.gguf", &args.out, Kind::QuantizedModel).check(Some(args.overwrite))?;
    let to = match (args.dtype, args.bits) {
        (Some(dtype), _) => QuantizeTo::Type(dtype),
        (None, Some(bits)) => QuantizeTo::Bits(bits),
        (None, None) => {
            let reason = "neither a type nor a budget of bits is given".into();
            return Err(Error::InvalidArgument { name: "type", reason });
        }
    };
    let mut options = QuantizeOptions::new(to);
    options.imatrix = args.imatrix.as_ref().map(Imatrix::open).transpose()?;
    let start = Instant::now();
    let bar = output::bar(1, "quantising {percent} % {wide_bar} {eta} left");
    let progress = &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let (read, report) = if is_folder {
        let checkpoint = Checkpoint::open(&args.model)?;
        let report = quantize_checkpoint(&checkpoint, &options, &args.out, progress);
        (checkpoint.n_bytes(), report)
    } else {
        let gguf = Gguf::open(&args.model)?;
        (gguf.n_bytes(), quantize_gguf(&gguf, &options, &args.out, progress))
    };
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let report = Report {
        out: &args.out,
        report: report?,
        seconds,
        gb_per_second: read as f64 / 1e9 / seconds,
        peak_host_bytes: output::peak_host_bytes(),
    };
    if args.json { output::json(&report) } else { print(&report) }
}

fn print(
    Report { out, report, seconds, gb_per_second, peak_host_bytes }: &Report<'_>,
) -> Result<()> {
    let matrices = |tensor: &&QuantizedTensor| tensor.shape.len() > 1;
    for tensor in report.tensors.iter().filter(matrices) {
        let QuantizedTensor { name, from, to, relative_rms, fell_back, .. } = tensor;
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let note = if *fell_back { "  (rows are no whole blocks of the type)" } else { "" };
        output::line(&format!(
            "{name:32} {shape:16} {from:>5} -> {to:5} {:8.4} %{note}",
            100.0 * relative_rms
        ))?;
    }
    if report.requantized > 0 {
        output::note(&format!(
            "warning: {} tensors were quantised before, so errors add up; take the model in F16 or \
            BF16 where it can be had",
            report.requantized
        ));
    }
    if report.wants_imatrix {
        output::note(
            "warning: below 4 bits without an imatrix little may be left of the model; make one \
            (`epiphyte imatrix`), and measure with `epiphyte perplexity`",
        );
    }
    if report.without_importance > 0 {
        output::note(&format!(
            "note: the imatrix says nothing of {} matrices",
            report.without_importance
        ));
    }
    let bytes = output::human_bytes(report.n_bytes);
    output::line(&format!(
        "{}: {bytes}, {:.3} bits a weight, errors {:.4} % of the weights (rms over rms)",
        out.display(),
        report.bits_per_weight,
        100.0 * report.relative_rms
    ))?;
    let peak = peak_host_bytes.map_or_else(|| "unknown".into(), output::human_bytes);
    output::line(&format!("{seconds:.1} s, {gb_per_second:.2} GB/s read, {peak} of memory at most"))
}
