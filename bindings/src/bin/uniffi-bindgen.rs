//! Generates the Kotlin and Swift sources: `uniffi-bindgen generate LIBRARY -l kotlin -l swift --out-dir DIR --no-format`.

fn main() {
    uniffi::uniffi_bindgen_main();
}
