//! Verdicts on disk, one file a driver, set of abilities, version and kernels' text.

use std::path::{Path, PathBuf};

use super::Report;
use crate::gpu::{Gpu, shader};
use crate::identity::Identity;

/// Where the report of `gpu`, as it was opened, is kept; `None` without a cache folder.
pub(super) fn path(gpu: &Gpu) -> Option<PathBuf> {
    let dir = gpu.options.cache_dir.as_ref()?;
    let mut identity = Identity::new("epiphyte.selftest.1");
    let mut caps = serde_json::to_value(gpu.caps()).ok()?;
    caps.sort_all_objects();
    identity.add("caps", caps);
    identity.add_unless(false, "checked", gpu.options.checked);
    identity.add("shaders", shader::hash());
    let key = &identity.hash()[..8];
    Some(dir.join(format!(
        "{}-{}-{key}.selftest.json",
        gpu.driver_key(),
        env!("CARGO_PKG_VERSION")
    )))
}

/// The report at `path`, unless it is missing or damaged.
pub(super) fn read(path: &Path) -> Option<Report> {
    let report: Report = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(Report { cached: true, ..report })
}

/// Keeps `report`. A failure costs only time at the next start.
pub(super) fn write(path: &Path, report: &Report) {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let save = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(&temporary, serde_json::to_vec(report)?)?;
        std::fs::rename(&temporary, path)
    };
    if let Err(e) = save() {
        log::warn!("self-test verdicts {}: {e}", path.display());
    }
}
