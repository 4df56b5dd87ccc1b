//! later
use crate::error::Result;
#[derive(clap::Args)]
pub(super) struct DoctorArgs {}
pub(super) fn run(_args: &DoctorArgs, _gpu: crate::gpu::GpuOptions) -> Result<()> {
    Ok(())
}
