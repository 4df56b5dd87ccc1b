//! Any bytes as a delta, a published version, a key. Reading never panics; what reads has the
//! numbers it says. The signature alone would stop nearly every input, so the manifest's own
//! parser is fed as well: a file that is signed by whoever sends it is still not trusted.
#![no_main]

use epiphyte::federated::{Delta, KeyKind, Published, PublicKey, SigningKey, sign_again};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = SigningKey::from_bytes(KeyKind::Ed25519, &[7; 32]).unwrap();
    for file in [Some(bytes.to_vec()), sign_again(bytes, &key).ok()].into_iter().flatten() {
        let _ = Published::from_bytes(file.clone());
        let Ok(delta) = Delta::from_bytes(file) else { continue };
        assert!(delta.norm().is_finite() || delta.n_numbers() > 0);
        if delta.n_numbers() < 1 << 20 {
            for path in delta.modules() {
                let numbers = delta.module(path);
                assert!(numbers.iter().flatten().flatten().all(|v| v.is_finite()));
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(key) = text.parse::<PublicKey>() {
            assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        }
        let _ = PublicKey::from_pem(text);
        let _ = SigningKey::from_pem(text);
    }
});
