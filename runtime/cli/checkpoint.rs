//! `epiphyte checkpoint`: a model as a Hugging Face checkpoint. Needs no GPU.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::output;
use crate::paths::{Files, Kind};
use epiphyte::checkpoint::export_checkpoint;
use epiphyte::dtype::DType;
use epiphyte::error::Result;
use epiphyte::format::gguf::{Gguf, shards_of};

/// Write a model as a Hugging Face checkpoint, which transformers loads
#[derive(Args)]
pub(super) struct CheckpointArgs {
    /// The model (GGUF; of several shards the first)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The new folder; the files of a checkpoint that is there are replaced
    #[arg(value_name = "FOLDER")]
    out: PathBuf,
    /// Write into a folder that holds something else, too
    #[arg(long)]
    overwrite: bool,
    /// Type of the weights
    #[arg(long = "type", value_name = "TYPE", default_value = "bf16")]
    dtype: Type,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    #[value(name = "bf16")]
    BF16,
    #[value(name = "f16")]
    F16,
    #[value(name = "f32")]
    F32,
}

pub(super) fn run(args: &CheckpointArgs) -> Result<()> {
    let files = shards_of(&args.model).into_iter();
    let files = files.fold(Files::default(), |all, file| all.reads("the model", "MODEL", &file));
    files.writes("FOLDER", &args.out, Kind::CheckpointFolder).check(Some(args.overwrite))?;
    let dtype = match args.dtype {
        Type::BF16 => DType::BF16,
        Type::F16 => DType::F16,
        Type::F32 => DType::F32,
    };
    let gguf = Gguf::open(&args.model)?;
    let bar = output::bar(1, "writing {percent} % {wide_bar} {eta} left");
    let report = export_checkpoint(&gguf, &args.out, dtype, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        return output::json(&report);
    }
    if !report.tokenizer {
        output::note(
            "warning: no tokenizer.json: only byte-level BPE can be written as one; take the \
            original model's",
        );
    }
    let (n, bytes) = (report.files.len(), output::human_bytes(report.n_bytes));
    output::line(&format!("{}: {n} files, {bytes} of weights", args.out.display()))
}
