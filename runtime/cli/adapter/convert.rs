//! `epiphyte adapter convert`: the same adapter in the other format. Needs no GPU.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::BaseFile;
use crate::paths::{Files, Kind};
use crate::{ModelFile, output};
use epiphyte::adapter::Adapter;
use epiphyte::dtype::DType;
use epiphyte::error::Result;

/// Write an adapter as a PEFT folder or a GGUF file
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// LoRA adapter (PEFT folder, safetensors or GGUF)
    path: PathBuf,
    /// The new folder or file; an adapter that is there is replaced
    out: PathBuf,
    /// Replace a file that is no adapter, too
    #[arg(long)]
    overwrite: bool,
    /// The format [default: gguf for a name that ends in .gguf, else peft]
    #[arg(long)]
    to: Option<Format>,
    /// Type of the numbers
    #[arg(long, default_value = "f32")]
    dtype: Number,
    /// Say that it was made for this model, whatever it says
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelFile,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Peft,
    Gguf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Number {
    F32,
    F16,
}

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let by_name = if args.out.extension().is_some_and(|end| end == "gguf") {
        Format::Gguf
    } else {
        Format::Peft
    };
    let format = args.to.unwrap_or(by_name);
    let kind = match format {
        Format::Peft => Kind::AdapterFolder,
        Format::Gguf => Kind::Adapter,
    };
    let files = Files::default().model(&args.model)?.reads("the adapter", "PATH", &args.path);
    files.writes("OUT", &args.out, kind).check(Some(args.overwrite))?;
    let base = BaseFile::open(&args.model)?;
    let mut adapter = Adapter::load(&args.path, base.adapted())?;
    if args.force {
        adapter.base_fingerprint = Some(base.fingerprint);
    }
    adapter.report.warnings.iter().for_each(|warning| output::note(&format!("warning: {warning}")));
    let dtype = match args.dtype {
        Number::F32 => DType::F32,
        Number::F16 => DType::F16,
    };
    match format {
        Format::Peft => adapter.save_peft(&args.out, dtype, &base.shape)?,
        Format::Gguf => adapter.save_gguf(&args.out, dtype, &base.shape)?,
    }
    let (out, n) = (args.out.display(), adapter.modules.len());
    output::line(&format!("{out}: {n} modules in {}", dtype.name()))
}
