//! `epiphyte federate`: federated averaging, tried out on one machine.

mod devices;
mod picture;
mod simulate;
mod simulation;

use clap::{Args, Subcommand};

use epiphyte::GpuOptions;
use epiphyte::error::Result;

/// Try federated averaging out on this machine
#[derive(Args)]
pub(super) struct FederateArgs {
    #[command(subcommand)]
    command: FederateCommand,
}

#[derive(Subcommand)]
enum FederateCommand {
    Simulate(Box<simulate::SimulateArgs>),
}

pub(super) fn run(args: &FederateArgs, gpu: GpuOptions) -> Result<()> {
    match &args.command {
        FederateCommand::Simulate(args) => simulate::run(args, gpu),
    }
}
