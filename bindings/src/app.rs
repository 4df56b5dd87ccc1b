//! The app that this library is part of, as the system tells of it.

use std::path::PathBuf;
use std::sync::OnceLock;

static APP: OnceLock<AppInfo> = OnceLock::new();

/// What an app may use.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct AppInfo {
    /// Its own folder for what it keeps, such as adapters and sessions.
    pub files_dir: String,
    /// Its own folder for what can be made again.
    pub cache_dir: String,
    /// Bytes of managed memory that the system means it to stay within, by its memory class.
    pub memory_class_bytes: i64,
}

/// What the system told; none where nothing is told: it is on Android, once the library is started.
#[uniffi::export]
pub fn app_info() -> Option<AppInfo> {
    APP.get().cloned()
}

/// The first one counts.
#[cfg_attr(not(target_os = "android"), expect(dead_code, reason = "only Android tells"))]
pub(crate) fn tell(app: AppInfo) {
    APP.get_or_init(|| app);
}

/// The app's own cache folder, where it is known.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    APP.get().map(|app| PathBuf::from(&app.cache_dir).join("epiphyte"))
}
