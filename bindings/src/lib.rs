//! Kotlin and Swift see this crate.
