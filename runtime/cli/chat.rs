//! later
use crate::error::Result;
#[derive(clap::Args)]
pub(super) struct ChatArgs {}
pub(super) fn run(_args: &ChatArgs, _gpu: crate::gpu::GpuOptions) -> Result<()> {
    Ok(())
}
