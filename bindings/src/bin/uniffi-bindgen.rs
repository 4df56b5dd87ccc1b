//! Generates the Kotlin and Swift sources: `uniffi-bindgen generate LIBRARY -l kotlin -l swift
//! --out-dir DIR --no-format`.
//!
//! LIBRARY is the static one (`libepiphyte_bindings.a`): release builds strip the symbols it needs
//! from the shared one.

fn main() {
    uniffi::uniffi_bindgen_main();
}
