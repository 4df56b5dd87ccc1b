//! `epiphyte flower`: this machine as a node of Flower.

mod connection;
mod join;
mod key;
mod node;
mod worker;

use clap::{Args, Subcommand};

use epiphyte::GpuOptions;
use epiphyte::error::Result;

/// Take part in federated averaging by way of Flower
#[derive(Args)]
pub(super) struct FlowerArgs {
    #[command(subcommand)]
    command: FlowerCommand,
}

#[derive(Subcommand)]
enum FlowerCommand {
    Join(Box<join::JoinArgs>),
    Key(key::KeyArgs),
}

pub(super) fn run(args: &FlowerArgs, gpu: GpuOptions) -> Result<()> {
    match &args.command {
        FlowerCommand::Join(args) => join::run(args, gpu),
        FlowerCommand::Key(args) => key::run(args),
    }
}
