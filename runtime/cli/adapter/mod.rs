//! `epiphyte adapter`: look at adapters, try, convert and merge them.

mod check;
mod compare;
mod convert;
mod export;
pub(super) mod inspect;
mod load;
mod loftq;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ModelFile;
use epiphyte::GpuOptions;
use epiphyte::adapter::{AdaptedBase, BaseShape, BaseWeights};
use epiphyte::base::{ModelConfig, fingerprint};
use epiphyte::error::Result;
use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::TokenizerSpec;

pub(super) use load::{AdapterArgs, Adapters, LoadedAdapter, Weighted};

/// Look at LoRA adapters, try, convert and merge them
#[derive(Args)]
pub(super) struct AdapterCommandArgs {
    #[command(subcommand)]
    command: AdapterCommand,
}

#[derive(Subcommand)]
enum AdapterCommand {
    Inspect(inspect::InspectArgs),
    Check(check::CheckArgs),
    Compare(compare::CompareArgs),
    Convert(convert::ConvertArgs),
    Export(export::ExportArgs),
    Loftq(loftq::LoftqArgs),
}

pub(super) fn run(args: &AdapterCommandArgs, gpu: GpuOptions) -> Result<()> {
    match &args.command {
        AdapterCommand::Inspect(args) => inspect::run(args),
        AdapterCommand::Check(args) => check::run(args, gpu),
        AdapterCommand::Compare(args) => compare::run(args, gpu),
        AdapterCommand::Convert(args) => convert::run(args),
        AdapterCommand::Export(args) => export::run(args),
        AdapterCommand::Loftq(args) => loftq::run(args),
    }
}

/// A base that is read but not on a device.
pub(super) struct BaseFile {
    path: PathBuf,
    gguf: Gguf,
    pub(super) shape: BaseShape,
    pub(super) fingerprint: String,
}

impl BaseFile {
    pub(super) fn open(model: &ModelFile) -> Result<Self> {
        let path = model.path()?;
        let gguf = Gguf::open(&path)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        config.check_tensors(&gguf)?;
        let tokenizer = TokenizerSpec::from_gguf(&gguf)?;
        let fingerprint = fingerprint::fingerprint(&gguf, &config, &tokenizer)?;
        Ok(Self { path, gguf, shape: config.base_shape(), fingerprint })
    }

    pub(super) fn adapted(&self) -> AdaptedBase<'_> {
        AdaptedBase { shape: self.shape, weights: BaseWeights::Open(&self.gguf) }
    }
}
