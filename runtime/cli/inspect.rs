//! later
use crate::error::Result;
#[derive(clap::Args)]
pub(super) struct InspectArgs {}
pub(super) fn run(_args: &InspectArgs) -> Result<()> {
    Ok(())
}
